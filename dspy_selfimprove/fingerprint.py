"""Fingerprint: what decides the result of a piece of Python, as data that can be hashed, as far as it can be known.

A function is its source (its byte code where that says more), its defaults and what it closes over; an object of the
user's own is its class and its state; a bound method is both; a DSPy module is what it would save. Data is itself. Two
things that differ in none of this are taken for the same, and what was kept for one is used for the other.

Not covered: globals that a function reads, files, other functions it calls, and the state of a library's object, which
changes as it works (a client, a pool). A thing whose own state changes is to be read once, before it does.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, Final

from dspy_selfimprove.message import digest

_DEEPEST: Final = 4
# What objects gather while they work, and what no two processes share.
_PASSING: Final = re.compile(r"_?(?:history|callbacks|cache\w*|lock|stage|compiled|count\w*|calls|lm|train|traces)")


def fingerprint(value: Any, *, depth: int = _DEEPEST) -> Any:
    """`value` as strict JSON that is equal for what can be told to do the same.

    >>> fingerprint(lambda n, most=3: n < most) == fingerprint(lambda n, most=4: n < most)
    False
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, re.Pattern):
        return ["pattern", value.pattern, value.flags]
    if isinstance(value, type):
        return ["class", value.__module__, value.__qualname__, _source(value)]
    if depth <= 0:
        return [type(value).__qualname__]
    below = functools.partial(fingerprint, depth=depth - 1)
    if isinstance(value, Mapping):
        return {str(name): below(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [below(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((below(item) for item in value), key=repr)
    if isinstance(value, functools.partial):
        return ["partial", below(value.func), below(value.args), below(value.keywords)]
    if inspect.ismethod(value):
        return ["method", below(value.__func__), below(value.__self__)]
    if inspect.isroutine(value):
        return _function(value, below)
    return ["object", fingerprint(type(value)), *_state(value, below)]


def _function(function: Any, below: Callable[[Any], Any]) -> list[Any]:
    function = inspect.unwrap(function)
    cells = [_content(cell, below) for cell in getattr(function, "__closure__", None) or ()]
    defaults = [below(getattr(function, name, None)) for name in ("__defaults__", "__kwdefaults__")]
    where = [str(getattr(function, name, "")) for name in ("__module__", "__qualname__")]
    code = _code(getattr(function, "__code__", None))
    # Several lambdas can share the line that is their source.
    return ["function", *where, code if "<lambda>" in where[1] else _source(function) or code, cells, defaults]


def _content(cell: Any, below: Callable[[Any], Any]) -> Any:
    try:
        return below(cell.cell_contents)
    except ValueError:  # empty still
        return None


def _state(value: Any, below: Callable[[Any], Any]) -> list[Any]:
    if callable(getattr(value, "tobytes", None)):  # an array, a tensor
        return [digest(value.tobytes().hex()), str(getattr(value, "shape", ""))]
    saved = getattr(value, "dump_state", None)
    if callable(saved):
        own = {name: each for name, each in vars(value).items() if isinstance(each, str | bool | int | float)}
        return [_without(saved()), _without(own)]
    if not _is_users(type(value)):
        return []
    names = [*getattr(value, "__dict__", {}), *(name for kind in type(value).__mro__ for name in _slots(kind))]
    return [
        {name: below(getattr(value, name)) for name in names if not _PASSING.fullmatch(name) and hasattr(value, name)}
    ]


def _without(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is no passing state; of what DSPy saves, all but its models and what it was trained on."""
    kept = {name: each for name, each in state.items() if not _PASSING.fullmatch(str(name))}
    return {name: _without(each) if isinstance(each, Mapping) else fingerprint(each) for name, each in kept.items()}


def _is_users(kind: type) -> bool:
    """Whether a class is the user's own: neither installed nor Python's."""
    top = kind.__module__.partition(".")[0]
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    installed = any(each in file for each in ("site-packages", "dist-packages"))
    return not (top in sys.stdlib_module_names - {"__main__"} or top == "dspy_selfimprove" or installed)


def _slots(kind: type) -> tuple[str, ...]:
    said = kind.__dict__.get("__slots__", ())
    names = (said,) if isinstance(said, str) else tuple(said)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # built in, or typed at a prompt
        return ""


def _code(code: CodeType | None) -> Any:
    if code is None:
        return ""
    constants = [_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]
