"""Measures: where a metric's verdicts come from, a judge, a function of Python's, or people.

Each takes a Case, finds its own inputs in it, and gives a Score. A function may return whatever says how good the
answer is (metric.py lists it); what it raises is no verdict, unless it says that the set-up is broken.

Not covered: how many judge calls run at a time, what they cost and what is remembered of them (the judge's own affair).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

from dspy_selfimprove.case import Case
from dspy_selfimprove.errors import BadAnswer, Outage, SelfImproveError, UsageError
from dspy_selfimprove.exchange import Reading
from dspy_selfimprove.fingerprint import fingerprint
from dspy_selfimprove.judges.helpers import run_on_loop
from dspy_selfimprove.message import digest
from dspy_selfimprove.outage import failure_of
from dspy_selfimprove.scale import Scale
from dspy_selfimprove.score import Score


class Measure(Protocol):
    """A way to verdicts."""

    @property
    def version(self) -> str: ...

    @property
    def needs(self) -> tuple[str, ...]:
        """The names it must find in a case."""

    def score(self, case: Case, repeat: int) -> Score: ...

    async def ascore(self, case: Case, repeat: int) -> Score: ...


@dataclass(frozen=True)
class Judged:
    """A judge, with its variables found in the case."""

    judge: Any
    given: Mapping[str, Any]
    input_mapping: Mapping[str, str]

    @property
    def version(self) -> str:
        mapped = {name: source for name, source in self.input_mapping.items() if name != source}
        about = [str(self.judge.version), fingerprint(self.given), dict(mapped)]
        return digest(about) if self.given or mapped else str(self.judge.version)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.input_mapping.get(name, name) for name in self._variables if name not in self.given)

    @property
    def _variables(self) -> tuple[str, ...]:
        # An evaluator may ask for a part of something: "output.answer", "$.turns[0]".
        return tuple(dict.fromkeys(re.split(r"[.\[]", name.removeprefix("$."))[0] for name in self.judge.inputs))

    def _inputs(self, case: Case) -> dict[str, Any] | Score:
        # One that does not say what it needs gets everything there is.
        names = self._variables or case.names
        found = {
            name: self.given[name] if name in self.given else case.shown(self.input_mapping.get(name, name))
            for name in names
        }
        lacking = sorted(name for name in self._variables if found[name] is None)
        return Score.missing(f"the example has no {', '.join(lacking)}") if lacking else found

    def score(self, case: Case, repeat: int) -> Score:
        inputs = self._inputs(case)
        return inputs if isinstance(inputs, Score) else cast(Score, self.judge.score(inputs, repeat=repeat))

    async def ascore(self, case: Case, repeat: int) -> Score:
        inputs = self._inputs(case)
        return inputs if isinstance(inputs, Score) else cast(Score, await self.judge.ascore(inputs, repeat=repeat))


@dataclass(frozen=True, slots=True)
class Calling:
    """How a function wants to be called."""

    names: tuple[str, ...]
    required: tuple[str, ...]
    rest: bool  # it takes any name
    places: int | None  # a DSPy metric is called by place, with this many of the five arguments
    is_async: bool


def calling_of(function: Callable[..., Any]) -> Calling:
    # A dspy.Module is called through __call__(*args, **kwargs), which says nothing; its forward does.
    target = function if inspect.isroutine(function) else getattr(function, "forward", function)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        raise UsageError(
            "The parameters of this function cannot be read.", remedy="Wrap it in a function with named parameters."
        ) from None
    by_place = [each for each in parameters.values() if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    bound = target.keywords if isinstance(target, functools.partial) else ()
    named = [
        each
        for each in parameters.values()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name not in bound
    ]
    if any(each.kind is each.POSITIONAL_ONLY for each in by_place):
        raise UsageError(
            "The parameters of this function have no names to be found by.",
            remedy="Wrap it in a function with named parameters.",
        )
    return Calling(
        names=tuple(each.name for each in named),
        required=tuple(each.name for each in named if each.default is each.empty),
        rest=any(each.kind is each.VAR_KEYWORD for each in parameters.values()),
        places=_places(by_place),
        is_async=inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(function).__call__),
    )


def _places(by_place: Sequence[inspect.Parameter]) -> int | None:
    """With how many of DSPy's five arguments a DSPy metric is called; None if it is none."""
    names = [each.name for each in by_place]
    if names[2:3] != ["trace"]:
        return None
    places = 3
    for each, name in zip(by_place[3:5], ("pred_name", "pred_trace"), strict=False):
        # Some have settings of their own there.
        if each.name != name and each.default is not each.empty:
            break
        places += 1
    return places


@dataclass(frozen=True)
class Function:
    """A Python function, its parameters found by name; or a DSPy metric, called by place."""

    function: Callable[..., Any]
    calling: Calling
    given: Mapping[str, Any]
    input_mapping: Mapping[str, str]
    grades: Scale

    def __post_init__(self) -> None:
        _ = self.version  # as it is before it has run: what it keeps count of is no part of it

    @functools.cached_property
    def version(self) -> str:
        grades = [self.grades.low, self.grades.high, self.grades.direction, dict(self.grades.labels or {})]
        return digest([fingerprint(self.function), fingerprint(self.given), dict(self.input_mapping), grades])

    @property
    def needs(self) -> tuple[str, ...]:
        if self.calling.places is not None:
            return ()
        required = (name for name in self.calling.required if name not in self.given)
        return tuple(self.input_mapping.get(name, name) for name in required)

    def score(self, case: Case, repeat: int) -> Score:
        arguments, named = self._arguments(case)
        if lacking := [name for name in self.calling.required if name in _EXPECTED and named.get(name, "") is None]:
            return Score.missing(f"the example has no {lacking[0]}")
        with _Verdict() as verdict:
            returned = self.function(*arguments, **named)
            if inspect.isawaitable(returned):
                returned = _waited(returned)
            verdict.score = self._graded(returned)
        return verdict.score

    async def ascore(self, case: Case, repeat: int) -> Score:
        if not self.calling.is_async:
            return await asyncio.to_thread(self.score, case, repeat)
        arguments, named = self._arguments(case)
        if lacking := [name for name in self.calling.required if name in _EXPECTED and named.get(name, "") is None]:
            return Score.missing(f"the example has no {lacking[0]}")
        with _Verdict() as verdict:
            verdict.score = self._graded(await self.function(*arguments, **named))
        return verdict.score

    def _arguments(self, case: Case) -> tuple[tuple[Any, ...], dict[str, Any]]:
        calling = self.calling
        if calling.places is not None:
            whole = (case.get("example", None), case.get("prediction", None))
            places = (*whole, case.trace, case.pred_name, case.pred_trace)[: calling.places]
            return places, {name: value for name, value in self.given.items() if name in calling.names}
        wanted = [name for name in calling.names if name not in self.given]
        named = {name: case.get(self.input_mapping.get(name, name), _NONE) for name in wanted}
        if calling.rest:
            named = {**{name: case.get(name, None) for name in case.names}, **named}
        return (), {**{name: value for name, value in named.items() if value is not _NONE}, **self.given}

    def _graded(self, returned: Any) -> Score:
        return _score_of(returned, self.grades)


_NONE: Final = object()
# An example may hold null for what was expected: then there is nothing to compare with.
_EXPECTED: Final = frozenset({"expected", "reference", "reference_message"})


@dataclass(frozen=True, slots=True)
class Human:
    """What people said of the recorded answer; made by `human()`."""

    name: str

    @property
    def version(self) -> str:
        return digest(["human", self.name])

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def score(self, case: Case, repeat: int) -> Score:
        if not case.is_recorded:
            return Score.missing("people judged the recorded answer, and this is another")
        said = case.given.get("human") or {}
        score = said.get(self.name) if isinstance(said, Mapping) else None
        return score if isinstance(score, Score) else Score.missing("nobody judged it by this name")

    async def ascore(self, case: Case, repeat: int) -> Score:
        return self.score(case, repeat)


class _Verdict:
    """Around a function of the user's: what it raises is no verdict, unless the set-up is broken."""

    def __init__(self) -> None:
        self.score = Score.missing("the metric gave nothing")

    def __enter__(self) -> _Verdict:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            return False
        if not isinstance(error, Exception):
            return False  # ctrl-C, and a task that was cancelled
        failure = failure_of(error)
        if isinstance(failure, Outage | BadAnswer):
            self.score = no_verdict(failure)
        elif failure is not None and not isinstance(failure, UsageError):
            return False
        else:
            self.score = Score.missing(f"the metric raised {type(error).__name__}{_place(trace)}")
        return True


def _place(trace: Any) -> str:
    """Where something was raised. Not what it said: that may quote the data."""
    frames = traceback.extract_tb(trace)[1:]  # the first is ours, which called
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def no_verdict(failure: SelfImproveError) -> Score:
    return Score.missing(failure.problem.rstrip("."))


def _waited(awaitable: Any) -> Any:
    """The result of something awaitable, asked for from ordinary code. On one loop always: a client it may hold lives
    on the loop that first used it."""

    async def wait() -> Any:
        return await awaitable

    return run_on_loop(wait)


def _score_of(returned: Any, grades: Scale) -> Score:
    """What a function returned, as a verdict."""
    if isinstance(returned, Score):
        return returned
    if isinstance(returned, list | tuple) and len(returned) == 1:
        returned = returned[0]
    feedback, label = "", None
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], str):
        returned, feedback = returned
    elif _field(returned, "score", _NONE) is not _NONE:
        label = _field(returned, "label", None)
        words = (_field(returned, name, None) for name in ("feedback", "explanation", "reason"))
        feedback = next((text for text in words if isinstance(text, str)), "")
        returned = _field(returned, "score", None)
        if returned is None and isinstance(label, str):
            returned = label
    if isinstance(returned, Score):
        return returned
    if returned is None:
        return Score.missing("the metric returned nothing")
    if isinstance(returned, str):
        return _by_label(returned, feedback, grades)
    number = _number(returned)
    if number is None:
        return Score.missing(f"the metric returned a {type(returned).__name__}, which is no number")
    if not math.isfinite(number):
        return Score.missing("the metric returned a number that is not finite")
    reading = Reading(
        "", "", "CODE", score=number, label=label if isinstance(label, str) else None, explanation=feedback
    )
    return grades.score(reading)


def _by_label(said: str, feedback: str, grades: Scale) -> Score:
    if not grades.labels:
        return Score.missing("the metric returned text, and has no `choices` that give it a number")
    known = {label.strip().casefold(): label for label in grades.labels}
    label = known.get(said.strip().casefold())
    if label is None:
        return Score.missing("the metric returned text that is none of its choices")
    return grades.score(Reading("", "", "CODE", label=label, explanation=feedback))


def _field(source: Any, name: str, default: Any) -> Any:
    if isinstance(source, Mapping):
        return source.get(name, default)
    if isinstance(source, str | int | float | complex | list | tuple | None):
        return default
    return getattr(source, name, default)


def _number(value: Any) -> float | None:
    if getattr(value, "size", 1) != 1:  # an array of several
        return None
    item = getattr(value, "item", None)
    if callable(item):  # a scalar of numpy's, or of a tensor
        value = item()
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
