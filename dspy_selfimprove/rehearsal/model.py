"""RehearsalModel: one stand-in LLM behind one door, `complete(body)`, in the words of the chat-completions API.

It is honest in two ways. It sees only the text it is sent: no world, no score, no key is within its reach. And it is
deterministic: an answer depends on the model's seed, on the request, and on how many times this same request was asked
before, so that asking again gives the spread a real model gives, and running again gives the same run. At temperature
0, or with a `seed` in the request, asking again gives the same answer.

`max_tokens` and `stop` only cut: the same request with a larger limit begins with the same words. Tokens are counted
as a quarter of the characters, rounded up, plus four for each message; `created` is always 0, since a clock would make
two equal runs differ.

Not covered: streaming (the server cuts a finished answer into pieces), log probabilities, images, several tool calls in
one answer. The quality of any real model: this shows that the machinery works, and nothing about a model.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from dspy_selfimprove.message import digest, text_of
from dspy_selfimprove.rehearsal.reading import Answer, Reading, Role, extracted, read, render
from dspy_selfimprove.rehearsal.temper import Temper

# A role reads the request and names a value for each output field it can; `render` makes them fit the form.
Player: TypeAlias = Callable[[Reading, Temper, random.Random], Mapping[str, str]]

_SILENT = ("n", "stream", "stream_options", "user", "metadata", "store", "max_tokens", "max_completion_tokens", "stop")


class RehearsalModel:
    """A stand-in LLM. Safe to share between threads."""

    def __init__(self, *, seed: int = 0, temper: Temper | None = None) -> None:
        self.seed = seed
        self.temper = temper or Temper()
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer the body of a chat-completion request with the body of a chat completion."""
        count = max(1, int(body.get("n") or 1))
        question = digest({key: value for key, value in body.items() if key not in _SILENT}, 32)
        first = self._first_ask(question, count, body)
        reading = read(body)
        found = extracted(reading)
        play = _player(reading.role)
        choices = []
        for index in range(count):
            ask = 0 if reading.temperature == 0.0 else first + index
            dice = random.Random(f"{self.seed}/{question}/{ask}")
            answer = render(reading, play(reading, self.temper, dice) if found is None else found)
            choices.append(_choice(index, answer, body, f"{question}{ask}"))
        asked = sum(4 + _tokens(text_of(message)) for message in body["messages"])
        said = sum(_tokens(_said(choice)) for choice in choices)
        return {
            "id": f"chatcmpl-{digest([self.seed, question, first], 24)}",
            "object": "chat.completion",
            "created": 0,
            "model": str(body.get("model") or "rehearsal"),
            "choices": choices,
            "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
        }

    def _first_ask(self, question: str, count: int, body: Mapping[str, Any]) -> int:
        if body.get("temperature") == 0 or body.get("seed") is not None:
            return 0
        with self._lock:
            first = self._asked[question]
            self._asked[question] += count
        return first


def _player(role: Role) -> Player:
    # Imported when first played: a server that never coaches never reads the coach.
    match role:
        case "worker":
            from dspy_selfimprove.rehearsal.worker import work

            return work
        case "judge":
            from dspy_selfimprove.rehearsal.judge import judge

            return judge
        case "coach":
            from dspy_selfimprove.rehearsal.coach import coach

            return coach


def _choice(index: int, answer: Answer, body: Mapping[str, Any], key: str) -> dict[str, Any]:
    if answer.tool_call is not None:
        function = {"name": answer.tool_call.name, "arguments": answer.tool_call.arguments}
        calls = [{"id": f"call_{digest(key, 20)}", "type": "function", "function": function}]
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
        return {"index": index, "message": message, "finish_reason": "tool_calls", "logprobs": None}
    text, reason = _cut(answer.text or "", body)
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "finish_reason": reason, "logprobs": None}


def _cut(text: str, body: Mapping[str, Any]) -> tuple[str, str]:
    stop = body.get("stop") or ()
    stops = [stop] if isinstance(stop, str) else list(stop)
    ends = [at for at in (text.find(mark) for mark in stops if mark) if at >= 0]
    text = text[: min(ends)] if ends else text
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and _tokens(text) > int(limit):
        return text[: 4 * int(limit)], "length"
    return text, "stop"


def _tokens(text: str) -> int:
    return -(-len(text) // 4)


def _said(choice: Mapping[str, Any]) -> str:
    message = choice["message"]
    calls = message.get("tool_calls") or ()
    return (message["content"] or "") + "".join(call["function"]["arguments"] for call in calls)
