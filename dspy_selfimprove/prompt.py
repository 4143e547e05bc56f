"""ChatPrompt: everything a chat-completion call says besides the conversation itself, as one flat frozen value.

One field per parameter of `client.chat.completions.create`; what is None is not sent. `prompt.request(...)` gives the
exact keyword arguments, so what was evaluated and what ships cannot differ. Two prompts with the same content have
the same `version`, whoever made them and whatever they are called.

A template is text with `{{name}}` where a variable goes. Only names listed in `variables` are slots (left out, every
`{{identifier}}` in the text is one, in ASCII letters); all other braces are ordinary characters, so JSON and code stay
as they are. A variable that the text does not use is accepted and ignored: a better prompt may drop the customer's
name, and the application that passes it goes on working. Filling is one pass: a value that itself contains `{{plan}}`
is not expanded. Few-shot turns are sent as they are.

Not covered: loops, conditions, filters; and a template that must hold the literal text of one of its own slots (choose
another name for the slot).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal

from dspy_selfimprove.errors import MissingVariable, UsageError
from dspy_selfimprove.message import FrozenDict, Message, digest, freeze, freeze_messages, thaw

_SLOT = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_TEXTS = ("system", "user", "few_shot", "variables", "role", "extra")  # all else is sent under its own name


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A system prompt with its variables, few-shot turns and call parameters.

    `role` is who says `system`: "user" for an application that puts its instructions into the first user message.
    `user`, if given, is the template of the last user turn; without it the caller passes the conversation to
    `request`. `extra` holds parameters that have no field here, under the API's own names.

    >>> prompt = ChatPrompt(system="Greet {{name}}.", model="gpt-4o-mini", temperature=0.2)
    >>> prompt.variables
    ('name',)
    >>> prompt.request([{"role": "user", "content": "Hi"}], name="Ana")["messages"][0]
    {'role': 'system', 'content': 'Greet Ana.'}
    >>> prompt.version == ChatPrompt(system="Greet {{name}}.", model="gpt-4o-mini", temperature=0.2).version
    True
    """

    system: str | None = None
    user: str | None = None
    variables: tuple[str, ...] | None = None
    few_shot: tuple[Message, ...] = ()
    role: Literal["system", "developer", "user"] = "system"
    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    reasoning_effort: str | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        found = slots_of(self.system) + slots_of(self.user)
        object.__setattr__(self, "variables", tuple(dict.fromkeys(found if self.variables is None else self.variables)))
        object.__setattr__(self, "few_shot", freeze_messages(self.few_shot))
        for name in ("stop", "tools", "tool_choice", "response_format"):
            object.__setattr__(self, name, freeze(getattr(self, name)))
        for name in ("system", "user", "stop", "tools", "tool_choice", "response_format"):
            if not getattr(self, name):  # empty says what unset says, so that it is one prompt with one version
                object.__setattr__(self, name, None)
        object.__setattr__(self, "extra", freeze(self.extra))
        own = PARAMETERS | {"messages"}
        if clash := sorted(own & set(self.extra)):
            raise UsageError(
                f"`extra` repeats {_listed(clash)}, which the prompt has a place for.", remedy="Set it there instead."
            )

    @property
    def version(self) -> str:
        """A hash of the whole content: equal prompts have equal versions."""
        return digest(self.to_json())

    @property
    def parameters(self) -> dict[str, Any]:
        """The call parameters that are set, as keyword arguments: everything that is not a message."""
        named = (entry.name for entry in fields(self) if entry.name in PARAMETERS)
        chosen = {name: thaw(getattr(self, name)) for name in named if getattr(self, name) is not None}
        return {**chosen, **thaw(self.extra)}

    def messages(self, conversation: Iterable[Message] = (), /, **variables: object) -> list[Message]:
        """What the call sends: the system prompt, the few-shot turns, the conversation, the user template."""
        assert self.variables is not None
        _refuse_text(conversation)
        self._check(variables)
        head = [{"role": self.role, "content": fill(self.system, variables, self.variables)}] if self.system else []
        tail = [{"role": "user", "content": fill(self.user, variables, self.variables)}] if self.user else []
        return thaw([*head, *self.few_shot, *conversation, *tail])  # type: ignore[no-any-return]

    def request(self, conversation: Iterable[Message] = (), /, **variables: object) -> dict[str, Any]:
        """The keyword arguments of `client.chat.completions.create`, whole."""
        messages = self.messages(conversation, **variables)
        if not messages:
            raise UsageError("The request would hold no message.", remedy="Pass the conversation to request().")
        return {**self.parameters, "messages": messages}

    def with_system(self, system: str) -> ChatPrompt:
        """The same call with another system template, for the same variables; it need not use all of them."""
        assert self.variables is not None
        known = {*self.variables, *slots_of(self.system)}
        if strange := [name for name in slots_of(system) if name not in known]:
            raise UsageError(
                f"The new text has a slot {_listed(strange)} that the prompt does not know.",
                remedy=f"It knows {_listed(self.variables) or 'none'}.",
            )
        return replace(self, system=system)

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads back to an equal prompt; what is unset is left out."""
        content = {entry.name: thaw(getattr(self, entry.name)) for entry in fields(self)}
        return {name: value for name, value in content.items() if value not in (None, {}, []) or name == "variables"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ChatPrompt:
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(
                f"A prompt has no field {_listed(unknown)}.",
                remedy="Put parameters that are not listed in the documentation under `extra`.",
            )
        return cls(**{**data, "variables": tuple(data["variables"])} if data.get("variables") is not None else data)

    def _check(self, given: Mapping[str, object]) -> None:
        assert self.variables is not None
        used = slots_of(self.system) + slots_of(self.user)
        if missing := [name for name in self.variables if name in used and given.get(name) is None]:
            raise MissingVariable(
                f"The prompt needs {_listed(missing)}.", remedy=f"Pass {', '.join(f'{name}=...' for name in missing)}."
            )
        if unknown := [name for name in given if name not in self.variables]:
            near = difflib.get_close_matches(unknown[0], self.variables, n=1)
            known = _listed(self.variables) if self.variables else "none"
            raise UsageError(
                f"The prompt has no variable {_listed(unknown)}.",
                remedy=f"Did you mean {near[0]}?" if near else f"It has {known}.",
            )


PARAMETERS: Final = frozenset(entry.name for entry in fields(ChatPrompt)) - set(_TEXTS)  # others are kept in `extra`
DELIVERY: Final = frozenset({"stream", "stream_options", "n"})  # how a reply is delivered, not what is asked


def slots_of(template: str | None) -> tuple[str, ...]:
    """The names written `{{name}}` in a template, in order of first use."""
    return tuple(dict.fromkeys(_SLOT.findall(template or "")))


def fill(template: str | None, values: Mapping[str, object], names: Iterable[str]) -> str:
    """`template` with each slot among `names` replaced by its value, in one pass; everything else is untouched."""
    slots = frozenset(names)
    return _SLOT.sub(
        lambda slot: str(values[slot.group(1)]) if slot.group(1) in slots else slot.group(0), template or ""
    )


def parts(template: str | None, names: Iterable[str]) -> tuple[str, ...]:
    """`template` as `fill` sees it: constant text and slot name by turns, beginning and ending with a constant."""
    slots, found, start = frozenset(names), [], 0
    for slot in _SLOT.finditer(template or ""):
        if slot.group(1) in slots:
            found += [slot.string[start : slot.start()], slot.group(1)]
            start = slot.end()
    return (*found, (template or "")[start:])


def _refuse_text(conversation: object) -> None:
    # A text is iterable too, and would become a message per letter.
    if isinstance(conversation, str | Mapping):
        raise UsageError("A conversation is a list of messages.", remedy='Pass [{"role": "user", "content": ...}].')


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
