"""Optimizer: what searches for a better prompt, and Improvement: what it found, and how sure that is.

    better = optimizer_of("gepa", [helpful, brief], models=models).compile(program, trainset=train, valset=valid)
    print(better.improvement)             the verdict, each metric's difference with its interval, the front, the spend

An Optimizer is one of DSPy's: `compile(student, trainset=, valset=)` gives the chosen program. Whoever switches from
one to another changes a name. What they share is said once, in `Optimizer`: by which metrics, on which models (whose
ledger holds the budget: one cap for worker, judge and coach), kept in which journal, from which seed, and how large a
gain must be to count. Metrics carry their own goals; `preference` puts others in their place.

**The verdict.** `judged` compares the best of all that was measured on the whole validation set with the baseline,
example by example. It was chosen because it was best there, so each interval is widened by how many it was chosen
from, and by how many levels could have decided (Bonferroni): of runs in which nothing is better, one in forty says
"improved" at most, however many prompts it tried.

    floors the baseline misses   decide first: reaching them is what is wanted
    priority 1, 2, ...           then the weighted mean of each level, until one of them shows a difference
    improved                     shown better there, by more than `min_improvement`, with every floor held that was held
    worse                        shown worse there
    not shown                    anything else, also that there was nothing to compare

Unless improved, the chosen program *is* the baseline. A run that was cut short (budget, outage, ctrl-C) concludes from
what it knows. Whether the gain holds on data that chose nothing is for the sealed test (`proof`).

Not covered: dependence between examples, and verdicts that go missing because they would be bad. Without a `valset`,
half of the training examples are held back to choose by, since a choice needs data that made no proposal.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

import numpy as np

from dspy_selfimprove import pareto
from dspy_selfimprove.budget import Spend
from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.comparison import difference_bar
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.evaluation import Evaluation, Measured, said
from dspy_selfimprove.message import FrozenDict
from dspy_selfimprove.metric import Metric, Metrics, metric_of
from dspy_selfimprove.preference import Goal, Preference
from dspy_selfimprove.statistics import DIFFERENCES, Estimate, Floats, estimate_mean, estimate_population
from dspy_selfimprove.table import Cell, Content, Table, scale

if TYPE_CHECKING:
    import dspy
    from rich.console import Group

    from dspy_selfimprove.journal import Journal
    from dspy_selfimprove.model import Models

Verdict: TypeAlias = Literal["improved", "not shown", "worse"]
Status: TypeAlias = Literal["measured", "unproven"]
Reason: TypeAlias = Literal["finished", "budget", "outage", "interrupted", "failed", "target", "converged", "patience"]

FORMAT: Final = 1
_ERROR: Final = 0.05
_UNPROVEN: Final = 8  # of those that were not measured on all of the validation set, how many are told of

# Where each one lives. Loaded when asked for: an optimizer brings DSPy with it.
_HOMES: Final = {
    "mipro": ("optimizers.classic", "MIPROv2"),
    "copro": ("optimizers.classic", "COPRO"),
    "simba": ("optimizers.classic", "SIMBA"),
    "gepa": ("optimizers.classic", "GEPA"),
    "bootstrap": ("optimizers.classic", "Bootstrap"),
}


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a search ended, as one of a few reasons and as a sentence."""

    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate and what is known of it. `n` counts the examples with a verdict behind its means.

    It is *measured* if the whole validation set is behind them. If not it is *unproven*: its means may be of other
    examples, and compare with nobody's.
    """

    candidate: Candidate
    means: Mapping[str, Estimate]
    n: int
    status: Status = "measured"

    def to_json(self) -> dict[str, Any]:
        means = {name: _estimate_json(each) for name, each in self.means.items()}
        return {"candidate": self.candidate.to_json(), "means": means, "n": self.n, "status": self.status}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        means = FrozenDict({name: _estimate(each) for name, each in data["means"].items()})
        return cls(Candidate.from_json(data["candidate"]), means, data["n"], data["status"])


@dataclass(frozen=True, slots=True)
class Descent:
    """Where a candidate came from: the ids of its parents, and the operator that made it of them."""

    parents: tuple[str, ...]
    operator: str


@dataclass(frozen=True, repr=False)
class Improvement:
    """What an optimizer found. Made by `judged`.

    `challenger` is the best of what was measured besides the baseline, and `differences` are its own minus the
    baseline's, per metric; `gain` is the difference that decided (None: nothing was compared). `front` holds what no
    other measured candidate dominates, the best first; `tried` counts all candidates that were answered with.
    `spent` is by role.

    >>> from dspy_selfimprove.rollout import Rollout
    >>> from dspy_selfimprove.evaluation import Outcome
    >>> from dspy_selfimprove.score import Score, Scorecard
    >>> def evaluation(value):
    ...     cards = [Scorecard(f"T{n}", {"exact": Score(value)}) for n in range(20)]
    ...     rows = [Outcome(card.example, "", {}, {}, (Rollout(0, {"output": "."}),), (card,)) for card in cards]
    ...     return Evaluation(tuple(rows), (Measured("exact", "1"),), planned=20)
    >>> old = Candidate({"chat": "Answer."})
    >>> new = old.child("rewrite", texts={"chat": "Answer in one word."})
    >>> found = judged([(old, evaluation(0.25)), (new, evaluation(0.75))], by="example")
    >>> found.verdict, found.chosen.candidate == new, found.differences["exact"].value
    ('improved', True, 0.5)
    >>> Improvement.from_json(found.to_json()) == found
    True
    """

    optimizer: str
    metrics: tuple[Measured, ...]
    baseline: Trial
    chosen: Trial
    challenger: Trial | None
    front: tuple[Trial, ...]
    unproven: tuple[Trial, ...]
    verdict: Verdict
    gain: Estimate | None
    differences: Mapping[str, Estimate]
    stopped: Stop
    spent: Mapping[str, Spend] = field(default_factory=FrozenDict)
    lineage: Mapping[str, Descent] = field(default_factory=FrozenDict)
    tried: int = 0
    compared: int = 0
    seconds: float = 0.0
    seed: int = 0
    min_improvement: float | Mapping[str, float] = 0.0
    proof: Any | None = None  # what the sealed test said: filled in later, by whoever may open it

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics."""
        return tuple(each.name for each in self.metrics)

    @property
    def is_improved(self) -> bool:
        return self.verdict == "improved"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.challenger is None:
            none = "no other was tried" if self.tried < 2 else "no other was measured on the whole validation set"
            return f"Keep your prompt: {none}."
        shown = {"improved": "Improved", "worse": "Keep your prompt: the best of the others is worse"}
        start = shown.get(self.verdict, "Keep your prompt: no gain is shown")
        if self.gain is None or not self.gain.n:
            return f"{start}."
        return f"{start}: {self.gain.value:+.3f} [{self.gain.low:+.3f}, {self.gain.high:+.3f}]."

    def with_proof(self, proof: Any) -> Improvement:
        """The same, with what the sealed test said."""
        return replace(self, proof=proof)

    # To look at.

    def table(self) -> Table:
        """Each metric: the baseline, the best of the others, and their difference."""
        rows: list[Sequence[Content]] = []
        for name in self.names:
            before = self.baseline.means.get(name)
            row: list[Content] = [name, "" if before is None else said(before)]
            if self.challenger is None or name not in self.differences:
                rows.append([*row, "", "", "", ""])
                continue
            there = self.differences[name]
            word = "better" if there.low > 0 else "worse" if there.high < 0 else "not shown"
            meaning = {"better": "good", "worse": "bad"}.get(word, "weak")
            bar = difference_bar(there)
            rows.append([*row, said(self.challenger.means[name]), said(there), bar, Cell(word, meaning)])
        level = f"{100 * (self.gain.level if self.gain else 1 - _ERROR):.4g} %"
        columns = ("metric", "baseline [95 %]", "best other [95 %]", f"difference [{level}]", scale(-1.0, 1.0), "")
        return Table(f"{self.optimizer}: {self.sentence}", columns, tuple(rows), (self.stopped.sentence,), self._foot())

    def front_table(self) -> Table:
        """What no other measured candidate dominates."""
        rows = tuple(
            [each.candidate.id[:8], self._role(each), str(each.n), *(said(each.means[name]) for name in self.names)]
            for each in self.front
        )
        return Table(f"Front of {len(self.front)}", ("candidate", "", "n", *self.names), rows)

    def _role(self, trial: Trial) -> str:
        if trial.candidate.id == self.baseline.candidate.id:
            return "baseline"
        return "chosen" if trial.candidate.id == self.chosen.candidate.id else trial.candidate.origin

    def _foot(self) -> tuple[str, ...]:
        lines = [f"{self.tried:,} candidates tried, {self.compared:,} compared with the baseline, {self.seconds:.1f} s"]
        for role, spend in self.spent.items():
            dollars = f", ${spend.dollars:.4f}" if spend.dollars else ""
            lines.append(f"{role}: {spend.calls:,} calls, {spend.tokens:,} tokens{dollars}")
        return tuple(lines)

    def _tables(self) -> Iterator[Table]:
        yield self.table()
        if len(self.front) > 1:
            yield self.front_table()

    def __str__(self) -> str:
        return "\n\n".join(map(str, self._tables()))

    def __rich__(self) -> Group:
        from rich.console import Group

        return Group(*(table.__rich__() for table in self._tables()))

    def _repr_html_(self) -> str:
        return "".join(table.to_html() for table in self._tables())

    def __repr__(self) -> str:
        return f"<Improvement by {self.optimizer}: {self.verdict}, {len(self.front)} on the front>"

    # To keep.

    def to_json(self) -> dict[str, Any]:
        data = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        proof = self.proof
        least = self.min_improvement
        return {
            **data,
            "format": FORMAT,
            "metrics": [asdict(each) for each in self.metrics],
            "baseline": self.baseline.to_json(),
            "chosen": self.chosen.to_json(),
            "challenger": None if self.challenger is None else self.challenger.to_json(),
            "front": [each.to_json() for each in self.front],
            "unproven": [each.to_json() for each in self.unproven],
            "gain": None if self.gain is None else _estimate_json(self.gain),
            "differences": {name: _estimate_json(each) for name, each in self.differences.items()},
            "stopped": asdict(self.stopped),
            "spent": {role: spend.to_json() for role, spend in self.spent.items()},
            "lineage": {
                name: {"parents": list(each.parents), "operator": each.operator} for name, each in self.lineage.items()
            },
            "min_improvement": dict(least) if isinstance(least, Mapping) else least,
            "proof": proof.to_json() if proof is not None and hasattr(proof, "to_json") else proof,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Improvement:
        """What `to_json` gave. A proof stays the mapping it was written as."""
        known = {entry.name: data[entry.name] for entry in fields(cls) if entry.name in data}
        least, challenger, gain = data["min_improvement"], data["challenger"], data["gain"]
        made = {
            "metrics": tuple(Measured(**each) for each in data["metrics"]),
            "baseline": Trial.from_json(data["baseline"]),
            "chosen": Trial.from_json(data["chosen"]),
            "challenger": None if challenger is None else Trial.from_json(challenger),
            "front": tuple(map(Trial.from_json, data["front"])),
            "unproven": tuple(map(Trial.from_json, data["unproven"])),
            "gain": None if gain is None else _estimate(gain),
            "differences": FrozenDict({name: _estimate(each) for name, each in data["differences"].items()}),
            "stopped": Stop(**data["stopped"]),
            "spent": FrozenDict({role: Spend(**each) for role, each in data["spent"].items()}),
            "lineage": FrozenDict(
                {name: Descent(tuple(each["parents"]), each["operator"]) for name, each in data["lineage"].items()}
            ),
            "min_improvement": FrozenDict(least) if isinstance(least, Mapping) else least,
        }
        return cls(**{**known, **made})


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    return {**asdict(estimate), "value": None if math.isnan(estimate.value) else estimate.value}


def _estimate(data: Mapping[str, Any]) -> Estimate:
    return Estimate(**{**data, "value": math.nan if data["value"] is None else data["value"]})


# The verdict.


def trial_of(candidate: Candidate, evaluation: Evaluation, wanted: Sequence[str] = ()) -> Trial:
    """What an evaluation says of a candidate, weighed as production weighs its examples.

    It is measured if the evaluation came to its end with every metric in `wanted` (all, unless given) decided.
    """
    means = evaluation.production or evaluation.means
    undecided = set(evaluation.indecisive) & set(wanted or evaluation.names)
    status: Status = "unproven" if evaluation.partial or undecided else "measured"
    count = min((means[name].n for name in (wanted or evaluation.names)), default=0)
    return Trial(candidate, FrozenDict(dict(means)), count, status)


def judged(
    found: Sequence[tuple[Candidate, Evaluation]],
    *,
    by: str,
    preference: Preference | None = None,
    min_improvement: float | Mapping[str, float] = 0.0,
    stopped: Stop | None = None,
    unproven: Sequence[Trial] = (),
    **more: Any,
) -> Improvement:
    """The Improvement that evaluations show; the first of them is the baseline's. All are of the same examples.

    `more` are the fields of an Improvement that need no verdict: `spent`, `lineage`, `tried`, `seconds`, `seed`.
    """
    (origin, reference), *others = found
    if preference is None:
        goals = {each.name: Goal(each.weight, each.priority, each.at_least) for each in reference.metrics}
        preference = Preference(goals)
    wanted = preference.wanted
    baseline = trial_of(origin, reference, wanted)
    trials = [trial_of(candidate, evaluation, wanted) for candidate, evaluation in others]
    ready = [
        (trial, evaluation)
        for trial, (_, evaluation) in zip(trials, others, strict=True)
        if trial.status == "measured" and baseline.status == "measured"
    ]
    challenger: Trial | None = None
    gain: Estimate | None = None
    verdict: Verdict = "not shown"
    differences: Mapping[str, Estimate] = FrozenDict()
    if ready:
        challenger, evaluation = max(ready, key=lambda pair: _rank(pair[0], preference))  # the first, if tied
        pair = _Pair(reference, evaluation, comparisons=len(ready) * len(_levels(preference, baseline)))
        differences = FrozenDict({name: pair.difference({name: 1.0}) for name in reference.names})
        verdict, gain = _verdict(pair, preference, (baseline, challenger), min_improvement)
    measured = [baseline, *(trial for trial, _ in ready)]
    chosen = challenger if challenger is not None and verdict == "improved" else baseline
    points = [[trial.means[name].value for name in wanted] for trial in measured]
    front = [measured[place] for place in pareto.front(points)]
    front.sort(key=lambda trial: _rank(trial, preference), reverse=True)
    partial = [trial for trial in trials if trial.status == "unproven"]
    return Improvement(
        optimizer=by,
        metrics=reference.metrics,
        baseline=baseline,
        chosen=chosen,
        challenger=challenger,
        front=tuple(front),
        unproven=tuple([*partial, *unproven][:_UNPROVEN]),
        verdict=verdict,
        gain=gain,
        differences=differences,
        stopped=stopped or Stop("finished", "The search came to its own end."),
        compared=len(ready),
        min_improvement=FrozenDict(min_improvement) if isinstance(min_improvement, Mapping) else min_improvement,
        **{"tried": len(found), **more},
    )


class _Pair:
    """Two evaluations of the same examples, compared in pairs."""

    def __init__(self, before: Evaluation, after: Evaluation, *, comparisons: int) -> None:
        known = {outcome.id: outcome for outcome in before.outcomes}
        pairs = [(known[outcome.id], outcome) for outcome in after.outcomes if outcome.id in known]
        self._level = 1.0 - _ERROR / comparisons
        self._changes: dict[str, Floats] = {
            name: np.array([new.scores.row((name,))[0] - old.scores.row((name,))[0] for old, new in pairs])
            for name in before.names
        }
        self._weights = [new.weight for _, new in pairs]
        clusters = [new.cluster for _, new in pairs]
        self._strata = None if None in clusters else clusters

    def difference(self, weights: Mapping[str, float]) -> Estimate:
        """The mean difference of a weighted mean of metrics; an example that lacks one of them is left out."""
        total = math.fsum(weights.values())
        change: Floats = np.sum([self._changes[name] * (weight / total) for name, weight in weights.items()], axis=0)
        change = np.clip(change, *DIFFERENCES)  # a weighted mean may pass a bound by rounding
        if len(set(self._weights)) < 2:
            return estimate_mean(change, bounds=DIFFERENCES, level=self._level)
        return estimate_population(change, self._weights, strata=self._strata, bounds=DIFFERENCES, level=self._level)


def _verdict(
    pair: _Pair,
    preference: Preference,
    trials: tuple[Trial, Trial],
    least: float | Mapping[str, float],
) -> tuple[Verdict, Estimate]:
    """What the pair shows, and the difference that decided: that of the first level at which one shows."""
    baseline, challenger = trials
    floors = {name: goal.at_least for name, goal in preference.items() if goal.at_least is not None}
    lost = [
        name for name, floor in floors.items() if baseline.means[name].value >= floor > challenger.means[name].value
    ]
    shown = [pair.difference(level) for level in _levels(preference, baseline)]
    decisive = next((each for each in shown if each.low > 0 or each.high < 0), shown[0])
    if decisive.high < 0:
        return "worse", decisive
    enough = decisive.low > (0.0 if isinstance(least, Mapping) else least)
    if isinstance(least, Mapping):
        enough = enough and all(pair.difference({name: 1.0}).low > floor for name, floor in least.items())
    return ("improved" if enough and not lost else "not shown"), decisive


def _levels(preference: Preference, baseline: Trial) -> list[dict[str, float]]:
    """The weights of what decides first, of what decides if that shows nothing, and so on."""
    lacking = [
        name
        for name, goal in preference.items()
        if goal.at_least is not None and not baseline.means[name].value >= goal.at_least
    ]
    priorities = sorted({goal.priority for goal in preference.values() if goal.weight})
    levels = [dict.fromkeys(lacking, 1.0)] if lacking else []
    return levels + [
        {name: goal.weight for name, goal in preference.items() if goal.weight and goal.priority == priority}
        for priority in priorities
    ]


def _rank(trial: Trial, preference: Preference) -> tuple[float, float]:
    """For the best first: how near the means are to the floors, then the quality they make."""
    values = {name: min(1.0, max(0.0, trial.means[name].value)) for name in preference.wanted}
    floors = [(values[name], goal.at_least) for name, goal in preference.items() if goal.at_least is not None]
    near = math.fsum(min(1.0, value / floor) for value, floor in floors) / len(floors) if floors else 1.0
    return near, preference.quality(values) or 0.0


# What all optimizers share.


class Optimizer(ABC):
    """What searches for a better prompt. Its kinds are in optimizers/, and `optimizer_of(name)` makes one.

    The worker and the coach are those of `models`; its ledger holds the budget, and its slots are shared by all.
    `metrics` are Metrics, or what `metric_of` makes one of. `preference` takes the place of the goals they carry.
    `min_improvement` is the smallest gain that counts: of the weighted mean, or by metric. With a `journal` whatever
    was answered once is not asked for again, so a run that was killed goes on where it was when it is started again.

    >>> from dspy_selfimprove.budget import Budget
    >>> from dspy_selfimprove.testing import stage
    >>> with stage(budget=Budget(calls=60)) as desk:
    ...     made = optimizer_of("bootstrap", desk.metrics, models=desk.models, show=False)
    ...     better = made.compile(desk.program, trainset=desk.train, valset=desk.validation)
    >>> better.improvement.optimizer, better.improvement.spent["worker"].calls <= 60
    ('bootstrap', True)
    """

    name: ClassVar[str]

    def __init__(
        self,
        metrics: Metrics | Metric | Sequence[Any],
        *,
        models: Models,
        journal: Journal | None = None,
        preference: Preference | None = None,
        min_improvement: float | Mapping[str, float] = 0.0,
        seed: int = 0,
        show: bool = True,
    ) -> None:
        self.metrics = _wanted(metrics, preference)
        self.models, self.journal, self.seed, self.show = models, journal, seed, show
        for name, least in min_improvement.items() if isinstance(min_improvement, Mapping) else [("", min_improvement)]:
            if name and name not in self.metrics.names:
                raise UsageError(
                    f"There is no metric {name!r} to gain on.", remedy=f"There is {', '.join(self.metrics.names)}."
                )
            if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least < 1:
                raise UsageError("The smallest gain that counts is a share of the scale.", remedy="Say 0.02, or 0.")
        self.min_improvement = min_improvement

    @abstractmethod
    def compile(
        self, student: dspy.Module, *, trainset: Sequence[Any], valset: Sequence[Any] | None = None
    ) -> dspy.Module:
        """The chosen program, a copy of `student` with its `improvement` on it; `student` stays as it is."""

    @abstractmethod
    async def acompile(
        self, student: dspy.Module, *, trainset: Sequence[Any], valset: Sequence[Any] | None = None
    ) -> dspy.Module:
        """The same on an event loop. Cancelled, it begins nothing more; what it knows is in the journal."""


def optimizer_of(name: str, metrics: Metrics | Metric | Sequence[Any], **settings: Any) -> Optimizer:
    """The optimizer of this name; `settings` are those of every `Optimizer`.

    >>> from dspy_selfimprove.model import Model, Models
    >>> models = Models(Model(name="openai/rehearsal", base_url="http://127.0.0.1:1/v1", api_key="none"))
    >>> optimizer_of("gepa", ["brevity"], models=models, seed=1).name
    'gepa'
    """
    if name not in _HOMES:
        raise UsageError(f"There is no optimizer {name!r}.", remedy=f"There is {', '.join(sorted(_HOMES))}.")
    home, kind = _HOMES[name]
    make: Callable[..., Optimizer] = getattr(import_module(f"dspy_selfimprove.{home}"), kind)
    return make(metrics, **settings)


def sides(
    trainset: Sequence[Any], valset: Sequence[Any] | None, *, seed: int
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The examples to learn from and those to choose by: without the second, half of the first, drawn by the seed."""
    train = tuple(trainset)
    if valset is not None:
        validation = tuple(valset)
        if not train or not validation:
            raise UsageError("There is nothing to learn from, or to choose by.", remedy="Pass examples as both.")
        return train, validation
    if len(train) < 2:
        raise UsageError("One example cannot be learnt from and chosen by.", remedy="Pass a valset, or more examples.")
    places = list(range(len(train)))
    random.Random(seed).shuffle(places)
    held = set(places[: len(train) // 2])
    return (
        tuple(each for place, each in enumerate(train) if place not in held),
        tuple(each for place, each in enumerate(train) if place in held),
    )


def _wanted(metrics: Metrics | Metric | Sequence[Any], preference: Preference | None) -> Metrics:
    """The metrics, each with no past: what stood in for a missing verdict in another run is no part of this one."""
    several = metrics if isinstance(metrics, Metrics | list | tuple) else [metrics]
    made = Metrics(replace(each if isinstance(each, Metric) else metric_of(each)) for each in several)
    if not len(made):
        raise UsageError("There is no metric to improve by.", remedy='Pass one, such as metric_of("brevity").')
    if preference is not None:
        if strangers := sorted(set(preference) - set(made.names)):
            raise UsageError(
                f"There is no metric {strangers[0]!r} to prefer.", remedy=f"There is {', '.join(made.names)}."
            )
        unsaid = Goal(weight=0.0)
        goals = {name: preference.get(name, unsaid) for name in made.names}
        made = Metrics(
            replace(each, weight=goal.weight, priority=goal.priority, at_least=goal.at_least)
            for each, goal in zip(made, goals.values(), strict=True)
        )
    _ = made.preference  # refuses what wants nothing
    return made
