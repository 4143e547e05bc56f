"""Measures that need no model, as pure functions: an answer in, a Score or a summary out.

    label.py      one of several labels: match, nearness on an ordered scale, sets; precision, recall and F1 over a set
    number.py     numbers found in text: closeness with a tolerance; mean errors over a set
    text.py       wording: exact, normalised, word overlap, longest common sequence, likeness in meaning
    structure.py  form: JSON against a schema, a pattern, tool calls with their arguments
    usage.py      what an answer takes: words, seconds, dollars

`metric_of` knows each measure of one answer by its name (`HOMES`).

All give partial credit where there is such a thing. What an answer lacks (no number in it, no JSON) is the candidate's
own fault and scores low; what the *example* lacks (a reference that holds no number) leaves no verdict. Parameters are
named as `metric_of` finds them in the data: `output`, `expected`, `message`, `reference_message`, `seconds`,
`dollars`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from dspy_selfimprove.score import Score

HOMES: Final = {
    **dict.fromkeys(("match", "graded", "set_f1"), "label"),
    "closeness": "number",
    **dict.fromkeys(("exact", "normalised", "contains", "token_f1", "rouge_l", "likeness"), "text"),
    **dict.fromkeys(("schema", "matches", "tool_calls"), "structure"),
    **dict.fromkeys(("length", "latency", "cost"), "usage"),
}
"""The measures of one answer by name, and the module each is in."""


def measure(name: str) -> Callable[..., Score]:
    """The function of that name."""
    found: Any = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    return found  # type: ignore[no-any-return]
