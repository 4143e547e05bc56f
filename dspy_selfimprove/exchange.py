"""Exchange, Step and Reading: what a door hands in of production, before anything is made of it.

An *exchange* is one call of a model with its answer, a *step* one call of a DSPy module with its fields, a *reading*
one verdict as somebody wrote it down, on whatever scale. They are as production had them: the system prompt is still
rendered, a score is still 4 of 5. A checkpoint turns exchanges into samples, which have neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from dspy_selfimprove.message import FrozenDict, Message, freeze, freeze_messages
from dspy_selfimprove.sample import EvalKind
from dspy_selfimprove.wire import Tokens


@dataclass(frozen=True, slots=True)
class Reading:
    """A verdict as it was written down, anybody's: a score on any scale, a label, or both."""

    span_id: str
    name: str
    kind: EvalKind
    identifier: str = ""
    score: float | None = None
    label: str | None = None
    explanation: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=FrozenDict)
    time: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", freeze(self.metadata))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One call of a model in production, and its answer.

    `request` is the body as it was sent: messages, and every parameter under the API's own name. Where the trace holds
    no body, it is put together from what OpenInference records of it, and `exact` is False. `others` are the answers
    after the first, of a call that asked for several. `template` and its company are what the application itself said
    of its prompt (`llm.prompt_template.*`), which few do.
    """

    id: str
    request: Mapping[str, Any]
    output: Message
    others: tuple[Message, ...] = ()
    exact: bool = True
    model: str | None = None
    finish_reason: str | None = None
    trace_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    time: datetime | None = None
    seconds: float | None = None
    tokens: Tokens | None = None
    dollars: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=FrozenDict)
    tags: tuple[str, ...] = ()
    template: str | None = None
    template_variables: Mapping[str, Any] = field(default_factory=FrozenDict)
    template_version: str | None = None
    readings: tuple[Reading, ...] = ()

    def __post_init__(self) -> None:
        for name in ("request", "output", "metadata", "tags", "template_variables"):
            object.__setattr__(self, name, freeze(getattr(self, name)))
        object.__setattr__(self, "others", freeze_messages(self.others))
        object.__setattr__(self, "readings", tuple(self.readings))

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self.request.get("messages", ()))

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything in the request besides its messages."""
        return {name: value for name, value in self.request.items() if name != "messages"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call of a DSPy module: the fields that went in and came out.

    `module` is the class as the trace names it (`ChainOfThought`), `path` the classes from the program down to it, and
    `instructions` what its predictor was told, where the trace shows it.
    """

    id: str
    module: str
    path: tuple[str, ...]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    instructions: str | None = None
    trace_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    time: datetime | None = None
    seconds: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=FrozenDict)
    tags: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, freeze(getattr(self, entry.name)))


@dataclass(frozen=True, slots=True)
class Aside:
    """A span that gives no exchange, and why, in words that can be counted: never with text from the trace."""

    id: str
    reason: str
