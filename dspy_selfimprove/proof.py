"""Proof: is the chosen program better than the baseline, on examples that nothing was chosen by?

    proof = prove_on(dataset, baseline, winner, metrics, journal=journal)     opens the sealed test, once
    proof = prove(before, after, min_improvement={"helpfulness": 0.03})       of two evaluations that are there

*Improved* means three things at once: of at least one metric the whole interval of the difference lies above its
`min_improvement`; of none it lies below minus its `tolerance`; and every floor is held. In all other cases the answer
is "keep what you have": `proof.chosen` is the baseline. One metric better and another worse proves nothing.

Several metrics are several chances to be lucky. The intervals are therefore simultaneous: with m metrics each is made
at the level 1 - .05 / m (Bonferroni's correction, which holds however the metrics hang together), so that all of them
hold at once with 95 %. Metrics that are indecisive are not tested and do not count in m. Where the examples weigh
differently, the estimate for production decides.

Simulated with 60 examples and three metrics: of 400 runs of pure noise 3 to 5 declared an improvement on any of them,
6 with unequal weights. A gain of twice what can just be told from chance (`Calibration.believable`) was found in .86 of
the runs for a score in quarters and in .94 for all or nothing, but in .16 to .78 for a smooth score whose differences
spread by .1 to .2 only: the intervals suppose that a rare, large loss may not have been seen yet, which costs most
there. With 200 examples it is .68 to .90.

Not covered: a test that is opened again and again (the seal counts, and the proof says so, but no interval here is made
wider for it); a loss that the examples are too few to show: "not shown" is no proof of no harm, and the interval says
how large a loss could be; dependence between examples (statistics.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

from dspy_selfimprove.comparison import Comparison, compare, difference_bar
from dspy_selfimprove.dataset import Dataset, load
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.evaluation import Evaluation, Measured, evaluate, said
from dspy_selfimprove.message import digest
from dspy_selfimprove.preference import Goal, Preference
from dspy_selfimprove.rollout import Subject, questions
from dspy_selfimprove.seal import Opened, open_test
from dspy_selfimprove.statistics import (
    DIFFERENCES,
    Estimate,
    Floats,
    estimate_mean,
    estimate_population,
)
from dspy_selfimprove.table import Cell, Content, Table, Tabled, scale

if TYPE_CHECKING:
    import dspy

    from dspy_selfimprove.journal import Journal
    from dspy_selfimprove.metric import Metric, Metrics

Verdict: TypeAlias = Literal["improved", "not shown", "worse"]
Floor: TypeAlias = Literal["holds", "open", "below", "unknown"]

FORMAT: Final = 1
LEVEL: Final = 0.95
PURPOSE: Final = "final proof"
FIRST: Final = "first use"
_FOLDS, _REPEATS = 5, 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One metric: what changed from the baseline to the winner, and what that shows.

    `difference` and `production` are at the level that makes all metrics hold at once. `expected` is what the search
    had led to expect, with the luck of the choice taken off where `expect` made it. `floor` is the metric's, if it has
    one, and `held` whether the winner holds it: `open` where its mean does, and its interval reaches below.
    """

    metric: str
    before: float
    after: float
    difference: Estimate
    verdict: Verdict
    production: Estimate | None = None
    expected: Estimate | None = None
    min_improvement: float = 0.0
    tolerance: float = 0.0
    floor: float | None = None
    held: Floor | None = None
    decides: bool = True
    indecisive: bool = False

    @property
    def deciding(self) -> Estimate:
        """The estimate that the verdict rests on."""
        return self.production or self.difference


class Terms(TypedDict, total=False):
    """What counts as better; see `prove`."""

    min_improvement: Mapping[str, float] | float
    tolerance: Mapping[str, float] | float
    preference: Preference | None
    validation: Comparison | Mapping[str, Estimate] | None


@dataclass(frozen=True, repr=False)
class Proof(Tabled):
    """What the last step found. Made by `prove` and `prove_on`. `before` and `after` are the ids of two candidates.

    `standing` says of the test how often it had been opened, where `prove_on` opened it.

    >>> shown = Finding("exact", 0.25, 0.5, Estimate(0.25, 0.2, 0.3, 0.95, 40), "improved")
    >>> Proof((shown,), examples=40, level=0.95, before="old", after="new").chosen
    'new'
    """

    findings: tuple[Finding, ...]
    examples: int
    level: float
    before: str | None = None
    after: str | None = None
    standing: str = ""
    left_out: int = 0
    stopped: tuple[str, ...] = ()

    @functools.cached_property
    def verdict(self) -> Verdict:
        """Of all metrics together."""
        deciding = [each for each in self.findings if each.decides]
        better = any(each.verdict == "improved" for each in deciding)
        worse = any(each.verdict == "worse" for each in deciding)
        if better and not worse and not self.unheld:
            return "improved"
        return "worse" if worse and not better else "not shown"

    @property
    def improved(self) -> bool:
        return self.verdict == "improved"

    @property
    def chosen(self) -> str | None:
        """The id of the candidate to run from now on: the winner if it improved, else the baseline."""
        return self.after if self.improved else self.before

    @property
    def unheld(self) -> tuple[str, ...]:
        """The metrics whose floor the winner does not hold, or is not known to."""
        return tuple(each.metric for each in self.findings if each.held in ("below", "unknown"))

    def __getitem__(self, metric: str) -> Finding:
        for each in self.findings:
            if each.metric == metric:
                return each
        raise UsageError(
            f"There is no metric {metric!r} in the proof.",
            remedy=f"There is {', '.join(each.metric for each in self.findings)}.",
        )

    # To look at.

    def table(self) -> Table:
        """The findings as a table for a terminal or a page."""
        floors = any(each.floor is not None for each in self.findings)
        expected = any(each.expected is not None for each in self.findings)
        head = ("metric", "mean", f"difference [{100 * self.level:.1f} %]", scale(-1.0, 1.0), "")
        columns = (*head, *(["floor"] if floors else []), *(["search expected"] if expected else []))
        rows = [row for each in self.findings for row in _rows(each, floors, expected)]
        answer = {
            "improved": "the winner is better: ship it",
            "worse": "the winner is worse: keep your prompt",
            "not shown": "no improvement is shown: keep your prompt",
        }[self.verdict]
        title = f"Proof on {self.examples:,} examples: {answer}"
        return Table(title, columns, tuple(rows), tuple(self._notes()), tuple(self._foot()))

    def _notes(self) -> Iterator[str]:
        if self.standing and self.standing != FIRST:
            yield f"The test is {self.standing}, so the intervals promise less than they say."
        for reason in self.stopped:
            yield f"An evaluation ended early: {reason}."
        if self.left_out:
            yield f"{self.left_out:,} examples that only one of the two has are left out."
        for each in self.findings:
            if each.indecisive:
                yield f"{each.metric}: too many verdicts are missing, so it shows nothing, for better or worse."
            elif each.difference.missing:
                yield f"{each.metric}: {each.difference.missing:,} pairs lack a verdict and are left out."
            if each.held == "below":
                also = (
                    "" if math.isnan(each.before) or each.floor is None or each.before >= each.floor else ", as before"
                )
                yield f"{each.metric}: the mean lies below the floor of {each.floor:g}{also}."
            if each.held == "unknown":
                yield f"{each.metric}: whether its floor of {each.floor:g} holds cannot be said."
        if any(each.verdict == "improved" for each in self.findings if each.decides) and not self.improved:
            against = [each.metric for each in self.findings if each.decides and each.verdict == "worse"]
            yield f"What got better does not count beside {', '.join(dict.fromkeys((*against, *self.unheld)))}."

    def _foot(self) -> Iterator[str]:
        tested = sum(not each.indecisive for each in self.findings)
        if tested > 1:
            yield f"All {tested} intervals hold at once with {100 * LEVEL:g} % (Bonferroni)."
        for each in self.findings:
            if each.min_improvement:
                yield f"{each.metric}: an improvement counts from {each.min_improvement:g} on."
        if self.standing == FIRST:
            yield "This is the first use of the test."

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.metric} {each.verdict}" for each in self.findings)
        return f"<Proof on {self.examples} examples: {self.verdict} ({shown})>"

    # To keep.

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads back; a value that is not known is null."""
        data: dict[str, Any] = _nulled({"format": FORMAT, **asdict(self)})
        return {**data, "verdict": self.verdict, "chosen": self.chosen}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Proof:
        known = {entry.name: data[entry.name] for entry in fields(cls) if entry.name in data}
        made = {"findings": tuple(map(_finding, data["findings"])), "stopped": tuple(data.get("stopped") or ())}
        return cls(**{**known, **made})


def prove(
    before: Evaluation,
    after: Evaluation,
    *,
    metrics: Sequence[str] | None = None,
    standing: str = "",
    **terms: Unpack[Terms],
) -> Proof:
    """Whether `after` is better than `before`, both on the same examples, which the choice never saw.

    `min_improvement` is the gain from which on a metric counts as improved, `tolerance` the loss up to which it does
    not count as worse: one number for all, or some metrics' own. A `preference` replaces the metrics' own weights and
    floors; a metric without either is reported and decides nothing. `validation` is what the search led to expect: what
    `expect` makes of its scores, or a plain comparison, which is too good where the winner was chosen by it. `metrics`
    leaves out the others.

    >>> from dspy_selfimprove.evaluation import Outcome
    >>> from dspy_selfimprove.rollout import Rollout
    >>> from dspy_selfimprove.score import Score, Scorecard
    >>> def evaluation(value, name):
    ...     cards = [Scorecard(f"T{n}", {"exact": Score(value)}) for n in range(40)]
    ...     rows = [Outcome(card.example, "", {}, {}, (Rollout(0, {"output": "."}),), (card,)) for card in cards]
    ...     return Evaluation(tuple(rows), (Measured("exact", "1"),), planned=40, candidate=name)
    >>> old, new = evaluation(0.25, "old"), evaluation(0.5, "new")
    >>> prove(old, new).verdict, prove(old, new).chosen
    ('improved', 'new')
    >>> prove(old, new, min_improvement=0.4).verdict, prove(old, new, min_improvement=0.4).chosen
    ('not shown', 'old')
    """
    found = compare(before, after)
    measured = {each.name: each for each in after.metrics if each.name in found.names}
    if metrics is not None:
        if unknown := [name for name in metrics if name not in measured]:
            raise UsageError(f"There is no metric {unknown[0]!r} in both.", remedy=f"There is {', '.join(measured)}.")
        measured = {name: measured[name] for name in dict.fromkeys(metrics)}
    least = _by_metric(terms.get("min_improvement", 0.0), measured, "min_improvement")
    most = _by_metric(terms.get("tolerance", 0.0), measured, "tolerance")
    goals = _goals(measured, terms.get("preference"))
    validation = terms.get("validation")
    if isinstance(validation, Comparison):
        validation = {name: each.production or each.mean for name, each in validation.differences.items()}
    tested = [name for name in measured if name not in found.indecisive]
    level = 1.0 - (1.0 - LEVEL) / max(1, len(tested))
    findings = []
    for name in measured:
        decides = measured[name].direction != "neutral" and (goals[name].weight > 0 or goals[name].at_least is not None)
        findings.append(
            _found(
                found,
                name,
                level,
                min_improvement=least[name],
                tolerance=most[name],
                floor=goals[name].at_least,
                decides=decides,
                expected=(validation or {}).get(name),
            )
        )
    return Proof(
        findings=tuple(findings),
        examples=len(found.pairs),
        level=level,
        before=before.candidate,
        after=after.candidate,
        standing=standing,
        left_out=len(before.outcomes) + len(after.outcomes) - 2 * len(found.pairs),
        stopped=tuple(each.stopped for each in (before, after) if each.stopped),
    )


def prove_on(
    dataset: Dataset | str | Path,
    baseline: dspy.Module,
    winner: dspy.Module,
    metrics: Metrics | Metric | Sequence[Any],
    *,
    journal: Journal | None = None,
    repeats: int = 1,
    show: bool = True,
    **terms: Unpack[Terms],
) -> Proof:
    """Open the sealed test, once for both; run both programs on it; say what that proves.

    The opening is written down before a row is read, and it counts whatever comes of it. What could be known to fail
    before is refused before: two programs that are one, a test without rows, examples that do not fit. With a journal
    the same proof is not made twice: one that is finished is read, and one that was cut short goes on in a new opening,
    which is the same use as long as nobody else has opened the test.
    """
    dataset = dataset if isinstance(dataset, Dataset) else load(dataset)
    subjects = [Subject(program) for program in (baseline, winner)]
    versions = [subject.version for subject in subjects]
    if versions[0] == versions[1]:
        raise UsageError(
            "The winner is the baseline, so there is nothing to prove.",
            remedy="Leave the test sealed; keep your prompt.",
        )
    if not dataset.sizes["test"]:
        raise UsageError("The dataset has no test.", remedy="Give split(...) a share for it, or more samples.")
    measures = _metrics(metrics)
    for subject in subjects:
        for question in questions(dataset.validation or dataset.train):
            subject.check(question, measures)
    known = {each.name: each for each in measures}
    least = _by_metric(terms.get("min_improvement", 0.0), known, "min_improvement")
    most = _by_metric(terms.get("tolerance", 0.0), known, "tolerance")
    goals = _goals(known, terms.get("preference"))
    about = [dataset.name, dataset.card["splits"]["test"]["sha256"], *versions, repeats]
    about += [
        [each.name, each.version, least[each.name], most[each.name], asdict(goals[each.name])] for each in measures
    ]
    key = digest(about, 32)
    if journal is not None:
        if (made := journal.get("proof", key)) is not None:
            return Proof.from_json(made)
        journal.append("proving", key, {"dataset": dataset.name})
    opened = open_test(dataset, purpose=PURPOSE, journal=journal)
    before, after = (
        evaluate(program, opened.samples, measures, repeats=repeats, journal=journal, show=show)
        for program in (baseline, winner)
    )
    proof = prove(before, after, standing=_standing(opened, dataset, journal), **terms)
    if journal is not None and not proof.stopped:
        journal.append("proof", key, proof.to_json())
    return proof


def _metrics(metrics: Metrics | Metric | Sequence[Any]) -> Metrics:
    from dspy_selfimprove.metric import Metric, Metrics, metric_of

    if isinstance(metrics, Metrics):
        return metrics
    several = metrics if isinstance(metrics, list | tuple) else [metrics]
    return Metrics(each if isinstance(each, Metric) else metric_of(each) for each in several)


def _standing(opened: Opened, dataset: Dataset, journal: Journal | None) -> str:
    """What the opening is worth. A run that was killed and begins its one proof again has not chosen by the test."""
    if opened.first or journal is None:
        return opened.standing
    own = sum(entry.data["dataset"] == dataset.name for entry in journal.entries("opening"))
    begun = sum(entry.data["dataset"] == dataset.name for entry in journal.entries("proving"))
    return FIRST if begun == 1 and own == opened.number else opened.standing


def expect(
    scores: Mapping[str, ArrayLike], *, baseline: int = 0, preference: Preference | None = None, seed: int = 0
) -> dict[str, Estimate]:
    """The gain over the baseline that the best of several candidates promises, with the luck of the choice taken off.

    `scores` has, for each metric, a row per validation example and a column per candidate, NaN where there is none; a
    column is the `baseline`. The best is the one of highest quality by `preference` (equal weights, unless given).
    Again and again a fifth of the examples is held out, the best is chosen on the others, and its gain is read on what
    was held out. An example that all choices agree on counts as it is; the more they differ, the nearer to what a
    choice by luck is worth.

    >>> import numpy as np
    >>> noise = np.random.default_rng(1).uniform(size=(40, 15))     # fifteen candidates that are all the same
    >>> naive = noise.mean(axis=0).max() - noise[:, 0].mean()
    >>> bool(expect({"helpfulness": noise})["helpfulness"].value < naive / 2)
    True
    """
    tables = {name: np.asarray(table, dtype=np.float64) for name, table in scores.items()}
    shapes = {table.shape for table in tables.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or not 0 <= baseline < shape[1]:
        raise UsageError(
            "The scores are not tables of one shape that hold the baseline.",
            remedy="Give each metric a row per example and a column per candidate.",
        )
    wanted = preference or Preference(dict.fromkeys(tables, Goal()))
    examples, generator = shape[0], np.random.default_rng(seed)
    gains: dict[str, Floats] = {name: np.full((_REPEATS, examples), np.nan) for name in tables}
    for repeat in range(_REPEATS):
        folds = generator.permutation(np.arange(examples) % _FOLDS)
        for fold in range(_FOLDS):
            held = folds == fold
            best = _best({name: table[~held] for name, table in tables.items()}, wanted, baseline)
            for name, table in tables.items():
                gains[name][repeat, held] = table[held, best] - table[held, baseline]
    return {name: _held_out(gain) for name, gain in gains.items()}


def _best(tables: Mapping[str, Floats], wanted: Preference, baseline: int) -> int:
    """The candidate of highest quality; one with a verdict missing altogether is none, and ties go to the baseline."""
    means: dict[str, Floats] = {}
    for name, table in tables.items():
        counts = (~np.isnan(table)).sum(axis=0)
        means[name] = np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)
    best, top = baseline, -1.0
    columns = next(iter(means.values())).size
    for column in (baseline, *(each for each in range(columns) if each != baseline)):
        quality = wanted.quality({name: float(mean[column]) for name, mean in means.items()})
        if quality is not None and quality > top + 1e-12:
            best, top = column, quality
    return best


def _held_out(gain: Floats) -> Estimate:
    known = ~np.isnan(gain)
    counts = known.sum(axis=0)
    mean = np.where(counts > 0, np.where(known, gain, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    return estimate_mean(mean, bounds=DIFFERENCES)


# How one metric is read.


def _found(
    found: Comparison,
    name: str,
    level: float,
    *,
    min_improvement: float,
    tolerance: float,
    floor: float | None,
    decides: bool,
    expected: Estimate | None,
) -> Finding:
    there = found.difference(name, level=level)
    indecisive = name in found.indecisive
    verdict: Verdict = "not shown"
    deciding = there.production or there.mean
    if not indecisive and deciding.n:
        if deciding.low > min_improvement:
            verdict = "improved"
        elif deciding.high < -tolerance:
            verdict = "worse"
    held: Floor | None = None
    if floor is not None:
        after, (weights, strata) = found.values(name)[1], found.weights
        alike = there.production is None
        reached = estimate_mean(after) if alike else estimate_population(after, weights, strata=strata)
        held = _held(floor, reached, known=not indecisive)
    return Finding(
        name,
        there.before,
        there.after,
        there.mean,
        verdict,
        production=there.production,
        expected=expected,
        min_improvement=min_improvement,
        tolerance=tolerance,
        floor=floor,
        held=held,
        decides=decides,
        indecisive=indecisive,
    )


def _held(floor: float, reached: Estimate, *, known: bool) -> Floor:
    if not known or not reached.n:
        return "unknown"
    if reached.value < floor - 1e-9:
        return "below"
    return "holds" if reached.low >= floor else "open"


def _goals(measured: Mapping[str, Measured] | Mapping[str, Metric], preference: Preference | None) -> dict[str, Goal]:
    own = {name: Goal(each.weight, each.priority, each.at_least) for name, each in measured.items()}
    if preference is None:
        return own
    if unknown := [name for name in preference.wanted if name not in own]:
        raise UsageError(
            f"The preference wants the metric {unknown[0]!r}, which was not measured.",
            remedy="Evaluate by it too, or leave it out of the preference.",
        )
    return {name: preference.get(name, Goal(weight=0.0)) for name in own}


def _by_metric(given: Mapping[str, float] | float, known: Mapping[str, Any], what: str) -> dict[str, float]:
    values = given if isinstance(given, Mapping) else dict.fromkeys(known, given)
    for value in values.values():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UsageError(f"{what} is a share of the scale.", remedy="Say 0.02, for instance.")
    if unknown := [name for name in values if name not in known]:
        raise UsageError(
            f"{what} names the metric {unknown[0]!r}, which was not measured.", remedy=f"There is {', '.join(known)}."
        )
    return {name: float(values.get(name, 0.0)) for name in known}


# As a table, and as JSON.


def _rows(each: Finding, floors: bool, expected: bool) -> Iterator[Sequence[Content]]:
    verdict = Cell(each.verdict, {"improved": "good", "worse": "bad", "not shown": "weak"}[each.verdict])
    if not each.decides:
        verdict = Cell(f"{each.verdict} (looked at only)", "weak")
    floor: Content = ""
    if each.held is not None:
        floor = Cell(f"{each.held} {each.floor:.2f}", {"holds": "good", "open": "weak"}.get(each.held, "bad"))
    hoped = "" if each.expected is None else f"{each.expected.value:+.3f}"
    more: list[Content] = [*([floor] if floors else []), *([hoped] if expected else [])]
    if each.indecisive:
        yield [each.metric, "", Cell("indecisive", "bad"), "", verdict, *more]
        return
    first = Cell("", "weak") if each.production else verdict
    yield [
        each.metric,
        f"{each.before:.3f}→{each.after:.3f}",
        said(each.difference),
        difference_bar(each.difference),
        first,
        *more,
    ]
    if each.production:
        blank: list[Content] = [""] * len(more)
        bar = difference_bar(each.production)
        yield [Cell("  production", "weak"), "", said(each.production), bar, verdict, *blank]


def _nulled(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {name: _nulled(item) for name, item in value.items()}
    return [_nulled(item) for item in value] if isinstance(value, list | tuple) else value


def _finding(data: Mapping[str, Any]) -> Finding:
    known = {entry.name: data[entry.name] for entry in fields(Finding) if entry.name in data}
    for name in ("difference", "production", "expected"):
        if (estimate := known.get(name)) is not None:
            value = estimate["value"]
            known[name] = Estimate(**{**estimate, "value": math.nan if value is None else value})
    for name in ("before", "after"):
        known[name] = math.nan if known[name] is None else known[name]
    return Finding(**known)
