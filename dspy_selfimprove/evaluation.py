"""Evaluation: how good a program is on examples, by several metrics, with what is not known said beside it.

    evaluation = evaluate(program, examples, [helpful, brief])    from a script, a notebook, a thread
    evaluation = await aevaluate(program, examples, metrics)      the same on an event loop, which stays free
    print(evaluation)                                             a table with intervals; in a notebook, just name it

One pool of threads runs the program and judges its answers side by side: an answer is judged as soon as it is there,
while other examples are still being answered. Threads, because they cost less than DSPy's async calls (0.4 against
0.5 ms a call) and run any module and any metric as it is; DSPy's settings, the current span and context variables
reach all of them.

What a failure means is rollout.py's for the program and metric.py's for a metric: an outage leaves a verdict missing,
an answer that cannot be read scores 0, except by people, who judged another. Missing verdicts are in no mean; a metric
of which more than `most_missing` are missing is *indecisive*, and its mean is shown nowhere, though `means` has it. An
answer without a field that a metric needs is missing by that metric; if a round of slots brings no other, it raises.
What is broken for every example raises: at once if nothing has come yet; later it ends the evaluation early, with what
there is (`stopped` says why). So does a budget that is used up.

With a journal, what was answered and judged once is not asked for again: kill it at any moment and call it again. An
answer is kept as JSON, and comes back with the types of the program's signatures. One of which that does not make the
same again (an object of a program's own) cannot be judged later: it counts as kept once all its verdicts are, and is
asked for again as long as one is missing.

Not covered: examples that depend on each other (the intervals take them for independent); several metrics at once
(each interval is 95 % sure by itself); repeats of a predictor that has an LM of its own behind DSPy's cache; a program
that is not safe to run in several threads (`slots=1`); what is spent through an LM of somebody else's that bears the
name of one of ours; what a metric keeps in a score besides JSON (it goes by its kind).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from dspy_selfimprove import files
from dspy_selfimprove.budget import ROLES, Spend
from dspy_selfimprove.case import Case
from dspy_selfimprove.errors import BudgetExhausted, DataError, SelfImproveError, UsageError
from dspy_selfimprove.judges.slip import TOO_LONG, Slip, silence
from dspy_selfimprove.measure import Human, Judged
from dspy_selfimprove.message import FrozenDict, digest, freeze, thaw
from dspy_selfimprove.metric import Metric, Metrics, metric_of
from dspy_selfimprove.pool import Pool, Task
from dspy_selfimprove.progress import step
from dspy_selfimprove.rollout import Rollout, Subject, explained, plain, questions
from dspy_selfimprove.sample import Direction, EvalKind
from dspy_selfimprove.score import Score, Scorecard
from dspy_selfimprove.statistics import Estimate, Floats, estimate_mean, estimate_population
from dspy_selfimprove.table import Bar, Cell, Content, Table, Tabled, scale

if TYPE_CHECKING:
    import dspy
    import pandas as pd

    from dspy_selfimprove.journal import Journal
    from dspy_selfimprove.telemetry.experiments import Recorded

SLOTS: Final = 16  # for a program whose LM does not say how many calls it takes at a time
MOST_MISSING: Final = 0.05
ENDED: Final = "the evaluation ended before it"
NO_ANSWER: Final = "no answer: "
ANOTHER: Final = "people judged the recorded answer, and this is another"
FORMAT: Final = 1
_LEAST_SILENCE: Final = 8
_PATIENCE: Final = 3  # rounds of slots without an answer, once there were answers
_MOST_CLASSES: Final = 20
_LEAST_PER_CLASS: Final = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric as it was when it measured."""

    name: str
    version: str
    kind: EvalKind = "CODE"
    direction: Direction = "maximize"
    weight: float = 1.0
    priority: int = 1
    at_least: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One example: its rollouts, and the verdicts on each. `label` is the reference where that is a short one."""

    id: str
    fingerprint: str
    inputs: Mapping[str, Any]
    reference: Mapping[str, Any]
    rollouts: tuple[Rollout, ...]
    cards: tuple[Scorecard, ...]
    weight: float = 1.0
    cluster: int | str | None = None
    label: str | None = None

    @property
    def scores(self) -> Scorecard:
        """Each metric's score: over several repeats the mean of those that are not missing."""
        if len(self.cards) == 1:
            return self.cards[0]
        return Scorecard(self.id, {name: _merged([card[name] for card in self.cards]) for name in self.cards[0]})

    @property
    def output(self) -> str:
        """The (first) answer as text."""
        return self.rollouts[0].text

    def to_json(self) -> dict[str, Any]:
        data = {entry.name: thaw(getattr(self, entry.name)) for entry in fields(self)}
        return {
            **data,
            "rollouts": [each.to_json() for each in self.rollouts],
            "cards": [each.to_json() for each in self.cards],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        made = {
            "inputs": freeze(data["inputs"]),
            "reference": freeze(data["reference"]),
            "rollouts": tuple(map(Rollout.from_json, data["rollouts"])),
            "cards": tuple(map(Scorecard.from_json, data["cards"])),
        }
        return cls(**{**data, **made})


def _merged(scores: Sequence[Score]) -> Score:
    known = [score for score in scores if score.value is not None]
    if not known:
        return scores[0]
    values = [score.value for score in known if score.value is not None]
    labels = {score.label for score in known}
    worst = min(known, key=lambda score: score.value or 0.0)
    return Score(
        min(1.0, math.fsum(values) / len(values)),
        label=labels.pop() if len(labels) == 1 else None,
        feedback=worst.feedback,
        details={"values": values},
    )


@dataclass(frozen=True, repr=False)
class Evaluation(Tabled):
    """What `evaluate` found. `means` are of the examples as they are, `production` weighs them as production has them.

    `candidate` is the id of the program's Candidate; `planned` counts the examples there were; `spent` is by role, and
    counts what others spent on the same ledger meanwhile; `remembered` counts the answers that the journal held.

    >>> card = Scorecard("T1", {"exact": Score(1.0)})
    >>> row = Outcome("T1", "f", {}, {}, (Rollout(0, {"output": "4"}),), (card,))
    >>> found = Evaluation((row,), (Measured("exact", "1"),), planned=1)
    >>> found["exact"].value, found["exact"].n, found.indecisive
    (1.0, 1, ())
    """

    outcomes: tuple[Outcome, ...]
    metrics: tuple[Measured, ...]
    planned: int
    repeats: int = 1
    candidate: str | None = None
    program: str = ""
    models: tuple[str, ...] = ()
    slots: int = SLOTS
    most_missing: float = MOST_MISSING
    stopped: str | None = None
    seconds: float = 0.0
    spent: Mapping[str, Spend] = field(default_factory=FrozenDict)
    remembered: int = 0
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics."""
        return tuple(each.name for each in self.metrics)

    @property
    def partial(self) -> bool:
        """Whether it ended before all examples were done."""
        return self.stopped is not None

    @functools.cached_property
    def scorecards(self) -> tuple[Scorecard, ...]:
        """One per example, in the order of the examples."""
        return tuple(outcome.scores for outcome in self.outcomes)

    def values(self, metric: str) -> Floats:
        """A metric's value of each example, NaN where it is missing."""
        self._refuse_unknown(metric)
        return np.array([card.row((metric,))[0] for card in self.scorecards], dtype=np.float64)

    @functools.cached_property
    def means(self) -> Mapping[str, Estimate]:
        """Each metric's mean over the examples, with its interval."""
        return FrozenDict({name: estimate_mean(self.values(name)) for name in self.names})

    @functools.cached_property
    def production(self) -> Mapping[str, Estimate] | None:
        """The means that production has, by the examples' weights; None where all weigh the same."""
        weights = [outcome.weight for outcome in self.outcomes]
        if len(set(weights)) < 2:
            return None
        strata = None
        if all(outcome.cluster is not None for outcome in self.outcomes):
            strata = [outcome.cluster for outcome in self.outcomes]
        return FrozenDict({name: estimate_population(self.values(name), weights, strata=strata) for name in self.names})

    def __getitem__(self, metric: str) -> Estimate:
        """A metric's mean."""
        self._refuse_unknown(metric)
        return self.means[metric]

    @functools.cached_property
    def missing(self) -> Mapping[str, Mapping[str, int]]:
        """For each metric how many verdicts are missing, by reason."""
        found: dict[str, Counter[str]] = {name: Counter() for name in self.names}
        for outcome in self.outcomes:
            for card in outcome.cards:
                for name, score in card.items():
                    if score.failure is not None:
                        found[name][score.failure] += 1
        return FrozenDict({name: FrozenDict(dict(reasons.most_common())) for name, reasons in found.items()})

    def share_missing(self, metric: str) -> float:
        """The share of a metric's verdicts that should have come and did not; where it ended early, nothing should."""
        self._refuse_unknown(metric)
        reasons = self.missing[metric]
        expected = sum(len(outcome.cards) for outcome in self.outcomes) - reasons.get(ENDED, 0)
        lost = sum(reasons.values()) - reasons.get(ENDED, 0)
        return lost / expected if expected else 1.0

    @functools.cached_property
    def indecisive(self) -> tuple[str, ...]:
        """The metrics of which too many verdicts are missing for a number to mean anything."""
        return tuple(name for name in self.names if self.share_missing(name) > self.most_missing)

    @property
    def faults(self) -> int:
        """Answers that could not be read, which is the program's own fault: they score 0."""
        return sum(rollout.fault is not None for rollout in self._rollouts)

    @property
    def _rollouts(self) -> Iterator[Rollout]:
        return (rollout for outcome in self.outcomes for rollout in outcome.rollouts)

    def breakdown(self, by: Literal["cluster", "class"]) -> Mapping[str, Mapping[str, Estimate]]:
        """The means of each cluster, or of each class (the reference answer, where there are few of them)."""
        if by not in ("cluster", "class"):
            raise UsageError(f"There is no breakdown by {by!r}.", remedy='Say "cluster" or "class".')
        groups: dict[str, list[int]] = {}
        for place, outcome in enumerate(self.outcomes):
            group = outcome.cluster if by == "cluster" else outcome.label
            if group is not None:
                groups.setdefault(str(group), []).append(place)
        if by == "class":
            most = min(_MOST_CLASSES, len(self.outcomes) // _LEAST_PER_CLASS)
            groups = groups if 1 < len(groups) <= most else {}
        order = sorted(groups, key=lambda group: (-len(groups[group]), group))
        columns = {name: self.values(name) for name in self.names}
        return FrozenDict(
            {
                group: FrozenDict({name: estimate_mean(column[groups[group]]) for name, column in columns.items()})
                for group in order
            }
        )

    def _refuse_unknown(self, metric: str) -> None:
        if metric not in self.names:
            raise UsageError(f"There is no metric {metric!r}.", remedy=f"There is {', '.join(self.names)}.")

    # To look at.

    def table(self, by: Literal["cluster", "class"] | None = None) -> Table:
        """The means, or those of each group, as a table for a terminal or a page."""
        return _means(self) if by is None else _groups(self, by)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name} {'indecisive' if name in self.indecisive else format(mean.value, '.3f')}"
            for name, mean in self.means.items()
        )
        return f"<Evaluation of {len(self.outcomes)} examples: {shown}>"

    def to_frame(self) -> pd.DataFrame:
        """A row per rollout: every metric's value and feedback, the answer, what it took, why it is missing."""
        import pandas as pd

        rows = []
        for outcome in self.outcomes:
            for rollout, card in zip(outcome.rollouts, outcome.cards, strict=True):
                row: dict[str, Any] = {"example": outcome.id, "repeat": rollout.repeat}
                row |= dict(zip(self.names, card.row(self.names), strict=True))
                row |= {"output": rollout.text, "seconds": rollout.seconds, "dollars": rollout.dollars}
                row["tokens"] = None if rollout.tokens is None else rollout.tokens.input + rollout.tokens.output
                row |= {"weight": outcome.weight, "cluster": outcome.cluster, "class": outcome.label}
                row["failure"] = rollout.failure or rollout.fault
                for name, score in card.items():
                    row[f"{name} label"] = score.label
                    row[f"{name} feedback"] = score.feedback
                    row[f"{name} missing"] = score.failure
                rows.append(row)
        return pd.DataFrame(rows).set_index("example") if rows else pd.DataFrame()

    # To keep.

    def to_json(self) -> dict[str, Any]:
        data = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            **data,
            "format": FORMAT,
            "outcomes": [each.to_json() for each in self.outcomes],
            "metrics": [asdict(each) for each in self.metrics],
            "models": list(self.models),
            "spent": {role: spend.to_json() for role, spend in self.spent.items()},
            "time": self.time.isoformat(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        known = {entry.name: data[entry.name] for entry in fields(cls) if entry.name in data}
        made = {
            "outcomes": tuple(map(Outcome.from_json, data["outcomes"])),
            "metrics": tuple(Measured(**each) for each in data["metrics"]),
            "models": tuple(data["models"]),
            "spent": FrozenDict({role: Spend(**each) for role, each in data["spent"].items()}),
            "time": datetime.fromisoformat(data["time"]),
        }
        return cls(**{**known, **made})

    def save(self, path: Path | str) -> Path:
        """Write it to a JSON file. It holds the examples and the answers: keep it where production's data may be."""
        path = Path(path)
        files.write_text(path, json.dumps(self.to_json(), allow_nan=False))
        return path

    @classmethod
    def load(cls, path: Path | str) -> Evaluation:
        """What `save` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] > FORMAT:
                raise DataError(f"{path} was written by a newer version.", remedy="Upgrade to read it.")
            return cls.from_json(data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} cannot be read as an evaluation ({type(error).__name__}).", remedy="Evaluate again."
            ) from None

    def record(self, name: str, dataset: str, *, endpoint: str | None = None, api_key: str | None = None) -> Recorded:
        """Record it in Phoenix, as the experiment `name` on the dataset `dataset`.

        The dataset's newest version then holds the examples of this evaluation, and no others; if it did already, it
        stays as it is. Evaluations of the same examples stand side by side there.
        """
        from dspy_selfimprove.telemetry.datasets import push
        from dspy_selfimprove.telemetry.experiments import Run, record

        rows = [
            {
                "id": outcome.id,
                "input": outcome.inputs,
                "output": outcome.reference,
                "metadata": {
                    "weight": outcome.weight,
                    **({} if outcome.cluster is None else {"cluster": outcome.cluster}),
                },
            }
            for outcome in self.outcomes
        ]
        kinds = {each.name: each.kind for each in self.metrics}
        runs = [
            Run(
                example=outcome.id,
                repeat=rollout.repeat,
                output=rollout.output,
                scores=card,
                kinds=kinds,
                began=datetime.fromtimestamp(rollout.time, UTC),
                seconds=rollout.seconds or 0.0,
                error=rollout.failure or rollout.fault,
            )
            for outcome in self.outcomes
            for rollout, card in zip(outcome.rollouts, outcome.cards, strict=True)
        ]
        pushed = push(dataset, rows, endpoint=endpoint, api_key=api_key)
        about = {
            "candidate": self.candidate,
            "models": list(self.models),
            "metrics": {each.name: each.version for each in self.metrics},
            "indecisive": list(self.indecisive),
            "stopped": self.stopped,
        }
        return record(name, pushed, runs, metadata=about, endpoint=endpoint, api_key=api_key)


def evaluate(
    program: dspy.Module,
    examples: Iterable[Any],
    metrics: Metrics | Metric | Sequence[Any],
    *,
    slots: int | None = None,
    repeats: int = 1,
    journal: Journal | None = None,
    most_missing: float = MOST_MISSING,
    show: bool = True,
) -> Evaluation:
    """Run `program` on `examples` and judge its answers by `metrics`.

    The program's LM is the one of `dspy.context(lm=...)`, or its own. Examples are samples or dspy.Examples with inputs
    set; metrics are Metrics, or what `metric_of` makes one of. `slots` answers or verdicts are under way at a time: as
    many as the LM's Models allow, unless given. More than those wait for one another, which is not counted in how long
    an answer took. `repeats` answers each example more than once, and judges each answer
    anew; an example's score is their mean.

    >>> import dspy
    >>> from dspy_selfimprove.program import ChatProgram
    >>> from dspy_selfimprove.prompt import ChatPrompt
    >>> from dspy_selfimprove.rehearsal import lm
    >>> asked = [[{"role": "user", "content": f"Where is parcel {n}?"}] for n in range(8)]
    >>> examples = [dspy.Example(conversation=turns).with_inputs("conversation") for turns in asked]
    >>> with dspy.context(lm=lm(seed=1)):
    ...     evaluation = evaluate(ChatProgram(ChatPrompt(system="Answer briefly.")), examples, "brevity", show=False)
    >>> evaluation["brevity"].n, evaluation["brevity"].missing, evaluation.indecisive
    (8, 0, ())
    """
    return _Run(program, examples, metrics, slots, repeats, journal, most_missing).result(show)


async def aevaluate(
    program: dspy.Module,
    examples: Iterable[Any],
    metrics: Metrics | Metric | Sequence[Any],
    *,
    slots: int | None = None,
    repeats: int = 1,
    journal: Journal | None = None,
    most_missing: float = MOST_MISSING,
    show: bool = True,
) -> Evaluation:
    """`evaluate` on an event loop. Cancelled, it begins nothing more and lets what is under way end.

    >>> import dspy
    >>> class Echo(dspy.Module):
    ...     def forward(self, text):
    ...         return dspy.Prediction(output=text)
    >>> examples = [dspy.Example(text="Hello.").with_inputs("text")]
    >>> asyncio.run(aevaluate(Echo(), examples, "brevity", show=False))["brevity"].value
    1.0
    """
    run = _Run(program, examples, metrics, slots, repeats, journal, most_missing)
    working = asyncio.ensure_future(asyncio.to_thread(run.result, show))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        run.pool.stop()
        await asyncio.wait([working])
        raise


@dataclass(slots=True)
class _Try:
    """One example answered once, so far."""

    rollout: Rollout
    scores: dict[str, Score] = field(default_factory=dict)


class _Run:
    """One evaluation under way."""

    def __init__(
        self,
        program: dspy.Module,
        examples: Iterable[Any],
        metrics: Metrics | Metric | Sequence[Any],
        slots: int | None,
        repeats: int,
        journal: Journal | None,
        most_missing: float,
    ) -> None:
        for name, number in (("slots", slots), ("repeats", repeats)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise UsageError(f"{name} must be a whole number from 1 on.", remedy="Leave it out if in doubt.")
        if not 0 <= most_missing <= 1:
            raise UsageError("most_missing is a share.", remedy="Say 0.05 for one in twenty.")
        self.metrics = _as_metrics(metrics)
        self.subject = Subject(program)
        self.questions = questions(examples)
        for question in self.questions:
            self.subject.check(question, self.metrics)
        self.repeats, self.journal, self.most_missing = repeats, journal, most_missing
        self.pool = Pool(slots or self.subject.slots or SLOTS)
        self.candidate = self.subject.candidate
        self.version = self.subject.version
        self._tries: dict[tuple[int, int], _Try] = {}
        self.versions = {each.name: each.version for each in self.metrics}  # a function's may change while it runs
        self._judged: Counter[str] = Counter()  # verdicts that came, by metric
        self._lacking: Counter[str] = Counter()  # answers without what a metric needs
        self._lacks: dict[str, UsageError] = {}  # and the first error that said so
        self._finished = self._answers = self._silent = self._remembered = 0
        self._stopped: str | None = None
        self._lock = threading.Lock()

    def result(self, show: bool) -> Evaluation:
        began, start = datetime.now(UTC), time.perf_counter()
        before = self._spending()
        total = len(self.questions) * self.repeats
        tasks = (
            self._answering(place, repeat) for repeat in range(self.repeats) for place in range(len(self.questions))
        )
        with step("Evaluating", shown=show) as done:
            self.pool.run(tasks, look=lambda: done(self._finished, total))
        if self._stopped is None:
            for name, error in self._lacks.items():
                if not self._judged[name]:
                    raise error
        return Evaluation(
            outcomes=tuple(self._outcomes()),
            metrics=tuple(_measured(each, self.versions[each.name]) for each in self.metrics),
            planned=len(self.questions),
            repeats=self.repeats,
            candidate=self.candidate,
            program=self.version,
            models=self.subject.models,
            slots=self.pool.size,
            most_missing=self.most_missing,
            stopped=self._stopped,
            seconds=time.perf_counter() - start,
            spent=self._spent(before),
            remembered=self._remembered,
            time=began,
        )

    # The tasks.

    def _answering(self, place: int, repeat: int) -> Task:
        return lambda: self._answer(place, repeat)

    def _answer(self, place: int, repeat: int) -> list[Task]:
        question = self.questions[place]
        key = digest([self.version, question.id, question.fingerprint, repeat], 32)
        rollout, prediction, known, key = self._kept(key)
        if rollout is None:
            try:
                rollout, prediction, error = self.subject.run(question, repeat)
            except SelfImproveError as broken:
                self._broken(broken, anything=self._answers > 0)
                return []
            if rollout.failure is not None:
                self._put(place, rollout, dict.fromkeys(self.metrics.names, Score.missing(NO_ANSWER + rollout.failure)))
                self._without(rollout.failure, error)
                return []
            if self.journal is not None:
                whole = prediction is None or self.subject.is_whole(rollout, prediction)
                about = {"candidate": self.candidate, "example": question.id, "repeat": repeat}
                self.journal.append("rollout", key, {**about, "whole": whole, "rollout": rollout.to_json()})
                known = self._known(key, rollout)
        with self._lock:
            self._answers += 1
            self._silent = 0
        if rollout.fault is not None:
            self._put(place, rollout, {each.name: _faulty(each, rollout.fault) for each in self.metrics})
            return []
        self._put(place, rollout, known)
        return [
            functools.partial(self._judge, place, repeat, key, metric, prediction)
            for metric in self.metrics
            if metric.name not in known
        ]

    def _judge(self, place: int, repeat: int, key: str, metric: Metric, prediction: Any) -> list[Task]:
        question = self.questions[place]
        rollout = self._tries[place, repeat].rollout
        try:
            score = _as_json(metric.score(question.example, prediction, repeat=repeat))
        except SelfImproveError as broken:
            case = Case(question.example, prediction)
            lacking = [name for name in metric.needs if not case.has(name)]
            anything = self._judged[metric.name] > 0
            if isinstance(broken, UsageError) and lacking:
                self._without_fields(metric, broken)
                score = Score.missing(f"neither the example nor its answer has {_listed(lacking)}")
            elif isinstance(broken, UsageError) and anything:
                score = Score.missing("the metric cannot use this answer")
            else:
                self._broken(broken, anything=anything)
                return []
        if self.journal is not None and not score.is_missing:
            about = {
                "candidate": self.candidate,
                "example": question.id,
                "metric": metric.name,
                "version": self.versions[metric.name],
                "repeat": repeat,
            }
            self.journal.append("score", self._score_key(key, rollout, metric), {**about, "score": score.to_json()})
        self._put(place, rollout, {metric.name: score})
        return []

    def _kept(self, key: str) -> tuple[Rollout | None, Any, dict[str, Score], str]:
        """What the journal holds of an answer: itself, its prediction, the verdicts on it, and its key there.

        Of several, since one that is not whole may have been asked for again, the first that can be used; if there is
        none, the key for the next.
        """
        for number in itertools.count():
            own = f"{key}-{number}" if number else key
            kept = None if self.journal is None else self.journal.get("rollout", own)
            if kept is None:
                return None, None, {}, own
            rollout = Rollout.from_json(kept["rollout"])
            known = self._known(own, rollout)
            if rollout.fault is not None or kept["whole"] or len(known) == len(self.metrics):
                with self._lock:
                    self._remembered += 1
                return rollout, None if rollout.fault is not None else self.subject.restored(rollout), known, own
        raise AssertionError("unreachable")

    def _known(self, key: str, rollout: Rollout) -> dict[str, Score]:
        assert self.journal is not None
        found = {
            metric.name: self.journal.get("score", self._score_key(key, rollout, metric)) for metric in self.metrics
        }
        return {name: Score.from_json(data["score"]) for name, data in found.items() if data is not None}

    def _score_key(self, key: str, rollout: Rollout, metric: Metric) -> str:
        return digest([key, digest(rollout.output), metric.name, self.versions[metric.name]], 32)

    def _put(self, place: int, rollout: Rollout, scores: Mapping[str, Score]) -> None:
        with self._lock:
            entry = self._tries.setdefault((place, rollout.repeat), _Try(rollout))
            entry.scores.update(scores)
            if rollout.fault is None:  # which no metric judged
                self._judged.update(name for name, score in scores.items() if not score.is_missing)
            self._finished += len(entry.scores) == len(self.metrics)

    # When it cannot go on.

    def _broken(self, error: SelfImproveError, *, anything: bool) -> None:
        """A set-up that is broken raises; one that broke on the way, or a budget, ends it with what there is."""
        if not anything and not isinstance(error, BudgetExhausted):
            raise error
        with self._lock:
            self._stopped = self._stopped or error.problem.rstrip(".")
        self.pool.stop()

    @property
    def _round(self) -> int:
        return max(_LEAST_SILENCE, self.pool.size)

    def _without_fields(self, metric: Metric, error: UsageError) -> None:
        """No verdict, for this answer lacks what the metric needs; if so far all do, say so instead of going on."""
        with self._lock:
            self._lacking[metric.name] += 1
            first = self._lacks.setdefault(metric.name, error)
            if self._lacking[metric.name] >= self._round and not self._judged[metric.name]:
                raise first

    def _without(self, reason: str, error: Exception | None) -> None:
        """No answer this time; if there is none at any time, say so instead of going on."""
        round_of = self._round
        with self._lock:
            self._silent += 1
            silent, answers = self._silent, self._answers
        if not answers and silent >= min(round_of, len(self.questions) * self.repeats):
            raise explained(error, reason, silent) from error
        if answers and silent >= _PATIENCE * round_of:
            with self._lock:
                self._stopped = self._stopped or f"{silent} examples in a row got no answer; last, {reason}"
            self.pool.stop()

    # What came of it.

    def _outcomes(self) -> Iterator[Outcome]:
        for place, question in enumerate(self.questions):
            tries = [self._tries[place, repeat] for repeat in range(self.repeats) if (place, repeat) in self._tries]
            if not tries:
                continue
            cards = []
            for each in tries:
                scores = {name: each.scores.get(name, Score.missing(ENDED)) for name in self.metrics.names}
                cards.append(Scorecard(question.id, scores))
            yield Outcome(
                id=question.id,
                fingerprint=question.fingerprint,
                inputs=freeze(plain(question.inputs)),
                reference=freeze(question.reference),
                rollouts=tuple(each.rollout for each in tries),
                cards=tuple(cards),
                weight=question.weight,
                cluster=question.cluster,
                label=question.label,
            )

    def _spending(self) -> list[Mapping[Any, Spend]]:
        judges = (getattr(each.measure, "judge", None) for each in self.metrics)
        ledgers = [*self.subject.ledgers, *(getattr(judge, "ledger", None) for judge in judges)]
        return [ledger.spent for ledger in {id(each): each for each in ledgers if each is not None}.values()]

    def _spent(self, before: list[Mapping[Any, Spend]]) -> Mapping[str, Spend]:
        after = self._spending()
        spent = {role: Spend() for role in ROLES}
        for old, new in zip(before, after, strict=True):
            for role in ROLES:
                spent[role] += new[role] - old[role]
        spent["worker"] += self.subject.unaccounted
        return FrozenDict({role: spend for role, spend in spent.items() if spend != Spend()})


def _faulty(metric: Metric, fault: str) -> Score:
    """The program's own fault is 0; but people said nothing of this answer."""
    return Score.missing(ANOTHER) if isinstance(metric.measure, Human) else Score(0.0, feedback=fault)


def _as_json(score: Score) -> Score:
    """A score that can be kept: a metric may put anything into it."""
    return Score.from_json(plain(score.to_json()))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _as_metrics(metrics: Metrics | Metric | Sequence[Any]) -> Metrics:
    if isinstance(metrics, Metrics):
        made = metrics
    else:
        several = metrics if isinstance(metrics, list | tuple) else [metrics]
        made = Metrics(each if isinstance(each, Metric) else metric_of(each) for each in several)
    if not len(made):
        raise UsageError("There is no metric to evaluate by.", remedy='Pass one, such as metric_of("brevity").')
    return made


def _measured(metric: Metric, version: str) -> Measured:
    kind: EvalKind = "HUMAN" if isinstance(metric.measure, Human) else "CODE"
    if isinstance(metric.measure, Judged) and (spec := getattr(metric.measure.judge, "spec", None)) is not None:
        kind = spec.kind
    own = {
        entry.name: getattr(metric, entry.name) for entry in fields(Measured) if entry.name not in ("kind", "version")
    }
    return Measured(kind=kind, version=version, **own)


# As tables.


def _means(evaluation: Evaluation) -> Table:
    floors = any(each.at_least is not None for each in evaluation.metrics)
    columns = ("metric", "mean [95 %]", scale(0.0, 1.0), *(["floor"] if floors else []), "missing")
    rows: list[list[Content]] = []
    for each in evaluation.metrics:
        share = evaluation.share_missing(each.name)
        missing = f"{100 * share:.1f} %" if share else Cell("0", "weak")
        if each.name in evaluation.indecisive:
            rows.append([each.name, Cell("indecisive", "bad"), "", *([""] if floors else []), missing])
            continue
        mean = evaluation.means[each.name]
        bar = Bar(mean.value, mean.low, mean.high, mark=each.at_least)
        rows.append([each.name, said(mean), bar, *([_floor(each.at_least, mean)] if floors else []), missing])
        if evaluation.production is not None:
            there = evaluation.production[each.name]
            bar = Bar(there.value, there.low, there.high, mark=each.at_least)
            rows.append([Cell("  production", "weak"), said(there), bar, *([""] if floors else []), ""])
    done = len(evaluation.outcomes)
    count = f"{done:,} examples" if not evaluation.partial else f"{done:,} of {evaluation.planned:,} examples"
    again = f", each {evaluation.repeats} times" if evaluation.repeats > 1 else ""
    return Table(f"Evaluation on {count}{again}", columns, tuple(rows), tuple(_notes(evaluation)), _foot(evaluation))


def said(estimate: Estimate) -> str:
    """An estimate in a cell."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _floor(floor: float | None, mean: Estimate) -> Content:
    if floor is None:
        return ""
    if mean.low >= floor:
        return Cell(f"holds {floor:.2f}", "good")
    return Cell(f"below {floor:.2f}", "bad") if mean.high < floor else f"open {floor:.2f}"


def _notes(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.stopped:
        yield f"Ended early: {evaluation.stopped}."
    for name in evaluation.indecisive:
        yield (
            f"{name}: {100 * evaluation.share_missing(name):.0f} % of the verdicts are missing, more than the "
            f"{100 * evaluation.most_missing:g} % that a number can stand."
        )
        if remedy := _remedy(evaluation.missing[name]):
            yield f"{name}: {remedy}"
    reasons: dict[str, list[str]] = {}
    for name, counted in evaluation.missing.items():
        for reason, count in counted.items():
            reasons.setdefault(f"{count:,} missing: {reason}", []).append(name)
    for said, names in reasons.items():
        yield f"{', '.join(names)}: {said}"
    if evaluation.faults:
        yield f"{evaluation.faults:,} answers could not be read, which is the program's own fault: they score 0."


def _remedy(reasons: Mapping[str, int]) -> str:
    """What to do about a judge of which most verdicts are missing: what it would say itself, were there more of them.

    The reasons are in the order of how often they came.
    """
    common = next((reason for reason in reasons if reason != ENDED), "")
    is_judges = common == TOO_LONG or common.startswith(("the judge", "the evaluator"))
    return silence("", 0, Slip(common)).remedy if is_judges else ""


def _foot(evaluation: Evaluation) -> tuple[str, ...]:
    took = sorted(rollout.seconds for rollout in evaluation._rollouts if rollout.seconds is not None)
    lines = [f"{evaluation.seconds:.1f} s with {evaluation.slots} slots"]
    if took:
        lines[0] += (
            f"; an answer took {np.median(took):.2f} s (median), {took[int(0.95 * (len(took) - 1))]:.2f} s (95 %)"
        )
    if evaluation.remembered:
        lines[0] += f"; {evaluation.remembered:,} answers were in the journal"
    for role, spend in evaluation.spent.items():
        dollars = f", ${spend.dollars:.4f}" if spend.dollars else ""
        lines.append(f"{role}: {spend.calls:,} calls, {spend.tokens:,} tokens{dollars}")
    return tuple(lines)


def _groups(evaluation: Evaluation, by: Literal["cluster", "class"]) -> Table:
    found = evaluation.breakdown(by)
    rows: list[list[Content]] = []
    for group, means in found.items():
        row: list[Content] = [group, str(max((each.n + each.missing for each in means.values()), default=0))]
        for name, mean in means.items():
            known = mean.n and name not in evaluation.indecisive
            row.append(said(mean) if known else Cell("no verdict", "weak"))
        rows.append(row)
    notes = () if rows else (f"The examples have no {by}.",)
    return Table(f"By {by}", (by, "examples", *evaluation.names), tuple(rows), notes)
