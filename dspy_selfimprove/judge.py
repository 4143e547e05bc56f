"""Judge: any Phoenix evaluator, or its record, as something that can be relied on to score.

    judge = Judge(evaluator, models)                       # or Judge(spec, models), from a tracked EvalSpec
    score = judge.score({"input": ..., "output": ...})     # from threads; `await judge.ascore(...)` from any event loop

A verdict is in [0, 1] by the range and the direction of the evaluator's choices, or it is *missing* and says why:

    the service is away, slow, busy      waited out by the call itself (model.py), then missing
    the answer cannot be used            asked again, three times in all, then missing: a judge's slip is nobody's fault
    the evaluator's code raised          missing; the error's class is named
    a variable, key or model is wrong    raises at once: no other example would fare better
    no verdict a whole round of slots    raises, and says what to mend
    the budget is used up                raises

With `models`, the model of their `judge` role answers, whatever model the evaluator names, in their slots and on their
ledger; without, the evaluator's own. Phoenix's limiter of five calls a second is out of the way either way. The user's
evaluator is never changed.

The same inputs under the same version and `repeat` are judged once: by one call for all who ask at the same time, then
from memory, and from the journal if there is one (verdicts of models only: code is free, and may change). A missing
verdict is not remembered. Judging leaves no spans in production's project; give a `tracer` of a provider of your own
for a span of each verdict.

Not covered: pairwise comparison; inputs that are not JSON are judged each time; memory holds every verdict; a judge at
temperature 0 slips the same way when asked again; a `repeat` of a model with a fixed seed moves that seed, any other
repeat sends the same request again, which a cache in between would answer from its store.
"""

from __future__ import annotations

import copy
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.exchange import Reading
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.judges import blueprint
from dspy_selfimprove.judges.classifier import Classifier
from dspy_selfimprove.judges.coded import Coded
from dspy_selfimprove.judges.desk import SLOTS, Desk, caller_for, caller_of, llm_of, rollout
from dspy_selfimprove.judges.helpers import submit
from dspy_selfimprove.judges.slip import UNFIT, Slip, silence, slip_of
from dspy_selfimprove.message import FrozenDict, digest
from dspy_selfimprove.model import Caller, Models
from dspy_selfimprove.sample import Direction, EvalSpec
from dspy_selfimprove.scale import scale_of
from dspy_selfimprove.score import Score
from dspy_selfimprove.slots import Slots

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

ATTEMPTS: Final = 3  # answers asked for before a verdict is missing
_LEAST_SILENCE: Final = 8


@dataclass(frozen=True, slots=True)
class Tally:
    """What a judge did so far. `missing` counts reasons; `slips` answers that were asked for again."""

    judged: int = 0
    remembered: int = 0
    slips: int = 0
    missing: Mapping[str, int] = field(default_factory=FrozenDict)


class Judge:
    """A Phoenix evaluator that scores. Safe to share between threads and event loops.

    `scale` is the lowest and highest number the evaluator gives, for one whose choices do not say; `pick` names the
    score to take of an evaluator that gives several.

    >>> from phoenix.evals import create_evaluator
    >>> @create_evaluator(name="brevity", direction="minimize")
    ... def words(output: str) -> int:
    ...     return len(output.split())
    >>> judge = Judge(words, scale=(0, 8))
    >>> judge.score({"output": "Thank you."}).value, judge.inputs
    (0.75, ('output',))
    >>> judge.score({"output": "word " * 9}).failure
    'the number is outside its scale, 0 to 8'
    """

    def __init__(
        self,
        evaluator: Any,
        models: Models | None = None,
        *,
        journal: Journal | None = None,
        scale: tuple[float, float] | None = None,
        pick: str | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        spec, evaluator = _opened(evaluator)
        caller = _caller(spec, evaluator, models)
        if caller is not None and models is not None:
            spec = blueprint.judged_by(spec, caller.model)
        self._kind = _kind(evaluator, spec, caller, models.slots.size if models else SLOTS, pick)
        self.spec = spec
        self.name: str = pick or spec.name
        place = blueprint.place_of(caller.model) if caller is not None and models is not None else None
        self.version = blueprint.version_of(spec, evaluator, scale=scale, pick=pick, place=place)
        self._is_raw = isinstance(self._kind, Coded) and self._kind.takes_raw_inputs
        self.inputs = _inputs(evaluator, may_be_unknown=self._is_raw)
        self.ledger = caller.ledger if caller is not None else None  # what its calls are charged to
        self._evaluator, self._tracer = evaluator, tracer
        self._scale = scale_of((), spec=spec, named=scale)
        self._asks_model = spec.kind == "LLM"
        self._journal = journal if self._asks_model else None
        self._memo = _Memo()
        self._counts: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._silent = 0
        self._most_silent = max(_LEAST_SILENCE, caller.slots.size if caller else 0)
        self._lock = threading.Lock()

    @property
    def direction(self) -> Direction:
        """Which way the evaluator counts. A score is turned already: larger is better."""
        return self._scale.direction

    @property
    def tally(self) -> Tally:
        with self._lock:
            missing = FrozenDict(dict(sorted(self._missing.items())))
            return Tally(self._counts["judged"], self._counts["remembered"], self._counts["slips"], missing)

    def score(self, inputs: Mapping[str, Any], repeat: int = 0) -> Score:
        """The verdict on `inputs`, which may hold more than the judge needs. Another `repeat`, another verdict."""
        try:
            fields = self._fields(inputs)
        except Slip as slip:
            return self._without(slip)
        key = self._key(fields, repeat)
        if key is None:
            return self._judge(fields, repeat)
        score, is_new = self._memo.once(key, lambda: self._recorded(key, fields, repeat))
        if not is_new:
            self._count("remembered")
        return score

    async def ascore(self, inputs: Mapping[str, Any], repeat: int = 0) -> Score:
        """The same for an event loop, which stays free meanwhile. Cancelled, it lets a call that is under way end."""
        import asyncio

        return await asyncio.wrap_future(submit(self.score, inputs, repeat))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # programs are copied with what they hold; verdicts stay in one place

    def __repr__(self) -> str:
        return f"<Judge {self.name!r} version={self.version}>"

    def _fields(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the evaluator will see of `inputs`, by its own mapping and checks."""
        lacking = [name for name in self.inputs if name not in inputs and _root(name) not in inputs]
        if lacking:
            raise UsageError(
                f"The judge {self.name!r} needs {_listed(lacking)}, and the data has {_listed(inputs) or 'nothing'}.",
                remedy="Give it under that name, or bind the evaluator to the names the data has.",
            )
        if self._is_raw:
            return dict(inputs)
        from phoenix.evals.evaluators import _remap_and_validate_input

        mapping = self._evaluator._input_mapping
        try:
            found: Mapping[str, Any] = _remap_and_validate_input(
                eval_input=dict(inputs),
                required_fields=self._evaluator._get_required_fields(mapping),
                input_mapping=mapping,
                input_schema=self._evaluator.input_schema,
            )
        except Exception:
            raise Slip(UNFIT) from None  # Phoenix's message quotes the data
        return found

    def _key(self, fields: Mapping[str, Any], repeat: int) -> str | None:
        try:
            return digest([self.version, fields, repeat], 32)
        except (TypeError, ValueError):
            return None

    def _recorded(self, key: str, fields: Mapping[str, Any], repeat: int) -> Score:
        """From the journal, or judged and written there."""
        if self._journal is None:
            return self._judge(fields, repeat)
        if (known := self._journal.get("verdict", key)) is not None:
            self._count("remembered")
            return Score.from_json(known["score"])
        score = self._judge(fields, repeat)
        if not score.is_missing:
            about = {"judge": self.name, "version": self.version, "repeat": repeat}
            self._journal.append("verdict", key, {**about, "score": score.to_json()})
        return score

    def _judge(self, fields: Mapping[str, Any], repeat: int) -> Score:
        with self._traced(fields) as span:
            score = self._asked(fields, repeat)
            _describe(span, score)
        return score

    def _asked(self, fields: Mapping[str, Any], repeat: int) -> Score:
        for asked in range(1, ATTEMPTS + 1):
            token = rollout.set(repeat * ATTEMPTS + asked - 1)
            try:
                reading = self._kind.read(fields)
            except Exception as error:
                slip = slip_of(error, asks_model=self._asks_model)
                if slip.again and asked < ATTEMPTS:
                    self._count("slips")
                    continue
                return self._without(slip)
            finally:
                rollout.reset(token)
            break
        score = self._scale.score(reading)
        with self._lock:
            self._counts["judged"] += 1
            self._silent = 0
            if score.failure:
                self._missing[score.failure] += 1
        return score

    def _without(self, slip: Slip) -> Score:
        """No verdict on this one; if there is none on any, say so instead of going on."""
        with self._lock:
            self._counts["judged"] += 1
            self._missing[slip.reason] += 1
            self._silent += self._asks_model and slip.reason != UNFIT
            silent = self._silent
        if silent >= self._most_silent:
            raise silence(self.name, silent, slip) from slip
        return Score.missing(slip.reason)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    @contextmanager
    def _traced(self, fields: Mapping[str, Any]) -> Iterator[Span | None]:
        """Out of production's traces; into a trace of its own if a tracer is there for it."""
        from openinference.instrumentation import suppress_tracing

        span = None if self._tracer is None else _span(self._tracer, self.name, fields)
        try:
            with suppress_tracing():
                yield span
        finally:
            if span is not None:
                span.end()


class _Kind(Protocol):
    """How an evaluator comes to a verdict. Raises a Slip, or whatever its code or its service raised."""

    def read(self, fields: Mapping[str, Any]) -> Reading: ...


class _Memo:
    """One verdict per key: whoever asks first finds it, the others wait for theirs."""

    def __init__(self) -> None:
        self._known: dict[str, Score] = {}
        self._flights: dict[str, Future[Score]] = {}
        self._lock = threading.Lock()

    def once(self, key: str, work: Callable[[], Score]) -> tuple[Score, bool]:
        """The verdict, and whether this call found it."""
        while True:
            with self._lock:
                if (known := self._known.get(key)) is not None:
                    return known, False
                flight = self._flights.get(key)
                if flight is None:
                    mine = self._flights[key] = Future()
                    break
            try:
                return flight.result(), False
            except CancelledError:
                continue  # whoever asked first was interrupted
        try:
            score = work()
        except Exception as error:
            self._land(key)
            mine.set_exception(error)
            raise
        except BaseException:
            self._land(key)
            mine.cancel()
            raise
        self._land(key, score)
        mine.set_result(score)
        return score, True

    def _land(self, key: str, score: Score | None = None) -> None:
        with self._lock:
            del self._flights[key]
            if score is not None and not score.is_missing:
                self._known[key] = score


def _opened(evaluator: Any) -> tuple[EvalSpec, Any]:
    """The record of an evaluator and a copy of it to work on."""
    from phoenix.evals import Evaluator

    from dspy_selfimprove.telemetry.evaluators import specify

    if isinstance(evaluator, EvalSpec):
        return evaluator, copy.copy(blueprint.built(evaluator))
    if not isinstance(evaluator, Evaluator):
        raise UsageError(
            f"A {type(evaluator).__name__} is no Phoenix evaluator.",
            remedy="Pass one, such as create_classifier(...) makes, or an EvalSpec.",
        )
    return specify(evaluator, evaluator._input_mapping), copy.copy(evaluator)


def _caller(spec: EvalSpec, evaluator: Any, models: Models | None) -> Caller | None:
    """The way to the model that will judge; None if the evaluator asks nobody, or nobody we can reach."""
    if not hasattr(evaluator, "llm"):
        return None
    if models is not None:
        return models.caller("judge")
    if evaluator.llm is None:
        return caller_for(spec.provider, spec.model, spec.name)
    return caller_of(evaluator.llm)


def _kind(evaluator: Any, spec: EvalSpec, caller: Caller | None, size: int, pick: str | None) -> _Kind:
    """How this evaluator comes to its verdicts. The evaluator is a copy: its LLM is put in place on the way."""
    is_data = blueprint.is_all_data(evaluator)
    if is_data:
        blueprint.check_choices(evaluator)
    if hasattr(evaluator, "prompt_template"):
        blueprint.check_template(evaluator)
    if caller is None:
        if hasattr(getattr(evaluator, "llm", None), "_rate_limiters"):
            evaluator.llm = copy.copy(evaluator.llm)
            evaluator.llm._rate_limiters = []
        return Coded(evaluator, spec.kind, pick, Slots(size) if spec.kind == "LLM" else None)
    desk = Desk(caller)
    evaluator.llm = llm_of(desk, spec.provider)
    return Classifier(evaluator, desk) if is_data else Coded(evaluator, spec.kind, pick, None)


def _inputs(evaluator: Any, *, may_be_unknown: bool) -> tuple[str, ...]:
    """The names it needs in the data, after its mapping; what a mapping computes cannot be named."""
    mapping = evaluator._input_mapping or {}
    try:
        required = evaluator._get_required_fields(mapping or None)
    except ValueError:
        if may_be_unknown:
            return ()
        raise UsageError(
            f"The evaluator {evaluator.name!r} does not say which inputs it needs.",
            remedy="Give it an input_schema, or bind it to the names the data has.",
        ) from None
    paths = {mapping.get(name) or name for name in required}
    return tuple(sorted(path for path in paths if isinstance(path, str)))


def _root(path: str) -> str:
    return re.split(r"[.\[]", path.removeprefix("$."), maxsplit=1)[0]


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _span(tracer: Tracer, name: str, fields: Mapping[str, Any]) -> Span:
    from openinference.instrumentation import safe_json_dumps
    from openinference.semconv.trace import OpenInferenceMimeTypeValues, OpenInferenceSpanKindValues, SpanAttributes
    from opentelemetry.context import Context

    return tracer.start_span(
        f"{name}.judge",
        context=Context(),  # a trace of its own, not a branch of whatever runs here
        attributes={
            SpanAttributes.OPENINFERENCE_SPAN_KIND: OpenInferenceSpanKindValues.EVALUATOR.value,
            SpanAttributes.INPUT_VALUE: safe_json_dumps(dict(fields)),
            SpanAttributes.INPUT_MIME_TYPE: OpenInferenceMimeTypeValues.JSON.value,
        },
    )


def _describe(span: Span | None, score: Score) -> None:
    if span is None:
        return
    from openinference.instrumentation import safe_json_dumps
    from openinference.semconv.trace import OpenInferenceMimeTypeValues, SpanAttributes
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute(SpanAttributes.OUTPUT_VALUE, safe_json_dumps(score.to_json()))
    span.set_attribute(SpanAttributes.OUTPUT_MIME_TYPE, OpenInferenceMimeTypeValues.JSON.value)
    span.set_status(Status(StatusCode.ERROR if score.is_missing else StatusCode.OK, score.failure))
