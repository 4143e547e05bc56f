"""Scale: from a verdict as it was written down to a score in [0, 1] where larger is better.

Where the scale comes from, first one that applies: the caller names it; the evaluator that was tracked says it by its
choices; every number seen lies between 0 and 1; else the smallest and largest number seen, which is a guess and is
said (`taken_from == "data"`). A verdict off its scale, or a label without a number, is missing and says so: it is never
squeezed into the range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.exchange import Reading
from dspy_selfimprove.message import thaw
from dspy_selfimprove.sample import Direction, EvalSpec
from dspy_selfimprove.score import Score

TakenFrom: TypeAlias = Literal["caller", "evaluator", "unit", "data", "nothing"]
LONGEST_FEEDBACK: Final = 4_000


@dataclass(frozen=True, slots=True)
class Scale:
    """What numbers a metric's verdicts are written in, and which end is good.

    >>> stars = Scale(1, 5, taken_from="caller")
    >>> stars.score(Reading("s1", "stars", "HUMAN", score=4)).value
    0.75
    >>> Scale(0, 1, "minimize").score(Reading("s1", "toxicity", "LLM", score=1, label="toxic")).value
    0.0
    """

    low: float
    high: float
    direction: Direction = "maximize"
    labels: Mapping[str, float] | None = None
    taken_from: TakenFrom = "unit"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(
                f"A scale from {self.low:g} to {self.high:g} has no length.",
                remedy="Give its lowest and highest value.",
            )

    def score(self, reading: Reading) -> Score:
        """The verdict on this scale; what was written down stays in the details."""
        raw = reading.score
        if raw is None and reading.label is not None and self.labels:
            raw = self.labels.get(reading.label)
        about: dict[str, Any] = {"kind": reading.kind}
        if reading.identifier:
            about["identifier"] = reading.identifier
        if raw is None or not math.isfinite(raw):
            return _missing(reading, "a label without a number" if reading.label else "no number was written", about)
        about["written"] = raw
        if not self.low <= raw <= self.high:
            return _missing(reading, f"the number is outside its scale, {self.low:g} to {self.high:g}", about)
        unit = (raw - self.low) / (self.high - self.low)
        if self.direction == "minimize":
            unit = 1.0 - unit
        return Score(unit, label=reading.label, feedback=_feedback(reading), details=about)


def scale_of(
    readings: Iterable[float], *, spec: EvalSpec | None = None, named: tuple[float, float] | None = None
) -> Scale:
    """The scale of one metric, given every number that was written under its name."""
    direction: Direction = spec.optimization_direction if spec else "maximize"
    labels = {label: value for label, value in spec.choices.items() if value is not None} if spec else {}
    if named is not None:
        low, high = named
        # Written from best to worst, as in (5, 1): then less is better.
        return Scale(min(named), max(named), "minimize" if low > high else direction, labels, "caller")
    if len(set(labels.values())) > 1:
        return Scale(min(labels.values()), max(labels.values()), direction, labels, "evaluator")
    numbers = [number for number in readings if math.isfinite(number)]
    if not numbers:
        return Scale(0.0, 1.0, direction, labels, "nothing")
    low, high = min(numbers), max(numbers)
    if not math.isfinite(high - low):
        return Scale(0.0, 1.0, direction, labels, "nothing")
    if low >= 0.0 and high <= 1.0:
        return Scale(0.0, 1.0, direction, labels, "unit")
    if low == high:  # nothing shows how far it goes
        low, high = min(low, 0.0), max(high, 0.0)
    return Scale(low, high, direction, labels, "data")


def _missing(reading: Reading, reason: str, about: Mapping[str, Any]) -> Score:
    return Score(None, label=reading.label, feedback=_feedback(reading), failure=reason, details=thaw(about))


def _feedback(reading: Reading) -> str:
    text = reading.explanation or ""
    return text if len(text) <= LONGEST_FEEDBACK else f"{text[:LONGEST_FEEDBACK]} ..."
