"""Preference: what is wanted of several metrics at once, and what that makes of one answer's values: a reward.

A metric's place in a preference is its `Goal`: a *weight* beside the others, a *priority* (1 comes first; what comes
later only decides between answers that are alike in what comes first), and a floor it must hold (`at_least`).

The reward is one number in [0, 1] for optimizers that know only numbers. It never falls when a value rises, and it is
shaped, so that a step in the right direction counts before the goal is reached:

    every floor holds     the quality, from 1/2 up if there are floors
    one of them does not  below 1/2: three parts how near the floors are, one part the quality

The *quality* is the weighted mean; with several priorities each level is read in twentieths, and one twentieth of an
earlier level outweighs all that comes after it. Without a value for something that is wanted there is no reward (None):
a missing verdict is not a zero.

On the means of a whole set the floors, the weights and a front belong to `pareto.choose`; a mean of rewards is not the
reward of the means. Not covered: interactions between metrics, and values that are not in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import FrozenDict

STEPS: Final = 20  # how finely an earlier priority is read
LATER: Final = 0.9  # of one such step: what all later priorities together can add
LEAST: Final = 0.05  # shortfall that every metric keeps, so that one that is perfect today is not given up


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted of one metric.

    >>> Goal(at_least=0.75)
    Goal(weight=1.0, priority=1, at_least=0.75)
    """

    weight: float = 1.0
    priority: int = 1
    at_least: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.weight) or not math.isfinite(self.weight) or self.weight < 0:
            raise UsageError(
                "A weight must be a number, zero or more.",
                remedy='Use direction="minimize" for what should be small, and 0 for what is only looked at.',
            )
        if isinstance(self.priority, bool) or not isinstance(self.priority, int) or self.priority < 1:
            raise UsageError(
                "A priority must be a whole number from 1 on.", remedy="1 comes first; give ties one number."
            )
        if self.at_least is not None and not (_is_number(self.at_least) and 0 < self.at_least <= 1):
            raise UsageError(
                f"A floor of {self.at_least!r} is not above 0 and at most 1.",
                remedy="Scores lie between 0 and 1 and larger is better, also where the metric counts something bad.",
            )


@dataclass(frozen=True, slots=True)
class Preference(Mapping[str, Goal]):
    """The goals by metric.

    >>> wanted = Preference({"helpfulness": Goal(weight=2), "compliance": Goal(at_least=0.75)})
    >>> wanted.reward({"helpfulness": 1.0, "compliance": 0.7}) < 0.5
    True
    >>> wanted.reward({"helpfulness": 0.1, "compliance": 0.8}) > 0.5
    True
    >>> wanted.reward({"helpfulness": None, "compliance": 1.0}) is None
    True
    """

    goals: Mapping[str, Goal] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "goals", FrozenDict(self.goals))
        if not any(goal.weight for goal in self.goals.values()):
            raise UsageError("Nothing is wanted: no metric has a weight.", remedy="Give one of them a weight above 0.")

    def __getitem__(self, metric: str) -> Goal:
        return self.goals[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.goals)

    def __len__(self) -> int:
        return len(self.goals)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The metrics that count: those with a weight or a floor."""
        return tuple(name for name, goal in self.goals.items() if goal.weight or goal.at_least is not None)

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order of the metrics, as `pareto.choose` takes them."""
        return tuple(goal.weight for goal in self.goals.values())

    @property
    def floors(self) -> dict[int, float]:
        """By place in the order of the metrics, as `pareto.choose` takes them."""
        goals = enumerate(self.goals.values())
        return {place: goal.at_least for place, goal in goals if goal.at_least is not None}

    def quality(self, values: Mapping[str, float | None]) -> float | None:
        """How good the values are by weight and priority, floors aside; None if one that has a weight is missing."""
        levels = []
        for level in sorted({goal.priority for goal in self.goals.values() if goal.weight}):
            total = weight = 0.0
            for name, goal in self.goals.items():
                if goal.priority == level and goal.weight:
                    if (value := _value(values, name)) is None:
                        return None
                    total, weight = total + goal.weight * value, weight + goal.weight
            levels.append(min(1.0, total / weight))
        *earlier, quality = levels
        for level_quality in reversed(earlier):
            # The tiny addition: a mean that is a twentieth but for rounding counts as one.
            steps = math.floor(level_quality * STEPS + 1e-9)
            quality = (steps + LATER * quality) / (STEPS + LATER)
        return quality

    def reward(self, values: Mapping[str, float | None]) -> float | None:
        """One number in [0, 1] for one answer's values; None if one that counts is missing."""
        quality = self.quality(values)
        near = []
        for name, goal in self.goals.items():
            if goal.at_least is not None:
                if (value := _value(values, name)) is None:
                    return None
                near.append(min(1.0, value / goal.at_least))
        if quality is None or not near:
            return quality
        progress = math.fsum(near) / len(near)
        if min(near) < 1.0:
            return min(0.5 * (0.75 * progress + 0.25 * quality), math.nextafter(0.5, 0.0))
        return 0.5 + 0.5 * quality

    def following(self, means: Mapping[str, float | None]) -> Preference:
        """The same preference with its weights turned towards what falls short most.

        `means` are the metrics' means in production. Each weight is multiplied by how far its mean is from 1, and all
        are brought back to their former sum; a metric nobody measured counts as the average of those measured.
        """
        short = {name: 1.0 - value for name in self.goals if (value := _value(means, name)) is not None}
        if not short:
            raise UsageError(
                "No metric has a mean in production, so no weight can follow it.",
                remedy="Judge the samples by these metrics first, or give the weights yourself.",
            )
        usual = math.fsum(short.values()) / len(short)
        bent = {name: goal.weight * max(LEAST, short.get(name, usual)) for name, goal in self.goals.items()}
        scale = math.fsum(self.weights) / math.fsum(bent.values())
        return Preference({name: replace(goal, weight=bent[name] * scale) for name, goal in self.goals.items()})


def _value(values: Mapping[str, float | None], name: str) -> float | None:
    value = values.get(name)
    if value is None or math.isnan(value):
        return None
    if not 0.0 <= value <= 1.0:
        raise UsageError(
            f"The value of {name!r} is not between 0 and 1.", remedy="Give scores, where larger is better."
        )
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
