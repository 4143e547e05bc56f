"""Composition: from the exchanges of production to a checkpoint. Which prompt made which call, and what varied in it.

    exchanges ──▶ instructions (a template and its slots)  ┐
              ──▶ few-shot turns that every call repeats   ├─▶ one ChatPrompt per version ──▶ samples
              ──▶ parameters that every call repeats       ┘

The *instructions* are the first message if the system or the developer says it; else the first user message, if many of
those share a text worth the name. What a version holds is what its calls have in common; what differs from call to call
stays with the sample: the variables, a seed, an end user's id (always, also if it never changed: it is somebody's), and
any parameter that takes many values, and whatever is somebody's own. Two calls that differ in their model or
temperature are two versions.

Every sample is proven before it is kept: its prompt, filled with its variables, makes the recorded request again,
message for message and parameter for parameter. One that does not is set aside with the reason. How the reply was
delivered (`stream`, `n`) is no part of the request here.

The source is read twice, so that memory holds the distinct instructions and not the conversations. Not covered: a
template that puts its variables into several messages at once, other than the instructions.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from dspy_selfimprove.checkpoint import Checkpoint, Origin, SeenPrompt, writing
from dspy_selfimprove.errors import DataError, MissingVariable, UsageError
from dspy_selfimprove.exchange import Aside, Exchange, Reading
from dspy_selfimprove.message import Message, canonical, digest, thaw
from dspy_selfimprove.prompt import DELIVERY, PARAMETERS, ChatPrompt, parts
from dspy_selfimprove.sample import EvalSpec, Sample
from dspy_selfimprove.scale import Scale, scale_of
from dspy_selfimprove.score import Score
from dspy_selfimprove.template import Found, Hint, infer

Role: TypeAlias = Literal["system", "developer", "user"]

IN_PARTS: Final = "the system prompt is made of parts, or carries more than text"
NOT_AGAIN: Final = "the prompt and its variables do not make the recorded request again"
NO_MESSAGES: Final = "the request holds no message"
NO_JSON: Final = "the request holds what is not JSON"

# Said to the client and not to the model; some would be secrets.
TRANSPORT: Final = frozenset(
    {"timeout", "extra_headers", "extra_query", "headers", "default_headers", "api_key", "base_url", "api_base"}
)
# Somebody's, or this call's: never a part of the prompt, even if it never changed.
OWN: Final = frozenset(
    {
        "user", "metadata", "safety_identifier", "prompt_cache_key", "seed", "prediction", "web_search_options",
        "extra_body",
    }
)  # fmt: skip
MANY: Final = 4  # values of one parameter, or a twentieth of the calls if that is more (but not beyond 20): then it
MOST: Final = 20  # belongs to the call
WORTH: Final = 40  # characters that first user messages must share to be instructions,
WORDS: Final = 6  # and words
CALLERS: Final = 3  # who must have made such calls, where it is recorded
ENOUGH: Final = 5  # calls that must repeat something before it is taken for a part of the prompt
LONGEST_HEAD: Final = 24  # messages that are looked at for few-shot turns


class Source(Protocol):
    """Where exchanges come from; asked twice, it gives the same ones."""

    def exchanges(self) -> Iterable[Exchange | Aside]: ...


@dataclass(frozen=True, slots=True)
class _Note:
    """What the first reading keeps of one exchange."""

    role: Role | None
    text: int  # its place among the distinct texts of its role
    parameters: str
    head: tuple[str, ...]
    length: int
    time: datetime | None
    caller: str | None
    followed: bool  # by another message of the user
    id: str


@dataclass(slots=True)
class _Texts:
    """The distinct instructions of one role, and what applications said of them."""

    place: dict[str, int] = field(default_factory=dict)
    of_each: list[int] = field(default_factory=list)  # one entry per exchange
    hints: dict[int, Hint] = field(default_factory=dict)

    def add(self, text: str, hint: Hint | None) -> int:
        at = self.place.setdefault(text, len(self.place))
        self.of_each.append(at)
        if hint is not None:
            self.hints.setdefault(at, hint)
        return at


@dataclass(frozen=True, slots=True)
class _Fit:
    """What the instructions of one exchange turned out to be."""

    template: int
    variables: Mapping[str, str]


def compose(
    source: Source,
    into: Path | str,
    *,
    origin: Origin,
    evaluators: Iterable[EvalSpec] = (),
    scales: Mapping[str, tuple[float, float]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Checkpoint:
    """The checkpoint of what `source` has, written to the folder `into`.

    `scales` names the lowest and highest value of a metric whose evaluator was not tracked; (5, 1) says that less is
    better. Nothing that gives a sample is a UsageError that counts the reasons.
    """
    evaluators = tuple(evaluators)
    first = _Survey()
    for read, found in enumerate(source.exchanges(), 1):
        first.add(found)
        if progress:
            progress(read)
    versions = _Versions(first)
    judge = _Scales(first.numbers, evaluators, scales or {})
    aside = Counter(first.aside)
    seen: dict[str, _Seen] = {}
    with writing(Path(into)) as writer:
        for exchange, note in _again(source, first.notes):
            made = versions.sample(exchange, note)
            if isinstance(made, str):
                aside[made] += 1
                continue
            prompt, sample = made
            seen.setdefault(str(sample.prompt), _Seen(prompt)).add(exchange, note)
            writer.add(judge.onto(sample, exchange))
        if not writer.count:
            raise _nothing(origin, aside)
        prompts = sorted((each.done() for each in seen.values()), key=lambda each: (-each.count, each.version))
        writer.finish(
            {
                "origin": replace(origin, spans=first.spans, scales=scales or {}).to_json(),
                "prompts": [each.to_json() for each in prompts],
                "evaluators": [spec.to_json() for spec in evaluators],
                "set_aside": dict(aside.most_common()),
                "notes": [*_about(prompts, first, versions.unproven), *judge.notes()],
            }
        )
    return Checkpoint.load(into)


def _again(source: Source, notes: list[_Note]) -> Iterator[tuple[Exchange, _Note]]:
    """The second reading: each exchange that the first one took note of, with its note."""
    left = iter(notes)
    note = next(left, None)
    for found in source.exchanges():
        if note is not None and isinstance(found, Exchange) and found.id == note.id:
            yield found, note
            note = next(left, None)
    if note is not None:
        raise DataError("The source changed while it was read.", remedy="Collect again.")


class _Survey:
    """The first reading: everything that has to be known of all exchanges before one can become a sample."""

    def __init__(self) -> None:
        self.notes: list[_Note] = []
        self.texts: dict[Role, _Texts] = defaultdict(_Texts)
        self.aside: Counter[str] = Counter()
        self.numbers: dict[tuple[str, bool], Counter[float]] = defaultdict(Counter)
        self.spans = self.inexact = 0
        self._known: dict[str, str] = {}  # parameters repeat: one text for all that say the same

    def add(self, found: Exchange | Aside) -> None:
        self.spans += 1
        if isinstance(found, Aside):
            self.aside[found.reason] += 1
            return
        if not found.messages:
            self.aside[NO_MESSAGES] += 1
            return
        self.inexact += not found.exact
        for reading in found.readings:
            if reading.score is not None:
                self.numbers[reading.name, reading.kind == "HUMAN"][reading.score] += 1
        role, text = _instructions(found.messages)
        rest = found.messages[1:] if role in ("system", "developer") else found.messages
        try:
            parameters = canonical(_parameters(found))
            head = tuple(digest(message) for message in rest[:LONGEST_HEAD])
        except (ValueError, TypeError, RecursionError):  # NaN, or nesting without an end
            self.aside[NO_JSON] += 1
            return
        self.notes.append(
            _Note(
                role=role,
                text=-1 if role is None or text is None else self.texts[role].add(text, _hint(found)),
                parameters=self._known.setdefault(parameters, parameters),
                head=head,
                length=len(rest),
                time=found.time,
                caller=found.user_id or found.session_id,
                followed=len(found.messages) > 1 and found.messages[1].get("role") == "user",
                id=found.id,
            )
        )


_Group: TypeAlias = tuple[Role | None, int]  # who gives the instructions, and which template they follow
_Version: TypeAlias = tuple[Role | None, int, str]  # and the parameters, but for those that belong to the call


class _Versions:
    """Which prompt made which exchange."""

    def __init__(self, first: _Survey) -> None:
        self._inferred = {
            role: _Inferred(role, texts, [note for note in first.notes if note.role == role and note.text >= 0])
            for role, texts in first.texts.items()
        }
        groups: dict[_Group, list[_Note]] = defaultdict(list)
        for note in first.notes:
            groups[self._group(note)].append(note)
        self._varying = {key: _varying(notes) for key, notes in groups.items()}
        self._given: dict[tuple[_Group, str], tuple[_Version, dict[str, Any]]] = {}
        versions: dict[_Version, list[_Note]] = defaultdict(list)
        for note in first.notes:
            versions[self._version(note)[0]].append(note)
        self._few_shot = {key: _repeated(key[0], notes) for key, notes in versions.items()}
        self._prompts: dict[_Version, tuple[ChatPrompt, str]] = {}
        self.unproven = sum(inferred.unproven for inferred in self._inferred.values())

    def sample(self, exchange: Exchange, note: _Note) -> tuple[ChatPrompt, Sample] | str:
        """The exchange as a sample of its prompt, proven; or why it cannot be one."""
        fit = self._fit(note)
        if isinstance(fit, str):
            return fit
        version, given = self._version(note)
        rest = exchange.messages if fit is None else exchange.messages[1:]
        shots = self._few_shot[version]
        if version not in self._prompts:
            made = self._prompt(note, fit, rest[:shots], given)
            self._prompts[version] = (made, made.version)
        prompt, name = self._prompts[version]
        sample = Sample(
            id=exchange.id,
            chat_history=rest[shots:],
            output=exchange.output,
            variables=fit.variables if fit else {},
            prompt=name,
            trace_id=exchange.trace_id,
            session_id=exchange.session_id,
            user_id=exchange.user_id,
            time=exchange.time,
            parameters={name: value for name, value in _parameters(exchange).items() if name not in given},
            seconds=exchange.seconds,
            tokens=exchange.tokens,
            dollars=exchange.dollars,
            metadata=exchange.metadata,
            tags=exchange.tags,
        )
        return (prompt, sample) if _makes_again(prompt, sample, exchange) else NOT_AGAIN

    def _fit(self, note: _Note) -> _Fit | str | None:
        """Template and variables of the instructions; None if there are none; the reason if they fit no template."""
        if note.role is None:
            return None
        return IN_PARTS if note.text < 0 else self._inferred[note.role].fits[note.text]

    def _group(self, note: _Note) -> _Group:
        fit = self._fit(note)
        return (note.role, fit.template) if isinstance(fit, _Fit) else (None, -1)

    def _version(self, note: _Note) -> tuple[_Version, dict[str, Any]]:
        """The version, and the parameters that all its calls share."""
        group = self._group(note)
        key = (group, note.parameters)
        if key not in self._given:
            own = self._varying[group]
            given = {name: value for name, value in json.loads(note.parameters).items() if name not in own}
            self._given[key] = ((*group, canonical(given)), given)
        return self._given[key]

    def _prompt(
        self, note: _Note, fit: _Fit | None, shots: tuple[Message, ...], given: Mapping[str, Any]
    ) -> ChatPrompt:
        named = {name: value for name, value in given.items() if name in PARAMETERS}
        extra = {name: value for name, value in given.items() if name not in PARAMETERS}
        if fit is None or note.role is None:
            return ChatPrompt(variables=(), few_shot=shots, **named, extra=extra)
        template = self._inferred[note.role].templates[fit.template]
        return ChatPrompt(
            system=template.text, variables=template.slots, role=note.role, few_shot=shots, **named, extra=extra
        )


class _Inferred:
    """The templates behind one role's instructions, and for each distinct text its fit, a reason, or None."""

    def __init__(self, role: Role, texts: _Texts, notes: list[_Note]) -> None:
        distinct = list(texts.place)
        read = infer([distinct[at] for at in texts.of_each], hints=[texts.hints.get(at) for at in texts.of_each])
        self.templates = read.templates
        self.fits: list[_Fit | str | None] = [None] * len(distinct)
        for at, rendering in zip(texts.of_each, read.renderings, strict=True):
            if rendering.template is not None:
                self.fits[at] = _Fit(rendering.template, rendering.variables)
            elif role != "user":  # a question that is like no other is no fault
                self.fits[at] = rendering.refusal
        if role == "user":
            behind: dict[int, list[_Note]] = defaultdict(list)
            for note in notes:
                if isinstance(fit := self.fits[note.text], _Fit):
                    behind[fit.template].append(note)
            worth = [_is_worth(found, behind[number]) for number, found in enumerate(read.found)]
            self.fits = [fit if isinstance(fit, _Fit) and worth[fit.template] else None for fit in self.fits]
            self.unproven = 0
        else:
            self.unproven = sum(not found.proven for found in read.found)


def _is_worth(found: Found, notes: list[_Note]) -> bool:
    """Whether what users' first messages share are the application's instructions, and not one user's own words.

    Long and often enough; from several callers, where callers are recorded; and differing from call to call, unless
    another message of the user follows, which is what nobody writes by hand.
    """
    constant = "".join(parts(found.template.text, found.template.slots)[::2])
    if found.texts < ENOUGH or len(constant) < WORTH or len(constant.split()) < WORDS:
        return False
    callers = {note.caller for note in notes} - {None}
    if callers and len(callers) < CALLERS:
        return False
    return found.renderings >= ENOUGH or all(note.followed for note in notes)


@dataclass(slots=True)
class _Seen:
    """One version, counted while its samples are written."""

    prompt: ChatPrompt
    count: int = 0
    texts: set[int] = field(default_factory=set)
    first: datetime | None = None
    last: datetime | None = None
    declared: Counter[str] = field(default_factory=Counter)

    def add(self, exchange: Exchange, note: _Note) -> None:
        self.count += 1
        self.texts.add(note.text)
        if note.time is not None:
            self.first = note.time if self.first is None else min(self.first, note.time)
            self.last = note.time if self.last is None else max(self.last, note.time)
        if exchange.template_version:
            self.declared[exchange.template_version] += 1

    def done(self) -> SeenPrompt:
        declared = self.declared.most_common(1)[0][0] if self.declared else None
        return SeenPrompt(self.prompt, self.count, len(self.texts), self.first, self.last, declared)


class _Scales:
    """From readings to scores, each metric on one scale for the whole checkpoint."""

    def __init__(
        self,
        numbers: Mapping[tuple[str, bool], Counter[float]],
        evaluators: Iterable[EvalSpec],
        named: Mapping[str, tuple[float, float]],
    ) -> None:
        specs = {spec.name: spec for spec in evaluators}
        for name, ends in named.items():
            if len(ends) != 2 or not all(map(math.isfinite, ends)) or ends[0] == ends[1]:
                raise UsageError(f"The scale of {name!r} has no length.", remedy="Name its lowest and highest value.")
        if unknown := sorted(set(named) - {name for name, _ in numbers} - set(specs)):
            known = ", ".join(sorted({name for name, _ in numbers})) or "no metric"
            raise UsageError(f"No verdict is named {unknown[0]!r}.", remedy=f"The traces carry {known}.")
        self._numbers = numbers
        self._scales: dict[tuple[str, bool], Scale] = {
            (name, human): scale_of(seen, spec=None if human else specs.get(name), named=named.get(name))
            for (name, human), seen in numbers.items()
        }
        self._specs, self._named = specs, named

    def onto(self, sample: Sample, exchange: Exchange) -> Sample:
        scores, human = self._scores(exchange, human=False), self._scores(exchange, human=True)
        return replace(sample, scores=scores, human=human) if scores or human else sample

    def _scores(self, exchange: Exchange, *, human: bool) -> dict[str, Score]:
        """One score per name: of several identifiers the latest verdict, which says how many others there are."""
        by_name: dict[str, list[Reading]] = defaultdict(list)
        for reading in exchange.readings:
            if (reading.kind == "HUMAN") == human:
                by_name[reading.name].append(reading)
        scores = {}
        for name, readings in by_name.items():
            latest = max(readings, key=lambda each: (each.time is not None, each.time or 0, each.identifier))
            score = self._scale(name, human).score(latest)
            if len(readings) > 1:
                score = replace(score, details={**thaw(score.details), "others": len(readings) - 1})
            scores[name] = score
        return scores

    def _scale(self, name: str, human: bool) -> Scale:
        key = (name, human)
        if key not in self._scales:  # labels only
            self._scales[key] = scale_of((), spec=None if human else self._specs.get(name), named=self._named.get(name))
        return self._scales[key]

    def notes(self) -> list[str]:
        said = []
        for (name, human), scale in sorted(self._scales.items()):
            whose = f"people's {name}" if human else name
            if scale.taken_from == "data":
                said.append(
                    f"The scale of {whose} was taken from its numbers, {scale.low:g} to {scale.high:g}; name it in "
                    "`scales` if it is another."
                )
            if scale.taken_from == "caller" and scale.direction == "minimize":
                said.append(f"Less is taken to be better for {whose}, as its scale says.")
            if scale.taken_from in ("data", "unit") and not human and name not in self._specs:
                said.append(f"Larger is taken to be better for {whose}; name (1, 0) in `scales` if it is not.")
            if scale.taken_from == "nothing":
                said.append(f"The verdicts of {whose} are labels without numbers: they give no score.")
            if len(self._numbers.get((name, human), ())) == 1 and self._numbers[name, human].total() >= ENOUGH:
                said.append(f"Every verdict of {whose} is the same: it cannot tell better from worse.")
        return said


def _instructions(messages: tuple[Message, ...]) -> tuple[Role | None, str | None]:
    """Who gives the instructions, and their text; no text if they are more than one."""
    first: Mapping[str, Any] = messages[0]
    role = first.get("role")
    text = first.get("content") if set(first) <= {"role", "content"} else None
    if role in ("system", "developer"):
        return role, text if isinstance(text, str) and text else None
    return ("user", text) if role == "user" and isinstance(text, str) and text else (None, None)


def _hint(exchange: Exchange) -> Hint | None:
    if exchange.template is None and not exchange.template_variables:
        return None
    given = exchange.template_variables.items()
    values = {str(name): str(value) for name, value in given if isinstance(value, str | int | float)}
    return Hint(template=exchange.template, variables=values, version=exchange.template_version)


def _parameters(exchange: Exchange) -> dict[str, Any]:
    """What was asked for besides the messages; null says what leaving out says."""
    return {
        name: thaw(value)
        for name, value in exchange.parameters.items()
        if value is not None and name not in DELIVERY | TRANSPORT
    }


def _varying(notes: list[_Note]) -> frozenset[str]:
    """The parameters that belong to the call and not to the version."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for text, count in Counter(note.parameters for note in notes).items():
        for name, value in json.loads(text).items():
            values[name][canonical(value)] += count
    many = min(max(MANY, len(notes) // 20), MOST)
    # An empty list is sent, and means another thing than none; a prompt has no place for it.
    empty = {name for name, seen in values.items() if set(seen) & {"[]", "{}", '""'}}
    return frozenset({name for name, seen in values.items() if len(seen) > many} | empty | (OWN & set(values)))


def _repeated(role: Role | None, notes: list[_Note]) -> int:
    """How many messages after the instructions every call of a version repeats: its few-shot turns."""
    if role is None or len(notes) < ENOUGH:
        return 0
    shortest = min(min(note.length for note in notes) - 1, LONGEST_HEAD - 1)
    heads = [note.head for note in notes]
    same = list(takewhile(lambda at: len({head[at] for head in heads}) == 1, range(max(shortest, 0))))
    # What follows must differ, or these are the turns of one long conversation.
    return len(same) if same and len({head[len(same)] for head in heads}) >= ENOUGH else 0


def _makes_again(prompt: ChatPrompt, sample: Sample, exchange: Exchange) -> bool:
    try:
        made = {**prompt.request(sample.chat_history, **sample.variables), **thaw(sample.parameters)}
    except (UsageError, MissingVariable):
        return False
    asked = {**_parameters(exchange), "messages": exchange.messages}
    return canonical(made) == canonical(asked)


def _about(prompts: list[SeenPrompt], first: _Survey, unproven: int) -> list[str]:
    said = []
    if len(prompts) > 1:
        said.append(f"The window holds {len(prompts)} versions of the prompt; each is kept apart.")
    if none := sum(seen.count for seen in prompts if not seen.prompt.system):
        said.append(f"{none} samples have no system prompt and no instructions in common.")
    if unproven:
        said.append(
            f"{unproven} of the templates rest on few different renderings: a slot may hide in their constant text."
        )
    if first.inexact:
        said.append(
            f"{first.inexact} requests were put together from what the trace recorded of them: it holds no body."
        )
    return said


def _nothing(origin: Origin, aside: Counter[str]) -> UsageError:
    if not aside:
        return UsageError(
            "There is no call of a model in what was read.", remedy="Choose another window, or another source."
        )
    counted = "; ".join(f"{reason} ({count})" for reason, count in aside.most_common(5))
    return UsageError(
        f"No call can become a sample: {counted}.", remedy="Choose another window, or mend what keeps them out."
    )
