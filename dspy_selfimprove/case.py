"""Case: what one verdict is about, an example and the answer to it, and where the inputs of a metric are found in them.

An example is a `dspy.Example`, a Sample or a mapping; an answer a `dspy.Prediction`, a mapping or a text. Without an
answer the case is the recorded one: what production said at the time.

A metric asks for its inputs by name, and they are looked for in this order:

    1. the fields of the answer (`answer`, `context`, `seconds`, ...)
    2. names that mean the same everywhere
         output             the text of the answer; of a program with one output field besides its reasoning, that field
         message            the whole reply, tool calls included
         input              the question as text: the conversation, or the example's inputs
         reference, expected    the answer the example holds
         reference_message  the same as a whole reply
         example, gold, prediction, pred    both as they are
    3. the fields of the example, then the variables of its prompt

Not covered: images and audio in `input` and `output`, which are texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import text_of, thaw
from dspy_selfimprove.sample import Sample

CHAT: Final = ("output", "message", "finish_reason")  # what a chat program's answer holds
# What an example holds for our own use; never the answer that was expected.
_BOOKKEEPING: Final = frozenset({"id", "weight", "scores", "human", "cluster", "metadata", "tags", "dspy_uuid"})
# Beside the answer itself: how it was come by, and what an evaluation measured of it.
_BESIDE: Final = frozenset({"reasoning", "rationale", "trajectory", "seconds", "tokens", "dollars"})
_WHOLE: Final = ("example", "gold", "prediction", "pred")
_ABSENT: Final = object()


@dataclass(frozen=True, eq=False)
class Case:
    """One example with one answer. The last three are what DSPy passes along, for metrics that read them."""

    example: Any
    answer: Any = None
    trace: Any = None
    pred_name: str | None = None
    pred_trace: Any = None

    @cached_property
    def given(self) -> dict[str, Any]:
        """The fields of the example."""
        example = self.example
        if isinstance(example, Sample):
            named = ("id", "weight", "seconds", "tokens", "dollars", "metadata", "tags", "cluster")
            return {
                "conversation": thaw(example.chat_history),
                "variables": thaw(example.variables),
                "parameters": thaw(example.parameters),
                "output": text_of(example.output),
                "message": thaw(example.output),
                "scores": dict(example.scores),
                "human": dict(example.human),
                **{name: thaw(getattr(example, name)) for name in named},
            }
        return _fields(example, "an example", "a dspy.Example, a Sample or a mapping")

    @cached_property
    def said(self) -> dict[str, Any]:
        """The fields of the answer."""
        if isinstance(self.answer, str):
            return {"output": self.answer}
        if self.answer is not None:
            return _fields(self.answer, "an answer", "a dspy.Prediction, a mapping or a text")
        if "output" not in self.given and "message" not in self.given:
            raise UsageError("There is no answer to judge.", remedy="Pass the prediction, or an example with `output`.")
        kept = ("output", "message", "seconds", "tokens", "dollars")
        return {name: self.given[name] for name in kept if self.given.get(name) is not None}

    @property
    def is_recorded(self) -> bool:
        """Whether the answer is the one production gave."""
        if self.answer is None:
            return True
        recorded = self.given.get("message")
        calls = recorded.get("tool_calls") if isinstance(recorded, Mapping) else None
        message = self.said.get("message")
        called = message.get("tool_calls") if isinstance(message, Mapping) else calls
        text = self.given.get("output", text_of(recorded) if isinstance(recorded, Mapping) else None)
        return bool(self.get("output", None) == text and (called or None) == (calls or None))

    @cached_property
    def _inputs(self) -> frozenset[str]:
        """The names of the example's inputs; empty where it does not say."""
        if isinstance(self.example, Sample):
            return frozenset({"conversation", "variables", "parameters"})
        return frozenset(getattr(self.example, "_input_keys", None) or ())

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that can be asked for by name, the whole example and answer aside."""
        standard = ("output", "message", "input", "reference", "expected", "reference_message")
        found = [name for name in standard if self._standard(name) is not _ABSENT]
        own = [name for name in self.given if name not in _BOOKKEEPING and name not in standard]
        return tuple(dict.fromkeys([*found, *self.said, *own, *self._variables]))

    def get(self, name: str, default: Any) -> Any:
        """What a name stands for in this case, or `default`."""
        if name in _WHOLE:
            return self._whole(name)
        if name in self.said:
            return self.said[name]
        if (found := self._standard(name)) is not _ABSENT:
            return found
        return self.given.get(name, self._variables.get(name, default))

    def has(self, name: str) -> bool:
        return self.get(name, _ABSENT) is not _ABSENT

    def shown(self, name: str) -> Any:
        """The same for a judge, who sees text: an output comes with its tool calls."""
        message = self.said.get("message")
        if name == "output" and isinstance(message, Mapping) and message.get("tool_calls"):
            return transcript([message])
        return self.get(name, None)

    @cached_property
    def _variables(self) -> Mapping[str, Any]:
        variables = self.given.get("variables")
        return variables if isinstance(variables, Mapping) else {}

    def _whole(self, name: str) -> Any:
        """The example or the answer as DSPy's own kind, which is what a DSPy metric expects."""
        import dspy

        if name in ("example", "gold"):
            if isinstance(self.example, dspy.Example):
                return self.example
            return dspy.Example(**self.given).with_inputs(*self._inputs)
        return self.answer if isinstance(self.answer, dspy.Example) else dspy.Prediction(**self.said)

    def _standard(self, name: str) -> Any:
        match name:
            case "output":
                return self._output()
            case "message":
                return self.said.get("message", _ABSENT)
            case "input":
                return self._input()
            case "reference" | "expected":
                return self._reference()
            case "reference_message":
                return self.given.get("message", _ABSENT)
        return _ABSENT

    def _output(self) -> Any:
        if "output" in self.said:
            return self.said["output"]
        if isinstance(message := self.said.get("message"), Mapping):
            return text_of(message)
        fields = [name for name in self.said if name not in _BESIDE]
        return self.said[fields[0]] if len(fields) == 1 else _ABSENT

    def _input(self) -> Any:
        if "input" in self.given:
            return self.given["input"]
        if isinstance(turns := self.given.get("conversation"), list | tuple):
            return transcript(turns)
        asked = {name: self.given[name] for name in self.given if name in self._inputs}
        if len(asked) == 1:
            return next(iter(asked.values()))
        return "\n".join(f"{name}: {value}" for name, value in asked.items()) if asked else _ABSENT

    def _reference(self) -> Any:
        for name in ("reference", "expected"):
            if name in self.given:
                return self.given[name]
        labels = [name for name in self.given if name not in self._inputs and name not in _BOOKKEEPING]
        for name in ("output", *self.said):
            if name in labels and name != "message" and name not in _BESIDE:
                return self.given[name]
        return self.given[labels[0]] if len(labels) == 1 and self._inputs else _ABSENT


def transcript(turns: Iterable[Mapping[str, Any]]) -> str:
    """A conversation as text, tool calls included. One turn alone is its text.

    >>> transcript([{"role": "user", "content": "Where is it?"}])
    'Where is it?'
    """
    said = [(str(turn.get("role", "")), _turn(turn)) for turn in turns]
    if len(said) == 1:
        return said[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in said)


def _turn(turn: Mapping[str, Any]) -> str:
    calls = [
        f"[calls {inner.get('name')}({inner.get('arguments', '')})]"
        for call in turn.get("tool_calls") or ()
        if isinstance(inner := call.get("function"), Mapping)
    ]
    return "\n".join(filter(None, [text_of(turn), *calls]))


def _fields(source: Any, what: str, wanted: str) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    # dspy.Example is no Mapping, but has its keys; asking for them costs no import of dspy.
    keys = getattr(source, "keys", None)
    if not callable(keys):
        raise UsageError(f"{type(source).__name__} is not {what}.", remedy=f"Pass {wanted}.")
    return {name: source[name] for name in keys()}
