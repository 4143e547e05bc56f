"""The door to DSPy programs: production's chat completion as a program, and any program as a Candidate.

    chat.py      ChatProgram: a ChatPrompt that DSPy can run, improve, save and give back
    verbatim.py  what makes it verbatim: a signature that keeps its text, an adapter that sends the prompt's own request
    variant.py   read_candidate, apply_candidate: what can vary of any module, read and changed in a copy
    examples.py  example_of a sample, examples_of a program's traces

Names are loaded when first used: DSPy takes a second to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dspy_selfimprove.program.chat import ChatProgram
    from dspy_selfimprove.program.examples import Examples, example_of, examples_of
    from dspy_selfimprove.program.variant import apply_candidate, read_candidate

__all__ = ["ChatProgram", "Examples", "apply_candidate", "example_of", "examples_of", "read_candidate"]

_HOME = {
    "ChatProgram": "chat",
    "read_candidate": "variant",
    "apply_candidate": "variant",
    "Examples": "examples",
    "example_of": "examples",
    "examples_of": "examples",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
