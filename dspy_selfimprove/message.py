"""Chat-completion messages: openai's own types, and the few things plain data needs to be a value.

A message *is* openai's TypedDict, so what we hold is what the client sends; nothing is translated on the way. Inside
a frozen record it is stored by `freeze` (a dict that refuses to change) and given out by `thaw` (a fresh, ordinary
copy), so no caller can change a record by changing what it was given. `canonical` is the one text form used for
hashes and comparisons.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

    Message: TypeAlias = ChatCompletionMessageParam
else:
    Message: TypeAlias = dict  # openai's types are dicts at run time; importing them would cost half a second


class FrozenDict(dict[str, Any]):
    """A dict that refuses to change: hashable, and JSON like any other. Frozen lists in it are tuples."""

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self))  # by keys alone: values may be anything, and 1 equals 1.0

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenDict, (dict(self),))

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("This record is frozen; make a changed copy instead.")

    __setitem__ = __delitem__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse
    __ior__ = _refuse


def freeze(value: Any) -> Any:
    """`value` with every dict and list in it made unchangeable. Scalars are themselves."""
    if isinstance(value, Mapping):
        return FrozenDict({str(key): freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """An ordinary, unshared copy: dicts and lists, as an API client expects them."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value


def freeze_messages(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Messages as a frozen record keeps them."""
    return cast("tuple[Message, ...]", tuple(freeze(message) for message in messages))


def canonical(value: Any) -> str:
    """One text per JSON value: sorted keys, no spaces, no escapes. Tuples count as lists, and 1.0 is 1."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def digest(value: Any, length: int = 16) -> str:
    """A content hash of a JSON value, `length` hex digits long."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()[:length]


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, or the text parts of a multi-part one, joined by line breaks.

    Images, audio and tool calls are left out; so is a refusal.
    """
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        return str(content)
    parts = (part for part in content if isinstance(part, Mapping) and part.get("type") == "text")
    return "\n".join(str(part.get("text") or "") for part in parts)


def encodable(text: str) -> str:
    """`text` as UTF-8 can hold it: half of an emoji, which models do write, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
