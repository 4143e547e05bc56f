"""Rollout: a program's answer to one example, what it took, and what it means that there is none.

    the service is away, slow, busy           missing: waited out by the call already (model.py)
    it refused this one request               missing
    the program's own code raised             missing; the error's class is named
    the answer cannot be read in the form     the candidate's fault: 0 on every metric, and the feedback says so
      the program asks for, or the prompt
      is longer than the model can read
    a key, a model, an LM is wrong            raises: no other example would fare better
    the budget is used up                     raises

`seconds`, `tokens` and `dollars` are put on the prediction, where metrics find them. The seconds are those from the
call to the answer, pauses after an outage included; the time in which it only waited for a slot of its Models is taken
off, so that they do not depend on how many others were asked meanwhile.

Not covered: tokens and dollars of an LM that tells DSPy no usage, or that no price is known of; a program that changes
with what it was asked before; what `version` cannot see of a program: code outside its classes, and objects it holds;
waits for a slot in threads of the program's own that do not have its context.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dspy_selfimprove.budget import Spend
from dspy_selfimprove.case import CHAT, Case
from dspy_selfimprove.errors import BadAnswer, Outage, Refused, SelfImproveError, UsageError
from dspy_selfimprove.judges.helpers import run_on_loop
from dspy_selfimprove.judges.slip import bad_request
from dspy_selfimprove.message import FrozenDict, digest, freeze, thaw
from dspy_selfimprove.model import Model
from dspy_selfimprove.outage import failure_of
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.slots import Waits
from dspy_selfimprove.wire import Tokens

if TYPE_CHECKING:
    import dspy

    from dspy_selfimprove.budget import Ledger

TAKEN: Final = ("seconds", "tokens", "dollars")
UNREADABLE: Final = "The answer could not be read: it is not in the form the program asks for."
TOO_LONG: Final = "There was no answer: the prompt is longer than the model can read."


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer. `fault` says what the candidate did wrong, `failure` why there is none through no fault of its own.

    `output` holds the fields of the prediction as JSON. `time` is when it began, in seconds since 1970.
    """

    repeat: int
    output: Mapping[str, Any] = field(default_factory=FrozenDict)
    seconds: float | None = None
    tokens: Tokens | None = None
    dollars: float | None = None
    fault: str | None = None
    failure: str | None = None
    time: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", freeze(self.output))

    @property
    def text(self) -> str:
        """The answer as text, for people."""
        said = Case({}, dict(self.output)).get("output", None) if self.output else None
        return str(said) if said is not None else "\n".join(f"{name}: {each}" for name, each in self.output.items())

    def to_json(self) -> dict[str, Any]:
        tokens = None if self.tokens is None else asdict(self.tokens)
        data = {name: getattr(self, name) for name in self.__slots__}
        return {**data, "output": thaw(self.output), "tokens": tokens}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rollout:
        tokens = data.get("tokens")
        known = {name: data[name] for name in cls.__slots__ if name in data}
        return cls(**{**known, "tokens": None if tokens is None else Tokens(**tokens)})


@dataclass(frozen=True, slots=True)
class Question:
    """One example: what the program is given of it, and what is known of it. `fingerprint` is a hash of its content."""

    id: str
    example: Any
    inputs: Mapping[str, Any]
    fingerprint: str
    weight: float = 1.0
    cluster: int | str | None = None
    label: str | None = None

    @property
    def reference(self) -> dict[str, Any]:
        """What the example holds besides its inputs and our own notes, as JSON."""
        given = Case(self.example, {}).given
        known = {"id", "weight", "scores", "human", "cluster", "dspy_uuid", *self.inputs}
        return {name: plain(value) for name, value in given.items() if name not in known}


def questions(examples: Iterable[Any]) -> tuple[Question, ...]:
    """Samples or DSPy's examples, each with an id of its own: the one it brings, else a hash of its content."""
    if hasattr(examples, "search") and hasattr(examples, "validation"):
        raise UsageError("A dataset has several sides.", remedy="Pass one: dataset.validation, or dataset.train.")
    found: list[Question] = []
    seen: dict[str, int] = {}
    for example in examples:
        question = _question(example)
        count = seen[question.id] = seen.get(question.id, 0) + 1
        if count > 1:
            if question.id != question.fingerprint:
                raise UsageError(
                    f"Example {len(found)} has the id of one before it.",
                    remedy="Give each an `id` of its own, or none.",
                )
            question = replace(question, id=f"{question.id}-{count}")
        found.append(question)
    if not found:
        raise UsageError("There is no example to evaluate on.", remedy="Pass a list of samples or dspy.Examples.")
    return tuple(found)


def _question(example: Any) -> Question:
    import dspy

    if isinstance(example, Sample):
        from dspy_selfimprove.program import example_of

        inputs = example_of(example).inputs().toDict()
    elif isinstance(example, dspy.Example):
        if not getattr(example, "_input_keys", None):
            raise UsageError(
                "An example does not say which of its fields are inputs.",
                remedy='Say so: example.with_inputs("question").',
            )
        inputs = dict(example.inputs().items())
    else:
        raise UsageError(
            f"{type(example).__name__} is not an example.",
            remedy="Pass samples, or dspy.Examples with their inputs set.",
        )
    case = Case(example, {})
    content = example.to_json() if isinstance(example, Sample) else {**case.given, "": sorted(inputs)}
    fingerprint = digest(plain({name: value for name, value in content.items() if name != "dspy_uuid"}))
    named, weight = case.given.get("id"), _scalar(case.given.get("weight", 1.0))
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UsageError("The weight of an example is not above zero.", remedy="Leave out what should not count.")
    return Question(
        id=str(named) if named not in (None, "") else fingerprint,
        example=example,
        inputs=inputs,
        fingerprint=fingerprint,
        weight=float(weight),
        cluster=_short(case.given.get("cluster")),
        label=None if (label := _short(case.get("expected", None))) is None else str(label),
    )


def _short(value: Any) -> int | str | None:
    """What can name a group: a whole number, or a few words on one line."""
    value = _scalar(value)
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return value
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and "\n" not in value else None


def _scalar(value: Any) -> Any:
    """A number of numpy's, which frames and clustering give, as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


_LONGEST_NAME: Final = 40
_PASSING: Final = frozenset({"stage", "_compiled"})  # of a module's attributes, what DSPy makes anew each time


class Subject:
    """A program under evaluation."""

    def __init__(self, program: dspy.Module) -> None:
        import dspy

        if not isinstance(program, dspy.Module):
            raise UsageError(
                f"{type(program).__name__} is not a program.", remedy="Pass a dspy.Module, or a ChatProgram(prompt)."
            )
        self.program = program
        lms = [predictor.lm or dspy.settings.lm for predictor in program.predictors()] or [dspy.settings.lm]
        if program.predictors() and any(lm is None for lm in lms):
            raise UsageError(
                "No LM is configured for the program.",
                remedy='Use `with dspy.context(lm=models.lm("worker")):`, or program.set_lm(...).',
            )
        self._lms = list({id(lm): lm for lm in lms if lm is not None}.values())
        self._prices = _prices(self._lms)
        self._callers = [caller for lm in self._lms if (caller := _caller(lm)) is not None]
        self._accounted = {lm.model for lm in self._lms if _caller(lm) is not None}
        if self._callers:
            import openai  # noqa: F401  (here, so that its seconds are not those of the first answers)
        self._is_async = not hasattr(type(program), "forward") and hasattr(type(program), "aforward")
        self._unaccounted = Spend()
        self._lock = threading.Lock()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(sorted({lm.model for lm in self._lms}))

    @property
    def slots(self) -> int | None:
        """How many calls its models take at a time, if they are ours."""
        return min((caller.slots.size for caller in self._callers), default=None)

    @property
    def ledgers(self) -> list[Ledger]:
        return [caller.ledger for caller in self._callers]

    @property
    def unaccounted(self) -> Spend:
        """What its runs used of LMs that are not ours and have no ledger.

        DSPy tells usage by the name of an LM: one that bears the name of one of ours goes by that one's ledger.
        """
        with self._lock:
            return self._unaccounted

    @property
    def candidate(self) -> str | None:
        """The id of its Candidate; None if nothing in it can vary."""
        from dspy_selfimprove.program import read_candidate

        return read_candidate(self.program).id if self.program.predictors() else None

    @property
    def version(self) -> str:
        """A hash of what decides its answers, as far as it can be known."""
        import dspy

        from dspy_selfimprove.program import ChatProgram

        parts: list[Any] = []
        for name, module in self.program.named_sub_modules():
            kind = type(module)
            parts.append([name, f"{kind.__module__}:{kind.__qualname__}", _source(kind)])
            if isinstance(module, ChatProgram):
                parts.append(module.prompt.to_json())
            own = {key: value for key, value in vars(module).items() if key not in _PASSING}
            plainly = {key: value for key, value in own.items() if isinstance(value, str | int | float | bool)}
            parts += [plain(plainly), {key: _told(value) for key, value in own.items() if _is_adapter(value)}]
        for name, predictor in self.program.named_predictors():
            alone = copy.copy(predictor)
            alone.lm = None  # which may be one that DSPy cannot save
            state = alone.dump_state()
            parts.append([name, plain(state), plain(predictor.config), predictor.signature.instructions])
            parts.append([_schema(each.annotation) for each in predictor.signature.output_fields.values()])
            parts.append(_told(predictor.lm or dspy.settings.lm))
        if not self.program.predictors():
            parts.append(_told(dspy.settings.lm))
        if not isinstance(self.program, ChatProgram):  # which brings its own
            parts.append(_told(dspy.settings.adapter or dspy.ChatAdapter()))
        return digest(parts)

    @property
    def _fields(self) -> tuple[str, ...] | None:
        """What its answers hold; None if only an answer can tell."""
        import dspy

        from dspy_selfimprove.program import ChatProgram

        if isinstance(self.program, ChatProgram):
            return CHAT
        if isinstance(self.program, dspy.Predict):
            return tuple(self.program.signature.output_fields)
        if type(self.program) is dspy.ChainOfThought:
            return tuple(self.program.predict.signature.output_fields)
        return None

    def check(self, question: Question, metrics: Any) -> None:
        """Refuse an example that the program cannot take or the metrics cannot use, before anything is spent."""
        _refuse_strange(self.program, question.inputs)
        if (fields := self._fields) is not None:
            metrics.check(question.example, [*fields, *TAKEN])

    def run(self, question: Question, repeat: int) -> tuple[Rollout, Any, Exception | None]:
        """The rollout, the prediction itself, and the error that took its place."""
        import dspy

        began, start, waits = time.time(), time.perf_counter(), Waits()

        def seconds() -> float:
            return max(0.0, time.perf_counter() - start - waits.seconds)

        # A trace of its own: DSPy's usual one is shared by all threads, and grows.
        with dspy.context(trace=[], **self._uncached(repeat)), dspy.track_usage() as usage, waits.watched():
            try:
                prediction = _prediction(self._called(thaw_inputs(question.inputs)))
            except Exception as error:
                made = Rollout(repeat, seconds=seconds(), time=began, **meaning_of(error))
                return self._with_usage(made, usage), None, error
        rollout = self._with_usage(Rollout(repeat, plain(dict(prediction.items())), seconds(), time=began), usage)
        _put(prediction, rollout)
        return rollout, prediction, None

    def _uncached(self, repeat: int) -> dict[str, Any]:
        """Another repeat is another answer, which DSPy's cache would not give."""
        import dspy

        lm = dspy.settings.lm
        return {"lm": lm.copy(cache=False)} if repeat and getattr(lm, "cache", False) else {}

    def _called(self, inputs: Mapping[str, Any]) -> Any:
        if not self._is_async:
            return self.program(**inputs)
        return run_on_loop(lambda: self.program.acall(**inputs))

    def _with_usage(self, rollout: Rollout, usage: Any) -> Rollout:
        total, is_priced, dollars = Tokens(), True, 0.0
        foreign = Spend()
        for name, entries in usage.usage_data.items():
            price = self._prices.get(name)
            for entry in entries:
                used = _tokens(entry)
                total = Tokens(total.input + used.input, total.output + used.output, total.cached + used.cached)
                is_priced = is_priced and price is not None
                cost = price.of(used) if price is not None else 0.0
                dollars += cost
                if name not in self._accounted:
                    foreign += Spend(1, used.input + used.output, cost)
        with self._lock:
            self._unaccounted += foreign
        if not usage.usage_data:
            return rollout
        return replace(rollout, tokens=total, dollars=dollars if is_priced else None)

    # Answers that were kept.

    def restored(self, rollout: Rollout) -> Any:
        """The prediction of a rollout that was kept, with the types of the program's signatures."""
        import dspy

        prediction = dspy.Prediction(**self._typed(thaw(rollout.output)))
        _put(prediction, rollout)
        return prediction

    def is_whole(self, rollout: Rollout, prediction: Any) -> bool:
        """Whether the prediction can be had back from the rollout: JSON does not hold everything."""
        fields = {name: value for name, value in prediction.items() if name not in TAKEN or name in rollout.output}
        known = self._typed(thaw(rollout.output))
        return known.keys() == fields.keys() and all(_is_same(known[name], fields[name]) for name in known)

    def _typed(self, output: dict[str, Any]) -> dict[str, Any]:
        from pydantic import ValidationError

        for name, adapter in self._types.items():
            if name in output:
                with suppress(ValidationError):  # of another type than its field: left as it is
                    output[name] = adapter.validate_json(json.dumps(output[name]), strict=True)
        return output

    @functools.cached_property
    def _types(self) -> dict[str, Any]:
        """The types that its predictors give their outputs, where they are more than JSON's and agree on them."""
        found: dict[str, list[Any]] = {}
        for predictor in self.program.predictors():
            for name, each in predictor.signature.output_fields.items():
                found.setdefault(name, []).append(each.annotation)
        agreed = {name: kinds[0] for name, kinds in found.items() if all(kind == kinds[0] for kind in kinds)}
        made = {name: _type_adapter(kind) for name, kind in agreed.items() if kind not in (str, int, float, bool)}
        return {name: adapter for name, adapter in made.items() if adapter is not None}


def _is_same(known: Any, value: Any) -> bool:
    if type(known) is not type(value) and (isinstance(value, Enum) or not isinstance(value, type(known))):
        return False
    try:
        return bool(known == value)
    except Exception:  # an array, of which no one can say so
        return False


def _type_adapter(kind: Any) -> Any:
    from pydantic import PydanticUserError, TypeAdapter

    try:
        return TypeAdapter(kind)
    except (PydanticUserError, TypeError, NameError):
        return None


def _schema(kind: Any) -> Any:
    """A type as JSON: an adapter tells the model of it."""
    from pydantic import PydanticUserError

    adapter = _type_adapter(kind)
    try:
        return _told(kind) if adapter is None else plain(adapter.json_schema())
    except (PydanticUserError, TypeError, ValueError):
        return _told(kind)


def thaw_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of one call: what is plain data is given as a copy, for a program may change what it was given."""
    return {name: thaw(value) if type(value) in (dict, list) else value for name, value in inputs.items()}


def _prediction(answer: Any) -> Any:
    import dspy

    if isinstance(answer, dspy.Example):
        return answer
    if isinstance(answer, str):
        return dspy.Prediction(output=answer)
    if isinstance(answer, Mapping):
        return dspy.Prediction(**answer)
    raise TypeError("A program gives a dspy.Prediction, a dict or a text.")


def _put(prediction: Any, rollout: Rollout) -> None:
    for name in TAKEN:
        if name not in prediction:
            value = getattr(rollout, name)
            prediction[name] = value.input + value.output if isinstance(value, Tokens) else value


def meaning_of(error: Exception) -> dict[str, Any]:
    """What it means that a program raised; raises what no other example would escape."""
    if _is_unreadable(error):
        return {"fault": UNREADABLE}
    failure = failure_of(error)
    if failure is None:
        return {"failure": f"the program raised {type(error).__name__}"}
    if isinstance(failure, BadAnswer):
        return {"fault": TOO_LONG}
    if isinstance(failure, Outage | UsageError) or (isinstance(failure, Refused) and bad_request(error) is not None):
        return {"failure": _reason(failure)}
    raise failure from error


def _reason(failure: SelfImproveError) -> str:
    """A failure as the reason of a missing verdict. A message of the caller's own mistake may name their data."""
    if isinstance(failure, UsageError):
        return f"the program raised {type(failure).__name__}"
    text = failure.problem.rstrip(".")
    return text[:1].lower() + text[1:]


def _is_unreadable(error: BaseException) -> bool:
    """Whether DSPy's adapter could not read the answer. What it met on the way (`__context__`) is not what ended it."""
    from dspy.utils.exceptions import AdapterParseError

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, AdapterParseError):
            return True
        link = link.__cause__
    return False


def explained(error: Exception | None, reason: str, times: int) -> SelfImproveError:
    """The error that says a program gives no answers at all."""
    failure = failure_of(error) if error is not None else None
    if failure is not None:
        return failure
    return UsageError(
        f"The program gave no answer to any of {times} examples; last, {reason}.",
        remedy="Try it on one by hand: program(**examples[0].inputs()).",
    )


def _refuse_strange(program: Any, inputs: Mapping[str, Any]) -> None:
    import dspy

    if isinstance(program, dspy.Predict):
        wanted = set(program.signature.input_fields)
        fits = set(inputs) <= wanted and bool(set(inputs) & wanted)
    else:
        method = getattr(type(program), "forward", None) or getattr(type(program), "aforward", None)
        if method is None:
            raise UsageError(f"{type(program).__name__} has no forward method.", remedy="Give it one.")
        parameters = inspect.signature(method).parameters
        wanted = {name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD} - {"self"}
        try:
            inspect.signature(method).bind(program, **inputs)
        except TypeError:
            fits = False
        else:
            fits = True
    if not fits:
        raise UsageError(
            f"The program takes {_listed(wanted)}, and an example gives {_listed(inputs)}.",
            remedy="Set the inputs with example.with_inputs(...), or pass examples made for this program.",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "nothing"


def _tokens(entry: Mapping[str, Any]) -> Tokens:
    details = entry.get("prompt_tokens_details") or {}
    return Tokens(
        int(entry.get("prompt_tokens") or entry.get("input_tokens") or 0),
        int(entry.get("completion_tokens") or entry.get("output_tokens") or 0),
        int(details.get("cached_tokens") or entry.get("cache_read_tokens") or 0),
    )


def _prices(lms: Iterable[Any]) -> dict[str, Any]:
    """By name, as DSPy tells usage; None where two of one name have two prices."""
    found: dict[str, Any] = {}
    for lm in lms:
        price = _price(lm)
        found[lm.model] = price if found.get(lm.model, price) == price else None
    return found


def _price(lm: Any) -> Any:
    if (caller := _caller(lm)) is not None:
        return caller.price
    return Model(name=lm.model).priced() if all(lm.model.partition("/")) else None


def _caller(lm: Any) -> Any:
    """Our own way to the model, if this LM goes it."""
    return getattr(getattr(lm, "engine", None), "caller", None)


def _is_adapter(value: Any) -> bool:
    import dspy

    return isinstance(value, dspy.Adapter)


def _told(value: Any) -> Any:
    """What a version tells of an LM, an adapter, and what an adapter holds: what decides answers, and no key."""
    import dspy

    if isinstance(value, type):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, dspy.BaseLM):
        caller = _caller(value)
        address = [caller.model.name, caller.model.base_url] if caller is not None else []
        settings = {name: each for name, each in value.kwargs.items() if "key" not in name}
        return [_told(type(value)), value.model, plain(settings), *address]
    if isinstance(value, dspy.Adapter):
        held = {name: _told(each) for name, each in vars(value).items() if name != "callbacks"}
        return [_told(type(value)), _source(type(value)), held]
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    if isinstance(value, str | int | float | bool | None):
        return plain(value)
    return _told(type(value))


def _source(kind: type) -> str:
    """The source of a user's own class; DSPy's and ours go by their names."""
    if kind.__module__.partition(".")[0] in ("dspy", "dspy_selfimprove"):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt
        return ""


def plain(value: Any) -> Any:
    """`value` as strict JSON; what JSON does not have goes by its kind."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    return plain(_dumped(value))


def _dumped(value: Any) -> Any:
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError):
        return type(value).__name__
