"""The stand-in model as a service: latency, faults and counters around `complete`, and DSPy's two engines over it.

A request gets the same fate and the same answer in process as over HTTP, since both go through `Service`. Fate is
drawn for each attempt at a request (fault.py). A request that fails before its answer never reaches the model, so a
retry gets the answer that would have come in the first place: faults cost time and attempts, and change no result.
The two exceptions are answers themselves: an empty one and one that is cut off.

`lm()` is for programs that need no wire: a call costs no sockets and no HTTP client. Use server.py to try what those
do. Not covered here: a connection hung for longer than a caller is patient. An engine has no timeout of its own, so
`timeout` holds the call for `Faults.hang` seconds and then raises what a client's timeout would.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from dspy_selfimprove.message import digest, thaw
from dspy_selfimprove.rehearsal.fault import Fault, Faults, Latency, uniform
from dspy_selfimprove.rehearsal.reading import read
from dspy_selfimprove.wire import BODY

if TYPE_CHECKING:
    import dspy
    from dspy.lm15 import Request, Response


class StandIn(Protocol):
    """What is behind the service: a chat-completion request in, a chat completion out. Called from many threads."""

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Counts:
    """What a service has seen since it started or was last reset.

    `errors` holds the faults by kind, and besides them what was refused and what its caller gave up. An empty or cut
    answer is both an error and an answer. `seconds` adds up the time of all calls, `peak` is the most at one time.
    """

    calls: int
    answers: int
    roles: Mapping[str, int]
    errors: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int
    in_flight: int
    peak: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Counters:
    """The book behind `Counts`. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._clear()

    def _clear(self) -> None:
        self._calls = self._answers = self._prompt = self._completion = 0
        self._seconds = 0.0
        self._roles: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._peak = self._in_flight

    def counts(self) -> Counts:
        with self._lock:
            return Counts(
                calls=self._calls,
                answers=self._answers,
                roles=dict(self._roles),
                errors=dict(self._errors),
                prompt_tokens=self._prompt,
                completion_tokens=self._completion,
                in_flight=self._in_flight,
                peak=self._peak,
                seconds=self._seconds,
            )

    def reset(self) -> None:
        """Start again from zero; what is in flight stays in flight."""
        with self._lock:
            self._clear()

    def enter(self) -> None:
        with self._lock:
            self._calls += 1
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)

    def leave(self, seconds: float, error: str | None) -> None:
        with self._lock:
            self._in_flight -= 1
            self._seconds += seconds
            if error is not None:
                self._errors[error] += 1

    def answered(self, role: str, usage: Mapping[str, int]) -> None:
        with self._lock:
            self._answers += 1
            self._roles[role] += 1
            self._prompt += usage.get("prompt_tokens", 0)
            self._completion += usage.get("completion_tokens", 0)

    def refused(self, why: str) -> None:
        """A request that was turned away before anything else."""
        with self._lock:
            self._calls += 1
            self._errors[why] += 1


class Service:
    """A stand-in model with the manners of a remote one."""

    def __init__(
        self, model: StandIn, *, seed: int = 0, latency: Latency | None = None, faults: Faults | None = None
    ) -> None:
        self.model, self.seed = model, seed
        self.latency, self.faults = latency or Latency(), faults or Faults()
        self.counters = Counters()
        self._sent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def call(self, body: Mapping[str, Any]) -> Call:
        """One attempt at a request: a context manager that counts it, told in advance what will happen to it."""
        question = digest(body, 32)
        with self._lock:
            attempt = self._sent[question]
            self._sent[question] += 1
        return Call(self, body, f"{question}/{attempt}")


class Call:
    """One attempt. Wait `seconds`, then look at `fault`: if it leaves something to answer, `answer` gives it."""

    def __init__(self, service: Service, body: Mapping[str, Any], key: str) -> None:
        self.key = key
        self.fault = service.faults.draw(service.seed, key)
        self._service, self._body = service, body

    @property
    def seconds(self) -> float:
        match self.fault:
            case Fault.RATE_LIMIT:
                return 0.0
            case Fault.TIMEOUT:
                return self._service.faults.hang
            case _:
                return self._service.latency.draw(self._service.seed, self.key)

    @property
    def status(self) -> int:
        """Which of the two faces a server error shows."""
        return 500 if uniform(self._service.seed, "status", self.key) < 0.5 else 503

    @property
    def retry_after(self) -> float:
        return self._service.faults.retry_after

    def answer(self) -> dict[str, Any]:
        """The completion, with what the fault does to it."""
        completion = self._service.model.complete(self._body)
        if self.fault in (Fault.EMPTY, Fault.CUT_OFF):
            completion = _shortened(completion, keep=0.0 if self.fault is Fault.EMPTY else 0.5)
        self._service.counters.answered(read(self._body).role, completion["usage"])
        return completion

    def __enter__(self) -> Call:
        self._start = time.monotonic()
        self._service.counters.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        why: str | None = None
        if self.fault is not None:
            why = str(self.fault)
        elif kind is not None:
            why = "failed" if issubclass(kind, Exception) else "given_up"
        self._service.counters.leave(time.monotonic() - self._start, why)


def _shortened(completion: Mapping[str, Any], *, keep: float) -> dict[str, Any]:
    """The completion with only this share of every answer: none of it, or a part that stops in the middle."""
    choices = []
    for choice in completion["choices"]:
        message = dict(choice["message"])
        if not keep:
            message = {"role": "assistant", "content": "", "refusal": None}
        elif calls := message.get("tool_calls"):
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _part(call["function"]["arguments"], keep)}}
                for call in calls
            ]
        else:
            message["content"] = _part(message["content"] or "", keep)
        choices.append({**choice, "message": message, "finish_reason": "length" if keep else "stop"})
    said = int(completion["usage"]["completion_tokens"] * keep)
    asked = completion["usage"]["prompt_tokens"]
    usage = {**completion["usage"], "completion_tokens": said, "total_tokens": asked + said}
    return {**completion, "choices": choices, "usage": usage}


def _part(text: str, keep: float) -> str:
    return text[: int(len(text) * keep)]


class _Skills:
    """What DSPy's adapters ask an engine before they use tools or a schema."""

    supports_function_calling = True
    supports_response_schema = True
    supports_reasoning = False
    supported_params = frozenset(
        {"temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "user", "n"}
        | {"response_format", "tools", "tool_choice", "parallel_tool_calls"}
    )

    def __init__(self, service: Service) -> None:
        self.service = service

    def counts(self) -> Counts:
        return self.service.counters.counts()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Skills:
        # Optimizers copy programs, LM and all. A copy talks to the same service, as it would over a network.
        return self


class Engine(_Skills):
    """What `dspy.LM` calls from a thread."""

    def complete(self, request: Request) -> Response:
        with self.service.call(_body(request)) as call:
            time.sleep(call.seconds)
            return _response(request, call)

    def stream(self, request: Request) -> Iterator[Any]:
        from dspy.lm15 import response_to_events

        yield from response_to_events(self.complete(request))


class AsyncEngine(_Skills):
    """What `dspy.LM` awaits."""

    async def complete(self, request: Request) -> Response:
        with self.service.call(_body(request)) as call:
            await asyncio.sleep(call.seconds)
            return _response(request, call)

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        from dspy.lm15 import response_to_events

        for event in response_to_events(await self.complete(request)):
            yield event


def lm(
    model: StandIn | None = None,
    *,
    name: str = "rehearsal/worker",
    seed: int = 0,
    latency: Latency | None = None,
    faults: Faults | None = None,
    **parameters: Any,
) -> dspy.LM:
    """A `dspy.LM` that is answered by the stand-in, in this process; `lm.engine.counts()` says what it was asked.

    `parameters` are DSPy's own (temperature, max_tokens, num_retries, ...). DSPy's cache is off, because asking again
    is meant to give another answer.
    """
    import dspy

    if model is None:
        from dspy_selfimprove.rehearsal.model import RehearsalModel

        model = RehearsalModel(seed=seed)
    service = Service(model, seed=seed, latency=latency, faults=faults)
    settings = {"cache": False, **parameters}
    return dspy.LM(name, engine=Engine(service), async_engine=AsyncEngine(service), **settings)


def _body(request: Request) -> dict[str, Any]:
    name = request.model.partition("/")[2] or request.model
    own = (request.config.extensions or {}).get(BODY)
    if own is not None:
        return {**thaw(own), "model": name}
    # DSPy keeps the writer of chat-completion bodies in a module of its own; there is no public door to it.
    from dspy.clients.lm15_boundary import request_kwargs

    return {**request_kwargs(request, "chat"), "model": name}


def _response(request: Request, call: Call) -> Response:
    """The answer as DSPy's Response (the first choice of several), or the error an engine would raise."""
    from dspy.lm15 import response_from_openai_chat

    _raise_fault(call)
    completion = call.answer()
    response: Response = response_from_openai_chat(completion, model=request.model, choice=0)
    choice = completion["choices"][0]
    # The same two entries as the engine in model.py leaves, so that a program reads either.
    return replace(response, provider_data={"message": choice["message"], "finish_reason": choice["finish_reason"]})


def _raise_fault(call: Call) -> None:
    from dspy import lm15

    match call.fault:
        case Fault.RATE_LIMIT:
            raise lm15.RateLimitError("Rehearsed: too many requests.", status=429, retry_after=call.retry_after)
        case Fault.SERVER_ERROR:
            raise lm15.ServerError("Rehearsed: the service failed.", status=call.status)
        case Fault.TIMEOUT:
            raise lm15.TimeoutError("Rehearsed: no answer in time.")
        case Fault.DROPPED:
            raise lm15.TransportError("Rehearsed: the connection closed without an answer.")
        case Fault.TORN:
            raise lm15.TransportError("Rehearsed: the connection closed in the middle of the answer.")
        case Fault.MALFORMED:
            raise lm15.ProviderError("Rehearsed: the answer is not JSON.", status=200)
