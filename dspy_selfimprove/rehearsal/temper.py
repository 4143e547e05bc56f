"""Temper: how reliable the rehearsal model is in each of its roles.

All of its imperfections are here, so that a test can ask for a model that never errs, or for one that always does.
The defaults are guesses at a decent model of today, made once; nothing was fitted to any.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from dspy_selfimprove.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Temper:
    """Rates, each in [0, 1].

    `worker_reliability` is how often one plainly stated rule is followed when nothing distracts from it. `judge_noise`
    is how often a judge misses what is there or sees what is not, for each criterion; `judge_length_bias` is how often,
    for every hundred words of an answer, its verdict comes out one notch too good. `coach_slip` is how often a proposal
    carries one mistake: a rule nobody asked for, a rule lost, a rule turned round, or one worded so loosely that it
    hardly binds.
    """

    worker_reliability: float = 0.97
    judge_noise: float = 0.03
    judge_length_bias: float = 0.1
    coach_slip: float = 0.15

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not 0.0 <= getattr(self, entry.name) <= 1.0:
                raise UsageError(f"`{entry.name}` is a rate and must lie between 0 and 1.")

    @classmethod
    def perfect(cls) -> Temper:
        """A model that never errs."""
        return cls(worker_reliability=1.0, judge_noise=0.0, judge_length_bias=0.0, coach_slip=0.0)
