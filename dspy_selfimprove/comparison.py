"""Comparison: what changes from one evaluation to another, example by example.

    print(compare(before, after))     better, worse or not shown, for each metric; in a notebook, just name it

Both are of the same examples, so what counts is the difference on each: how hard an example is falls out, and far
fewer examples show a change than two separate means would need. "Better" means that the whole 95 % interval of the mean
difference lies above `least` (0 unless given), "worse" that it lies below minus that, "not shown" anything else: also
that both are alike, and that there are too few examples to tell.

The interval knows the judge's noise only from the differences it saw, and a few may lie close together by chance. What
a calibration found out about the judge beforehand can be the `least` of its metric. That counts the noise twice, so it
errs towards "not shown".

Scores of two versions of a metric are two rulers, and are refused. Examples that only one of the two has are left out,
and counted; so are pairs of which a verdict is missing. A metric that is indecisive in either shows nothing.

Not covered: several metrics at once (each is 95 % sure by itself: of twenty that did not change, one will seem to), and
a candidate that was chosen because it was best on these very examples: compare on others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.evaluation import Evaluation, Outcome, said
from dspy_selfimprove.message import FrozenDict
from dspy_selfimprove.statistics import DIFFERENCES, Estimate, Floats, estimate_difference, estimate_population
from dspy_selfimprove.table import Bar, Cell, Content, Table, Tabled, scale

if TYPE_CHECKING:
    import pandas as pd

Verdict: TypeAlias = Literal["better", "worse", "not shown"]

HALF = 0.5  # where a score flips, for a metric without a floor


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric: the mean of after minus before, and what it shows. `production` weighs examples as production has
    them, where they do not all weigh the same, and then decides."""

    metric: str
    before: float
    after: float
    mean: Estimate
    production: Estimate | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Flip:
    """An example that crossed a metric's floor, or one half if it has none."""

    id: str
    metric: str
    before: float
    after: float
    output_before: str = field(repr=False)
    output_after: str = field(repr=False)

    @property
    def is_gain(self) -> bool:
        return self.after > self.before


@dataclass(frozen=True, repr=False)
class Comparison(Tabled):
    """What changes from `before` to `after`, on the examples that both have. Made by `compare()`."""

    before: Evaluation
    after: Evaluation
    least: float | Mapping[str, float] = 0.0
    pairs: tuple[tuple[Outcome, Outcome], ...] = ()
    names: tuple[str, ...] = ()

    @functools.cached_property
    def differences(self) -> Mapping[str, Difference]:
        """By metric."""
        return {name: self.difference(name) for name in self.names}

    def __getitem__(self, metric: str) -> Difference:
        """A metric's difference."""
        if metric not in self.names:
            raise UsageError(f"There is no metric {metric!r} in both.", remedy=f"There is {', '.join(self.names)}.")
        return self.differences[metric]

    def values(self, metric: str) -> tuple[Floats, Floats]:
        """A metric's values before and after, pair by pair; NaN where one is missing."""
        rows = [[outcome.scores.row((metric,))[0] for outcome in pair] for pair in self.pairs]
        table = np.array(rows, dtype=np.float64)
        return table[:, 0], table[:, 1]

    @functools.cached_property
    def weights(self) -> tuple[list[float], list[int | str | None] | None]:
        """What each pair stands for in production, and the strata it was drawn from, where they are known."""
        clusters = [outcome.cluster for _, outcome in self.pairs]
        return [outcome.weight for _, outcome in self.pairs], None if None in clusters else clusters

    def difference(self, metric: str, *, level: float = 0.95) -> Difference:
        """A metric's difference with intervals of another level; its verdict is read from them."""
        before, after = self.values(metric)
        mean, production = estimate_difference(after, before, level=level), None
        weights, strata = self.weights
        if len(set(weights)) > 1:
            production = estimate_population(after - before, weights, strata=strata, bounds=DIFFERENCES, level=level)
        seen = ~np.isnan(before) & ~np.isnan(after)
        means = (float(before[seen].mean()), float(after[seen].mean())) if seen.any() else (math.nan, math.nan)
        return Difference(metric, *means, mean, production, self._verdict(metric, production or mean))

    def _verdict(self, metric: str, difference: Estimate) -> Verdict:
        if metric in self.indecisive:
            return "not shown"
        least = self._least(metric)
        if difference.low > least:
            return "better"
        return "worse" if difference.high < -least else "not shown"

    def _least(self, metric: str) -> float:
        return self.least.get(metric, 0.0) if isinstance(self.least, Mapping) else self.least

    @property
    def indecisive(self) -> tuple[str, ...]:
        """The metrics of which either evaluation lacks too many verdicts."""
        lacking = {*self.before.indecisive, *self.after.indecisive}
        return tuple(name for name in self.names if name in lacking)

    @functools.cached_property
    def flips(self) -> tuple[Flip, ...]:
        """The examples that flipped, both ways, the largest changes first."""
        floors = {each.name: each.at_least for each in self.after.metrics}
        found = []
        for name in self.names:
            floor = HALF if floors[name] is None else floors[name]
            for (old, new), before, after in zip(self.pairs, *self.values(name), strict=True):
                if not math.isnan(before + after) and (before >= floor) != (after >= floor):
                    found.append(Flip(old.id, name, float(before), float(after), old.output, new.output))
        return tuple(sorted(found, key=lambda flip: (-abs(flip.after - flip.before), flip.metric, flip.id)))

    def to_frame(self) -> pd.DataFrame:
        """A row per example and metric: the score before and after, their difference, and both answers."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for name in self.names:
            for (old, new), before, after in zip(self.pairs, *self.values(name), strict=True):
                row = {"example": old.id, "metric": name, "before": before, "after": after, "change": after - before}
                rows.append({**row, "weight": new.weight, "output before": old.output, "output after": new.output})
        return pd.DataFrame(rows).set_index(["metric", "example"])

    def table(self) -> Table:
        """The differences as a table for a terminal or a page."""
        meaning = {"better": "good", "worse": "bad", "not shown": "weak"}
        rows: list[Sequence[Content]] = []
        for name, each in self.differences.items():
            verdict = Cell(each.verdict, meaning[each.verdict])
            if name in self.indecisive:
                rows.append([name, "", Cell("indecisive", "bad"), "", verdict, ""])
                continue
            gains = sum(flip.is_gain for flip in self.flips if flip.metric == name)
            losses = sum(not flip.is_gain for flip in self.flips if flip.metric == name)
            flipped = f"+{gains} -{losses}"
            first = Cell("", "weak") if each.production else verdict
            rows.append(
                [
                    name,
                    f"{each.before:.3f}→{each.after:.3f}",
                    said(each.mean),
                    difference_bar(each.mean),
                    first,
                    flipped,
                ]
            )
            if each.production:
                there = each.production
                rows.append([Cell("  production", "weak"), "", said(there), difference_bar(there), verdict, ""])
        title = f"Comparison on {len(self.pairs):,} examples"
        columns = ("metric", "mean", "difference [95 %]", scale(-1.0, 1.0), "", "flips")
        return Table(title, columns, tuple(rows), tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        for which, side in (("before", self.before), ("after", self.after)):
            if alone := len(side.outcomes) - len(self.pairs):
                yield f"{alone:,} examples that only {which} has are left out."
            if only := [name for name in side.names if name not in self.names]:
                yield f"Only {which} was measured by {', '.join(only)}."
        for name, each in self.differences.items():
            if each.mean.missing:
                yield f"{name}: {each.mean.missing:,} pairs lack a verdict and are left out."
        if isinstance(self.least, Mapping):
            yield from (f"{name}: a difference counts from {least:.3g} on." for name, least in self.least.items())
        elif self.least:
            yield f"A difference counts from {self.least:g} on."

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {each.verdict}" for name, each in self.differences.items())
        return f"<Comparison on {len(self.pairs)} examples: {shown}>"


def compare(before: Evaluation, after: Evaluation, *, least: float | Mapping[str, float] = 0.0) -> Comparison:
    """What changes from `before` to `after`, and whether that is shown. `least` is the smallest change that matters:
    of every metric, or of each by its name.

    >>> from dspy_selfimprove.evaluation import Measured
    >>> from dspy_selfimprove.rollout import Rollout
    >>> from dspy_selfimprove.score import Score, Scorecard
    >>> def evaluation(value):
    ...     cards = [Scorecard(f"T{n}", {"exact": Score(value)}) for n in range(20)]
    ...     rows = [Outcome(card.example, "", {}, {}, (Rollout(0, {"output": "."}),), (card,)) for card in cards]
    ...     return Evaluation(tuple(rows), (Measured("exact", "1"),), planned=20)
    >>> found = compare(evaluation(0.25), evaluation(0.75))
    >>> found["exact"].verdict, found["exact"].mean.value, len(found.flips)
    ('better', 0.5, 20)

    With the calibration of a judge, a difference must be more than its noise can make of so many examples:

    >>> from dspy_selfimprove.calibration import check
    >>> from dspy_selfimprove.metric import metric_of
    >>> shaky = metric_of(lambda output, repeat=iter(range(99)): next(repeat) % 2, name="exact")
    >>> judge = check(shaky, [{"output": "."}] * 3, show=False)
    >>> round(judge.believable(20, spread=0), 2)
    0.36
    >>> compare(evaluation(0.25), evaluation(0.5), least={"exact": judge.believable(20, spread=0)})["exact"].verdict
    'not shown'
    """
    each_least = least.values() if isinstance(least, Mapping) else [least]
    if any(not 0 <= each < 1 for each in each_least):
        raise UsageError("The smallest change that matters is a share of the scale.", remedy="Say 0.02, for instance.")
    versions = {each.name: each.version for each in before.metrics}
    names = tuple(each.name for each in after.metrics if each.name in versions)
    if not names:
        raise UsageError("The two evaluations have no metric in common.", remedy="Evaluate both by the same metrics.")
    if changed := [each.name for each in after.metrics if versions.get(each.name, each.version) != each.version]:
        raise UsageError(
            f"The metric {changed[0]!r} has changed between the two evaluations, so its scores cannot be compared.",
            remedy="Evaluate the earlier one again by the metric as it is now.",
        )
    if isinstance(least, Mapping):
        if strange := [name for name in least if name not in names]:
            raise UsageError(f"There is no metric {strange[0]!r} in both.", remedy=f"There is {', '.join(names)}.")
        least = FrozenDict(least)
    known = {outcome.id: outcome for outcome in before.outcomes}
    pairs = tuple((known[outcome.id], outcome) for outcome in after.outcomes if outcome.id in known)
    if not pairs:
        raise UsageError("The two evaluations have no example in common.", remedy="Evaluate both on the same examples.")
    if differing := sum(old.fingerprint != new.fingerprint for old, new in pairs):
        raise UsageError(
            f"{differing} examples have the same id in both evaluations, and another content.",
            remedy="Evaluate both on the same examples.",
        )
    return Comparison(before, after, least, pairs, names)


def difference_bar(difference: Estimate) -> Bar:
    """A difference on its scale, with no difference marked."""
    return Bar(difference.value, difference.low, difference.high, -1.0, 1.0, mark=0.0)
