"""Score and Scorecard: one verdict, and the verdicts on one example. They know nothing of DSPy.

A score is a value in [0, 1], larger is better, or it is *missing* and says why. Missing is not zero: an outage, a
rate limit or a judge that failed leaves no verdict, and whatever averages or compares must leave it out and count it.
Only the candidate's own fault (an empty answer, a broken form) scores low.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import FrozenDict, freeze, thaw


@dataclass(frozen=True, slots=True)
class Score:
    """One verdict. `feedback` says why, in words a coach can act on; `failure` says why there is none.

    >>> Score(0.5, label="fair", feedback="No time frame is given.").value
    0.5
    >>> Score.missing("the judge timed out").is_missing
    True
    """

    value: float | None
    label: str | None = None
    feedback: str = ""
    failure: str | None = None
    details: Mapping[str, Any] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "details", freeze(self.details))
        if self.value is None:
            if not self.failure:
                raise UsageError("A missing score must say why.", remedy="Use Score.missing(reason).")
            return
        if self.failure:
            raise UsageError("A score has a value or a failure, not both.", remedy="Drop one of the two.")
        value = float(self.value)
        if not math.isfinite(value) or not 0.0 <= value <= 1.0:
            raise UsageError(
                f"A score must lie between 0 and 1, and {value!r} does not.",
                remedy="Scale it, or return Score.missing(reason) if there is no verdict.",
            )
        object.__setattr__(self, "value", value)

    @classmethod
    def missing(cls, reason: str, **details: Any) -> Score:
        """No verdict, and the reason."""
        return cls(value=None, failure=reason or "no reason given", details=details)

    @property
    def is_missing(self) -> bool:
        return self.value is None

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "label": self.label,
            "feedback": self.feedback,
            "failure": self.failure,
            "details": thaw(self.details),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Score:
        return cls(
            value=data["value"],
            label=data.get("label"),
            feedback=data.get("feedback", ""),
            failure=data.get("failure"),
            details=data.get("details", {}),
        )


@dataclass(frozen=True, slots=True)
class Scorecard(Mapping[str, Score]):
    """One example under one candidate: a score per metric, by name.

    >>> card = Scorecard("T0001", {"helpfulness": Score(0.75), "brevity": Score.missing("429")})
    >>> card["helpfulness"].value, card.missing
    (0.75, ('brevity',))
    >>> card.row(("helpfulness", "brevity"))
    (0.75, nan)
    """

    example: str
    scores: Mapping[str, Score]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", FrozenDict(self.scores))

    def __getitem__(self, metric: str) -> Score:
        return self.scores[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def row(self, metrics: tuple[str, ...]) -> tuple[float, ...]:
        """The values in the order of `metrics`, NaN where there is no verdict: one row of a score matrix."""
        values = (self.scores[metric].value if metric in self.scores else None for metric in metrics)
        return tuple(math.nan if value is None else value for value in values)

    @property
    def missing(self) -> tuple[str, ...]:
        """The metrics without a verdict."""
        return tuple(name for name, score in self.scores.items() if score.is_missing)

    def to_json(self) -> dict[str, Any]:
        return {"example": self.example, "scores": {name: score.to_json() for name, score in self.scores.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scorecard:
        return cls(data["example"], {name: Score.from_json(score) for name, score in data["scores"].items()})
