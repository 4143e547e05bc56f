"""Metric: what is measured. One object for our own evaluation and for every DSPy optimizer.

    helpful = metric_of("helpfulness", models=models, at_least=0.75)    a file in metrics/, by name or path
    short   = metric_of("brevity", weight=0.5)                          also there, and code
    polite  = metric_of(any_phoenix_evaluator, models=models)
    exact   = metric_of(lambda output, expected: output == expected, name="exact")
    liked   = metric_of(human("thumb"))                                 what people said of the recorded answer

    helpful.score(example, prediction)     a Score: a value in [0, 1] where larger is better, or missing with the reason
    helpful(example, prediction)           the same for DSPy, which knows only numbers
    Metrics([helpful, short])              several, with one reward

A function's parameters, like the variables of a judge's prompt, are found by name in the example and the answer
(case.py says how); `given` holds those that are the same for every example, such as a policy, and `input_mapping` says
where one with another name is found. What cannot be found is refused, by name.

**A missing verdict.** Asked with `.score`, it is missing and says why. DSPy's optimizers have no such thing: an
exception counts as 0 there, and so would the outage of a judge. So the object they get stands in with the mean of the
verdicts so far, which pulls a prompt towards the average of those tried and never to 0. It is false and passes no
threshold, so nothing unjudged becomes a demonstration of BootstrapFewShot or MIPROv2 (SIMBA looks at the number alone).
Once more verdicts are missing than not there is nothing to stand in with, and Unavailable is raised. DSPy takes that,
and whatever else is raised here, for a failure that scores 0, and gives up after `max_errors` of them. A mean without
stand-ins is our own evaluation's.

What a function returns: a number on its `scale` (0 to 1 unless said), a bool, a Score, a pair (number, feedback), a
label out of `choices`, or anything with a `score` (a dspy.Prediction, a mapping). None, NaN, a number off the scale, a
label that is no choice and an exception of its own leave no verdict. What is broken in the set-up (a refused key, a
missing input, an exhausted budget) is raised.

Not covered: metrics over pairs of answers; a function's own calls of models are neither counted nor repeated for free.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

from dspy_selfimprove import metrics
from dspy_selfimprove.case import CHAT, Case
from dspy_selfimprove.definition import DIRECTIONS, check_choices, read
from dspy_selfimprove.errors import Unavailable, UsageError
from dspy_selfimprove.measure import Function, Human, Judged, Measure, calling_of
from dspy_selfimprove.message import FrozenDict
from dspy_selfimprove.preference import Goal, Preference
from dspy_selfimprove.sample import Direction, EvalSpec, Sample
from dspy_selfimprove.scale import Scale
from dspy_selfimprove.score import Score, Scorecard

if TYPE_CHECKING:
    from dspy_selfimprove.journal import Journal
    from dspy_selfimprove.model import Models

logger = logging.getLogger("dspy_selfimprove.metric")

SLACK: Final = 5  # verdicts that may be missing beyond those that came before a stand-in is refused


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is measured, and what is wanted of it. Made by `metric_of()`.

    `weight`, `priority` and `at_least` are its `Goal` among other metrics. `direction` is that of what was measured: a
    score is always larger where it is better. A neutral metric has no better end; it is reported, and weighs nothing.

    >>> close = metric_of(lambda output, expected: output == expected, name="exact", at_least=0.9)
    >>> close.score({"question": "2+2?", "expected": "4"}, "4").value
    1.0
    >>> bool(close({"expected": "4"}, "5")), close({"expected": "4"}, "5").objective_scores
    (False, {'exact': 0.0})
    """

    name: str
    measure: Measure = field(repr=False)
    direction: Direction = "maximize"
    weight: float = 1.0
    priority: int = 1
    at_least: float | None = None
    description: str = field(default="", repr=False)
    _tally: _Tally = field(default_factory=lambda: _Tally(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise UsageError("A metric needs a name.", remedy='Give metric_of(..., name="...").')
        if self.direction not in DIRECTIONS:
            raise UsageError(
                f"{self.direction!r} is not a direction.", remedy='Say "maximize", "minimize" or "neutral".'
            )
        if self.direction == "neutral" and (self.weight or self.at_least is not None):
            raise UsageError(
                f"The metric {self.name!r} is neutral: it has no better end to be optimized.",
                remedy='Say which end is good, direction="maximize" or "minimize", or give it weight=0.',
            )
        _ = self.goal  # refuses what cannot be

    @property
    def goal(self) -> Goal:
        return Goal(self.weight, self.priority, self.at_least)

    @property
    def version(self) -> str:
        """A hash of what can change a verdict, as far as it can be known."""
        return self.measure.version

    @property
    def needs(self) -> tuple[str, ...]:
        """The names it must find in an example or its answer."""
        return self.measure.needs

    def check(self, example: Any, answer: Any = CHAT) -> None:
        """Refuse an example that lacks what this metric needs, before anything is spent.

        `answer` is a prediction, or the names of the fields it will have (a chat program's unless given).
        """
        if isinstance(answer, list | tuple | set | frozenset):
            answer = dict.fromkeys(answer, "")
        _refuse_lacking(self.name, self.needs, Case(example, answer))

    def score(self, example: Any, answer: Any = None, *, repeat: int = 0) -> Score:
        """The verdict on `answer`; without one, on the answer recorded in the example.

        `repeat` asks a judge again: 0, 1, 2 are verdicts of their own, and each is paid for once.
        """
        return self._of(Case(example, answer), repeat)

    async def ascore(self, example: Any, answer: Any = None, *, repeat: int = 0) -> Score:
        """The same on an event loop; a function that is not async runs in a thread."""
        case = Case(example, answer)
        _refuse_lacking(self.name, self.needs, case)
        return await self.measure.ascore(case, repeat)

    def _of(self, case: Case, repeat: int = 0) -> Score:
        _refuse_lacking(self.name, self.needs, case)
        return self.measure.score(case, repeat)

    def __call__(
        self, example: Any, pred: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
    ) -> Any:
        """DSPy's protocol: a Prediction with `score`, `feedback` and `objective_scores`.

        The score is the plain value; goals count only among several (`Metrics`).
        """
        if pred is None:
            return _program_gave_nothing((self,))
        score = self._of(Case(example, pred, trace, pred_name, pred_trace))
        value = self._tally.take(score, self.name)
        return _verdict(
            score=value,
            feedback=_feedback(self, score),
            objective_scores={self.name: value},
            missing=score.is_missing,
        )


class Metrics(Sequence[Metric]):
    """Several metrics, in order, each name once; callable as one DSPy metric.

    For DSPy the score is the reward (see preference.py), the feedback names what falls short most first, and
    `objective_scores` has every metric's value.

    >>> exact = metric_of(lambda output, expected: output == expected, name="exact")
    >>> both = Metrics([exact, metric_of("brevity", weight=0.5)])
    >>> both.names, both.score({"expected": "4"}, "4")["exact"].value
    (('exact', 'brevity'), 1.0)
    >>> round(both({"expected": "4"}, "5").score, 3)
    0.333
    """

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)
        if strangers := [each for each in self._metrics if not isinstance(each, Metric)]:
            raise UsageError(f"{type(strangers[0]).__name__} is not a Metric.", remedy="Make one: metric_of(...).")
        names = [each.name for each in self._metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(
                f"Two metrics have the name {twice[0]!r}.", remedy='Rename one: metric_of(..., name="...").'
            )

    def __len__(self) -> int:
        return len(self._metrics)

    def __getitem__(self, at: Any) -> Any:
        """By place, or by name."""
        if isinstance(at, str):
            found = next((each for each in self._metrics if each.name == at), None)
            if found is None:
                raise UsageError(f"There is no metric {at!r}.", remedy=f"There is {', '.join(self.names)}.")
            return found
        return self._metrics[at]

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics)

    def __repr__(self) -> str:
        return f"Metrics({', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self._metrics)

    @functools.cached_property
    def preference(self) -> Preference:
        """What is wanted of them together."""
        return Preference({each.name: each.goal for each in self._metrics})

    def check(self, example: Any, answer: Any = CHAT) -> None:
        """As `Metric.check`, for all of them."""
        for each in self._metrics:
            each.check(example, answer)

    def score(self, example: Any, answer: Any = None, *, repeat: int = 0) -> Scorecard:
        """Every metric's verdict, one after another: whoever has many examples runs them side by side."""
        return self._card(example, [each.score(example, answer, repeat=repeat) for each in self._metrics])

    async def ascore(self, example: Any, answer: Any = None, *, repeat: int = 0) -> Scorecard:
        """Every metric's verdict, side by side."""
        verdicts = (each.ascore(example, answer, repeat=repeat) for each in self._metrics)
        return self._card(example, await asyncio.gather(*verdicts))

    def _card(self, example: Any, scores: Iterable[Score]) -> Scorecard:
        name = example.id if isinstance(example, Sample) else Case(example).given.get("id", "")
        return Scorecard(str(name), dict(zip(self.names, scores, strict=True)))

    def reward(self, scores: Mapping[str, Score]) -> float | None:
        """What the preference makes of a scorecard; None if a metric that counts has no verdict."""
        return self.preference.reward({name: score.value for name, score in scores.items()})

    def following(self, samples: Iterable[Sample]) -> Metrics:
        """The same metrics, weighted by what falls short most in production.

        The means are taken over the samples' recorded scores, each with the sample's weight.
        """
        totals = dict.fromkeys(self.names, 0.0)
        counts = dict.fromkeys(self.names, 0.0)
        for sample in samples:
            for name in totals:
                score = sample.scores.get(name)
                if score is not None and score.value is not None:
                    totals[name] += sample.weight * score.value
                    counts[name] += sample.weight
        means = {name: totals[name] / counts[name] if counts[name] else None for name in totals}
        preference = self.preference.following(means)
        return Metrics(replace(each, weight=preference[each.name].weight) for each in self._metrics)

    def __call__(
        self, example: Any, pred: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
    ) -> Any:
        """DSPy's protocol: a Prediction with the reward as `score`."""
        if pred is None:
            return _program_gave_nothing(self._metrics)
        case = Case(example, pred, trace, pred_name, pred_trace)
        return self._given({each.name: each._of(case) for each in self._metrics})

    def without(self, reason: str) -> Any:
        """What DSPy is given where there is no answer to judge, through no fault of the program's: the means so far."""
        return self._given({each.name: Score.missing(reason) for each in self._metrics})

    def _given(self, scores: Mapping[str, Score]) -> Any:
        # A stand-in only for what counts: what is merely looked at can be missing for good.
        wanted = self.preference.wanted
        values = {
            each.name: each._tally.take(scores[each.name], each.name)
            for each in self._metrics
            if each.name in wanted or not scores[each.name].is_missing
        }
        shortfall = {name: goal.weight * (1.0 - values.get(name, 1.0)) for name, goal in self.preference.items()}
        order = sorted(self._metrics, key=lambda each: (each.priority, -shortfall[each.name]))
        return _verdict(
            score=self.preference.reward(values),
            feedback="\n".join(_feedback(each, scores[each.name]) for each in order),
            objective_scores=values,
            missing=any(scores[name].is_missing for name in wanted),
        )


# Making one.


class Settings(TypedDict, total=False):
    """What may be said of any metric."""

    direction: Direction
    weight: float
    priority: int
    at_least: float | None
    description: str


def metric_of(
    what: Any,
    *,
    models: Models | None = None,
    journal: Journal | None = None,
    name: str | None = None,
    given: Mapping[str, Any] | None = None,
    input_mapping: Mapping[str, str] | None = None,
    scale: tuple[float, float] | None = None,
    choices: Mapping[str, float] | None = None,
    **settings: Unpack[Settings],
) -> Metric:
    """A Metric of whatever measures: see the top of this module.

    `what` is the name of a file in metrics/ or a path to one (Phoenix's own files fit as they are), the name of a
    measure such as "token_f1" (`dspy-selfimprove metrics list` has both), a Phoenix evaluator or an EvalSpec, a Judge,
    a function, a DSPy metric, `human(name)`, or a Metric that is to be changed.

    `models` answers for a judge (its `judge` role), and `journal` keeps its verdicts. `scale` is the worst and the best
    number, as in (1, 5) or (10, 0); `choices` gives the labels that a function returns their numbers. `settings` are
    `direction`, `weight`, `priority`, `at_least` and `description`.

    >>> words = metric_of(lambda output: len(output.split()), name="words", scale=(50, 0))
    >>> words.score({}, "one two three four five").value
    0.9
    """
    if unknown := sorted(set(settings) - Settings.__annotations__.keys()):
        raise UsageError(
            f"A metric has no {unknown[0]!r}.",
            remedy=f"It has {', '.join(Settings.__annotations__)}; an input that stays the same goes in given={{...}}.",
        )
    own = _Own(models, journal, FrozenDict(given or {}), FrozenDict(input_mapping or {}), scale, choices)
    made = _made(what, name, own, settings.get("direction"))
    if settings.get("direction", made.direction) != made.direction:
        raise UsageError(
            f"The metric {made.name!r} says itself which end is good.",
            remedy="Leave `direction` out, or change it there.",
        )
    return replace(made, **({**settings, "name": name} if name else settings))


def human(name: str) -> Human:
    """What people said of the recorded answer, under this name. It says nothing of any other answer: missing then.

    >>> hello = {"role": "assistant", "content": "Hello."}
    >>> said = Sample(id="T1", chat_history=(), output=hello, human={"thumb": Score(1)})
    >>> thumb = metric_of(human("thumb"))
    >>> thumb.score(said).value, thumb.score(said, "Hi.").failure
    (1.0, 'people judged the recorded answer, and this is another')
    """
    return Human(name)


@dataclass(frozen=True, slots=True)
class _Own:
    """What a caller says of one metric besides its goal."""

    models: Models | None
    journal: Journal | None
    given: Mapping[str, Any]
    input_mapping: Mapping[str, str]
    scale: tuple[float, float] | None
    choices: Mapping[str, float] | None

    def refuse(self, what: str, *names: str) -> None:
        for each in names:
            if getattr(self, each) not in (None, {}):
                raise UsageError(f"{what} takes no `{each}`.", remedy="Leave it out.")


def _made(what: Any, name: str | None, own: _Own, direction: Direction | None) -> Metric:
    names = [entry.name for entry in fields(own)]
    if isinstance(what, Metric):
        own.refuse("A metric that is made", *names)
        return replace(what)
    if isinstance(what, str | Path):
        return _from_file(what, own, direction)
    if isinstance(what, Human):
        own.refuse("What people said", *names)
        return Metric(name=name or what.name, measure=what, description="What people said of the recorded answer.")
    if isinstance(what, EvalSpec) or _is_phoenix(what) or _is_judge(what):
        return _judged(what, own, direction)
    if isinstance(what, type) or not callable(what):
        raise UsageError(
            f"A metric cannot be made of {what.__name__ if isinstance(what, type) else type(what).__name__}.",
            remedy="Give the name of a file in metrics/, a Phoenix evaluator, a function, or human(name).",
        )
    return _from_function(what, name, own, direction or "maximize")


def _is_phoenix(what: Any) -> bool:
    return not isinstance(what, type) and any(
        kind.__module__.startswith("phoenix.evals") and kind.__name__ == "Evaluator" for kind in type(what).__mro__
    )


def _is_judge(what: Any) -> bool:
    return not isinstance(what, type) and all(hasattr(what, name) for name in ("inputs", "version", "score", "ascore"))


def _judged(
    what: Any, own: _Own, direction: Direction | None, description: str = "", shown: Mapping[str, str] | None = None
) -> Metric:
    own.refuse("A judge", "choices")
    if direction and isinstance(what, EvalSpec):
        what = replace(what, optimization_direction=direction)
    if _is_judge(what):
        own.refuse("A Judge that is made", "models", "journal", "scale")
        judge = what
    else:
        if isinstance(what, EvalSpec) and what.kind == "LLM":
            check_choices(what.name, what.choices)
            if own.models is None and what.model is None:
                raise UsageError(
                    f"The judge {what.name!r} has no model to ask.",
                    remedy='Pass models=Models(Model(name="provider/model")).',
                )
        from dspy_selfimprove.judge import Judge

        judge = Judge(what, own.models, journal=own.journal, scale=own.scale)
    if (choices := judge.spec.choices) and judge.direction != "neutral":
        check_choices(judge.name, choices)  # one without a number would be missing each time, and the mean the others'
    if strange := sorted({*own.given, *own.input_mapping} - set(judge.inputs)):
        raise UsageError(
            f"The judge {judge.name!r} has no variable {strange[0]!r}.",
            remedy=f"It has {', '.join(sorted(judge.inputs)) or 'none'}.",
        )
    measure = Judged(judge, own.given, FrozenDict({**(shown or {}), **own.input_mapping}))
    weight = 0.0 if judge.direction == "neutral" else 1.0
    return Metric(name=judge.name, measure=measure, direction=judge.direction, weight=weight, description=description)


def _from_function(
    function: Callable[..., Any], name: str | None, own: _Own, direction: Direction, description: str = ""
) -> Metric:
    own.refuse("A function", "models", "journal")
    if name is None and not isinstance(function, functools.partial):
        name = getattr(function, "__name__", "") or type(function).__name__
    if name is None or name == "<lambda>":
        raise UsageError("A function without a name needs one.", remedy='Give metric_of(..., name="...").')
    if own.choices is not None:
        check_choices(name, own.choices)
    low, high = own.scale or _range(own.choices)
    turned = low > high
    way: Direction = "minimize" if (direction == "minimize") != turned else "maximize"
    grades = Scale(min(low, high), max(low, high), way, own.choices, "caller" if own.scale else "unit")
    calling = calling_of(function)
    if strange := sorted({*own.given, *own.input_mapping} - set(calling.names)) if not calling.rest else []:
        raise UsageError(
            f"The metric {name!r} has no parameter {strange[0]!r}.", remedy=f"It has {', '.join(calling.names)}."
        )
    said = inspect.getdoc(function) if inspect.isroutine(function) else None
    text = description or (said or "").partition("\n\n")[0]
    measure = Function(function, calling, own.given, own.input_mapping, grades)
    weight = 0.0 if direction == "neutral" else 1.0
    return Metric(name=name, measure=measure, direction=direction, weight=weight, description=text)


def _range(choices: Mapping[str, float] | None) -> tuple[float, float]:
    """0 to 1, unless the choices go beyond that."""
    low, high = min((choices or {}).values(), default=0.0), max((choices or {}).values(), default=1.0)
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)


def _from_file(what: str | Path, own: _Own, direction: Direction | None) -> Metric:
    try:
        made = read(what)
    except UsageError as error:
        if what in metrics.HOMES:  # after the files, so that a user's own of that name comes first
            return _from_function(metrics.measure(str(what)), None, own, direction or "maximize")
        if near := difflib.get_close_matches(str(what), metrics.HOMES, n=1, cutoff=0.7):
            raise UsageError(error.problem, remedy=f"Did you mean {near[0]!r}?") from None
        raise
    own = replace(own, given=FrozenDict({**made.given, **own.given}))
    if made.spec is None:
        return _from_function(made.imported(), made.name, own, direction or made.direction, made.description)
    return _judged(made.spec, own, direction, made.description, made.shown)


def _refuse_lacking(name: str, needs: Iterable[str], case: Case) -> None:
    lacking = [each for each in dict.fromkeys(needs) if not case.has(each)]
    if lacking:
        there = ", ".join(f"'{each}'" for each in case.names) or "nothing"
        raise UsageError(
            f"The metric {name!r} needs {', '.join(repr(each) for each in lacking)}, and the data has {there}.",
            remedy=f"Pass given={{{lacking[0]!r}: ...}}, or input_mapping={{{lacking[0]!r}: <one of them>}}.",
        )


# For DSPy.


class _Tally:
    """What a metric has given DSPy so far; a missing verdict counts as its mean."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total, self._count, self._missing = 0.5, 1, 0  # one verdict of 1/2 to begin with

    def take(self, score: Score, name: str) -> float:
        with self._lock:
            if score.value is not None:
                self._total += score.value
                self._count += 1
                return score.value
            self._missing += 1
            missing, mean = self._missing, self._total / self._count
            enough = self._missing < self._count + SLACK
        if not enough:
            raise Unavailable(
                f"More verdicts of {name!r} are missing than came; the last one because {score.failure}.",
                remedy="Mend the judge or the metric; missing verdicts tell nothing about a prompt.",
            )
        if missing == 1:
            logger.warning(
                "A verdict of %r is missing (%s). DSPy knows only numbers: it counts as the mean so far.",
                name,
                score.failure,
            )
        return mean

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tally:
        return self  # a copied metric is the same one to DSPy

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Tally, ())


def _feedback(metric: Metric, score: Score) -> str:
    if score.value is None:
        return f"{metric.name}: no verdict; that says nothing about this answer."
    label = f" ({score.label})" if score.label else ""
    said = f"{metric.name}: {score.value:.2f}{label}."
    if metric.at_least is not None and score.value < metric.at_least:
        said += f" It must reach {metric.at_least:.2f}."
    return f"{said} {score.feedback}".strip()


def _program_gave_nothing(metrics: Iterable[Metric]) -> Any:
    # SIMBA passes None for a program that raised, and cannot say why.
    names = [each.name for each in metrics]
    return _verdict(score=0.0, feedback="The program gave no answer.", objective_scores=dict.fromkeys(names, 0.0))


_first_use: Final = threading.Lock()


def _verdict(*, missing: bool = False, **fields: Any) -> Any:
    with _first_use:  # two threads must not make two classes
        kind = _verdict_class()
    return kind(missing=missing, **fields)


@functools.cache
def _verdict_class() -> Any:
    """`ScorePrediction`, made when first needed: DSPy takes a second to import."""
    import dspy

    class ScorePrediction(dspy.Prediction):  # type: ignore[misc]
        """A verdict as DSPy takes it. Its truth is that of its score: DSPy's own is true at 0.0.

        One whose verdict is missing is false, and neither above nor at any threshold.
        """

        def __init__(self, *args: Any, missing: bool = False, **fields: Any) -> None:
            super().__init__(*args, **fields)
            self._missing = missing  # beside the fields, which optimizers show to a model

        @property
        def is_missing(self) -> bool:
            return bool(self._missing)

        def __bool__(self) -> bool:
            return not self._missing and float(self) != 0.0

        def __ge__(self, other: Any) -> bool:
            return not self._missing and bool(super().__ge__(other))

        def __gt__(self, other: Any) -> bool:
            return not self._missing and bool(super().__gt__(other))

    ScorePrediction.__module__, ScorePrediction.__qualname__ = __name__, "ScorePrediction"
    return ScorePrediction


def __getattr__(name: str) -> Any:
    if name == "ScorePrediction":  # where a pickled one finds its class
        return _verdict_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
