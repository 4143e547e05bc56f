"""Sample and EvalSpec: the plain records that the doors hand inwards.

A door (Phoenix, a file) never hands on its own objects; it fills these. They hold no client, no frame and no method
that reaches outside, so whatever comes after a door runs without the world behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from dspy_selfimprove.message import FrozenDict, Message, digest, freeze, freeze_messages, text_of, thaw
from dspy_selfimprove.score import Score
from dspy_selfimprove.wire import Tokens

Direction: TypeAlias = Literal["maximize", "minimize", "neutral"]
EvalKind: TypeAlias = Literal["LLM", "CODE", "HUMAN"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One exchange of production: what was asked, what was answered, and what is known of how good it was.

    `chat_history` leaves the system prompt out: that is what will be improved; `prompt` names its version and
    `variables` what was filled into it. `weight` undoes the bias of how the sample was drawn: 1 means drawn as
    production has it. `human` holds what people said of it, apart from the metrics' `scores`; `parameters` what this
    one call sent besides its prompt's own (a seed, an end user's id); `cluster` the topic it was put under.

    >>> turn = {"role": "user", "content": "Where is my parcel?"}
    >>> reply = {"role": "assistant", "content": "On its way."}
    >>> sample = Sample(id="T1", chat_history=(turn,), output=reply, scores={"brevity": Score(1.0)})
    >>> sample.scores["brevity"].value, sample.weight
    (1.0, 1.0)
    >>> Sample.from_json(sample.to_json()) == sample
    True
    """

    id: str
    chat_history: tuple[Message, ...]
    output: Message
    scores: Mapping[str, Score] = field(default_factory=FrozenDict)
    variables: Mapping[str, str] = field(default_factory=FrozenDict)
    prompt: str | None = None
    trace_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    time: datetime | None = None
    weight: float = 1.0
    human: Mapping[str, Score] = field(default_factory=FrozenDict)
    parameters: Mapping[str, Any] = field(default_factory=FrozenDict)
    cluster: int | None = None
    seconds: float | None = None
    tokens: Tokens | None = None
    dollars: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=FrozenDict)
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "chat_history", freeze_messages(self.chat_history))
        object.__setattr__(self, "output", freeze(self.output))
        object.__setattr__(self, "scores", FrozenDict(self.scores))
        object.__setattr__(self, "human", FrozenDict(self.human))
        for name in ("variables", "parameters", "metadata", "tags"):
            object.__setattr__(self, name, freeze(getattr(self, name)))

    @property
    def asked(self) -> str:
        """The words by which samples are compared: the conversation's, or else what was filled into the prompt.

        An image or a sound counts as one word of its own, so that "What is this?" of two pictures are two questions.
        """
        words: list[str] = []
        for message in self.chat_history:
            if message["role"] not in ("system", "developer"):
                content = message.get("content")
                parts = () if content is None or isinstance(content, str) else content
                words += [text_of(message), *(_word(part) for part in parts if part.get("type") != "text")]
        text = "\n".join(filter(None, words)) or "\n".join(map(str, self.variables.values()))
        return text if text.strip() else _word(self.chat_history)

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads back to an equal sample; what is at its default is left out.

        Write it in ASCII (`json.dumps` does), for a message may hold half of an emoji. Of a time zone the offset is
        kept, not the name.
        """
        data: dict[str, Any] = {"id": self.id, "chat_history": thaw(self.chat_history), "output": thaw(self.output)}
        for name in ("prompt", "trace_id", "session_id", "user_id", "cluster", "seconds", "dollars"):
            if (value := getattr(self, name)) is not None:
                data[name] = value
        for name in ("variables", "parameters", "metadata", "tags"):
            if value := getattr(self, name):
                data[name] = thaw(value)
        for name in ("scores", "human"):
            if value := getattr(self, name):
                data[name] = {metric: score.to_json() for metric, score in value.items()}
        if self.weight != 1.0:
            data["weight"] = self.weight
        if self.time is not None:
            data["time"] = self.time.isoformat()
        if self.tokens is not None:
            data["tokens"] = asdict(self.tokens)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:
        """The sample that `to_json` wrote; fields of a later version are left out."""
        known = {entry.name for entry in fields(cls)}
        given = {name: value for name, value in data.items() if name in known and value is not None}
        for name in ("scores", "human"):
            if name in given:
                given[name] = {metric: Score.from_json(score) for metric, score in given[name].items()}
        if "time" in given:
            given["time"] = datetime.fromisoformat(given["time"])
        if "tokens" in given:
            given["tokens"] = Tokens(**given["tokens"])
        return cls(**given)


def _word(value: object) -> str:
    return digest(value).translate(_LETTERS)  # with digits in it, it would count as a number like any other


_LETTERS: Final = str.maketrans("0123456789", "ghijklmnop")


@dataclass(frozen=True, slots=True, eq=False)
class EvalSpec:
    """An evaluator as data: enough to say what it measures, to tell its versions apart and to build it again.

    An LLM evaluator is its messages, its choices (label to number; None where a label carries none) and the model it
    asks. A code evaluator is where to import it from (`source`, as `package.module:name`). Field names are Phoenix's
    own. A `template_format` of None means that each text shows its own, which is how Phoenix reads a list that mixes
    them. `unrecorded` names what data cannot hold (a function in the input mapping, the arguments of a class): if it is
    not empty, one built again may judge otherwise. Not covered: the body of a code evaluator, and keys or addresses of
    a model (never recorded).

    >>> asked = {"role": "user", "content": "Is this reply good or bad? {{output}}"}
    >>> spec = EvalSpec("tone", "LLM", messages=(asked,), choices={"good": 1, "bad": 0})
    >>> EvalSpec.from_json(spec.to_json()) == spec
    True
    """

    name: str
    kind: EvalKind
    optimization_direction: Direction = "maximize"
    messages: tuple[Message, ...] = ()
    template_format: Literal["mustache", "f-string"] | None = "mustache"
    choices: Mapping[str, float | None] = field(default_factory=FrozenDict)
    descriptions: Mapping[str, str] = field(default_factory=FrozenDict)
    include_explanation: bool = True
    provider: str | None = None
    model: str | None = None
    invocation_parameters: Mapping[str, Any] = field(default_factory=FrozenDict)
    input_mapping: Mapping[str, str] = field(default_factory=FrozenDict)
    source: str | None = None
    unrecorded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", freeze_messages(self.messages))
        for name in ("choices", "descriptions", "invocation_parameters", "input_mapping", "unrecorded"):
            object.__setattr__(self, name, freeze(getattr(self, name)))

    @property
    def version(self) -> str:
        """A hash of everything that can change a verdict; the order in which choices are offered is part of it.

        What is left at its default is left out, so that a field added later gives no evaluator a new version.
        """
        usual = EvalSpec(self.name, self.kind).to_json()
        chosen = {name: value for name, value in self.to_json().items() if value != usual[name]}
        about = {"name": self.name, "kind": self.kind, **chosen}
        return digest({**about, "choices": [list(choice) for choice in self.choices.items()]})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EvalSpec) and self.version == other.version

    def __hash__(self) -> int:
        return hash(self.version)

    def to_json(self) -> dict[str, Any]:
        return {entry.name: thaw(getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvalSpec:
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})
