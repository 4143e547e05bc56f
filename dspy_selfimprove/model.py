"""The door to language models: which one plays which role, and how a call is made.

Three roles (worker, judge, coach) each name a Model; `Models` turns a role into a `dspy.LM`. Every call of every role
goes through one story, told once in `Caller._story` for threads and for asyncio alike:

    take a slot of the one pool → reserve room in the budget → send → settle → give the slot back
    an outage: give the slot back, wait (what the service asked for, else longer each time), try again

What is sent is a chat-completion body. A request that carries its own body (`Config.extensions["openai_chat"]`) goes
out unchanged, so production's messages, tools and parameters arrive as production sends them; any other DSPy request
is put into that form by DSPy. `openai/...`, and any server at an address of the user's that speaks the same protocol,
goes through the official client, every other provider through LiteLLM (wire.py).

What a failed call means is decided in outage.py.

Not covered: streaming to the caller and several answers to one request (both refused), the Responses API, a provider's
own tools (web search and the like), and prices of calls a service charged for without answering. LiteLLM sends no
tools unless the package `mcp` is installed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from dspy_selfimprove.budget import ROLES, Ledger, Reservation, Role
from dspy_selfimprove.errors import (
    BadAnswer,
    BudgetExhausted,
    Outage,
    RateLimited,
    Refused,
    SelfImproveError,
    TimedOut,
    Unavailable,
    UsageError,
)
from dspy_selfimprove.message import FrozenDict, freeze, thaw
from dspy_selfimprove.outage import failure_of
from dspy_selfimprove.slots import Slots
from dspy_selfimprove.wire import BODY, Body, Tokens, is_completion, response_of, tokens_of, use_local_prices, wire

if TYPE_CHECKING:
    import dspy
    from dspy.lm15 import Request, Response


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens. `cached` is for input the service had in its cache; None: as other input.

    >>> Price(input=0.15, output=0.60).of(Tokens(input=2_000_000, output=500_000))
    0.6
    """

    input: float
    output: float
    cached: float | None = None

    def of(self, usage: Tokens) -> float:
        fresh = usage.input - usage.cached
        cached = self.input if self.cached is None else self.cached
        return (fresh * self.input + usage.cached * cached + usage.output * self.output) / 1e6


# The rehearsal model costs nothing. It has a price so that budgets and reports in dollars can be tried without a key.
REHEARSAL = Price(input=0.15, output=0.60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model as a role uses it. `name` is `provider/model`, as LiteLLM spells it.

    `api_key` is read from the provider's own environment variable if left out; it is never shown or recorded.
    `attempts` counts the first try; `timeout` is for one of them, in seconds.
    """

    name: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    parameters: Mapping[str, Any] = field(default_factory=FrozenDict)
    price: Price | None = None
    timeout: float = 60.0
    attempts: int = 6

    def __post_init__(self) -> None:
        provider, separator, rest = self.name.partition("/")
        if not (provider and separator and rest):
            raise UsageError(
                f"{self.name!r} does not say who serves the model.",
                remedy="Write provider/model, for example openai/gpt-4o-mini or ollama_chat/llama3.1.",
            )
        if self.attempts < 1 or self.timeout <= 0:
            raise UsageError("A model needs at least one attempt and a positive timeout.", remedy="Raise them.")
        object.__setattr__(self, "parameters", freeze(self.parameters))

    @property
    def provider(self) -> str:
        return self.name.partition("/")[0]

    @property
    def id(self) -> str:
        """The name without its provider: what goes into the request."""
        return self.name.partition("/")[2]

    def priced(self) -> Price | None:
        """The price given, the rehearsal model's, or the one in DSPy's price list; None if nobody knows."""
        if self.price is not None:
            return self.price
        if self.id.startswith("rehearsal"):
            return REHEARSAL
        use_local_prices()
        from dspy.clients.model_metadata import model_info, rate

        info = model_info(self.provider, self.id)
        paid, earned = rate(info, "input_cost_per_token"), rate(info, "output_cost_per_token")
        if paid is None or earned is None:
            return None
        cached = rate(info, "cache_read_input_token_cost")
        return Price(paid * 1e6, earned * 1e6, None if cached is None else cached * 1e6)


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of one finished call, for the journal: never its text."""

    role: Role
    model: str
    seconds: float
    attempts: int
    tokens: Tokens = field(default_factory=Tokens)
    dollars: float | None = None
    failure: str | None = None


class Models:
    """Which model plays which role, over one pool of slots and one ledger.

    The judge and the coach are the worker's model unless named. `watch` is told of every call that ended.

    >>> from dspy_selfimprove.rehearsal import RehearsalModel, serve
    >>> with serve(RehearsalModel(seed=1)) as rehearsal:
    ...     worker = Model(name="openai/rehearsal", base_url=rehearsal.url, api_key="none")
    ...     models = Models(worker, slots=8)
    ...     reply = models.lm("worker", temperature=0)("My parcel is late.")[0]
    >>> isinstance(reply, str), models.ledger.spent["worker"].calls
    (True, 1)
    """

    def __init__(
        self,
        worker: Model,
        *,
        judge: Model | None = None,
        coach: Model | None = None,
        slots: Slots | int = 16,
        ledger: Ledger | None = None,
        watch: Callable[[Call], None] | None = None,
    ) -> None:
        self.by_role: Mapping[Role, Model] = {"worker": worker, "judge": judge or worker, "coach": coach or worker}
        self.slots = Slots(slots) if isinstance(slots, int) else slots
        self.ledger = ledger or Ledger()
        lines = {model: Line(model) for model in self.by_role.values()}  # roles that share a model share its line
        callers = {
            role: Caller(role, lines[model], self.slots, self.ledger, watch) for role, model in self.by_role.items()
        }
        if self.ledger.budget.dollars is not None:
            for role, caller in callers.items():
                if caller.price is None:
                    raise UsageError(
                        f"No price is known for {self.by_role[role].name}, so a budget in dollars cannot hold.",
                        remedy="Give the model a price=Price(input=..., output=...), or set the budget in tokens.",
                    )
        self._callers = callers

    def lm(self, role: Role, **parameters: Any) -> dspy.LM:
        """A `dspy.LM` for this role; `parameters` go over the model's own (temperature, max_tokens, ...).

        DSPy's cache and its retries are off: the journal keeps results, and only we know when a slot is free.
        """
        import dspy

        caller = self.caller(role)
        model = self.by_role[role]
        return dspy.LM(
            model.name,
            engine=Engine(caller),
            async_engine=AsyncEngine(caller),
            cache=False,
            num_retries=0,
            **{**thaw(model.parameters), **parameters},
        )

    def caller(self, role: Role) -> Caller:
        """This role's way to its model, for whoever sends bodies of their own."""
        if role not in self._callers:
            raise UsageError(f"There is no role {role!r}.", remedy=f"The roles are {', '.join(ROLES)}.")
        return self._callers[role]


# The steps of a call's story, which a driver carries out: in a thread or on an event loop.
class _Take:
    """Wait for a slot."""


@dataclass(frozen=True, slots=True)
class _Send:
    body: Body


@dataclass(frozen=True, slots=True)
class _Sleep:
    seconds: float


_Step: TypeAlias = _Take | _Send | _Sleep
_Story: TypeAlias = Generator[_Step, Any, Mapping[str, Any]]


class Line:
    """The way to one model: its client, its price, and the pause its service asked for, kept by everyone who calls."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.price = model.priced()
        self.wire = wire(model.name, base_url=model.base_url, api_key=model.api_key, timeout=model.timeout)
        self._resume_at = 0.0

    def pause(self, seconds: float) -> None:
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    @property
    def wait(self) -> float:
        """What is left of the pause, with a little more at random, so that not all come back in the same instant."""
        left = self._resume_at - time.monotonic()
        return left + random.uniform(0, 0.25) * max(left, 0.1) if left > 0 else 0.0


class Caller:
    """One role's way to its model: slots, budget, retries and cost around one request at a time."""

    def __init__(
        self, role: Role, line: Line, slots: Slots, ledger: Ledger, watch: Callable[[Call], None] | None = None
    ) -> None:
        self.role, self.line, self.slots, self.ledger = role, line, slots, ledger
        self.model, self.price = line.model, line.price
        self._watch = watch

    def _story(self, body: Body) -> _Story:
        start = time.monotonic()
        for attempt in itertools.count(1):
            held = yield from self._turn(body)
            try:
                outcome = yield from self._attempt(body, held)
            finally:
                self.slots.give()
            if not isinstance(outcome, SelfImproveError):
                completion, tokens = outcome
                self._record(start, attempt, tokens)
                return completion
            delay = _backoff(attempt, outcome)
            if delay is None or attempt >= self.model.attempts:
                self._record(start, attempt, failure=type(outcome).__name__)
                raise outcome
            if isinstance(outcome, RateLimited):
                self.line.pause(delay)
            else:
                yield _Sleep(delay)
        raise AssertionError("unreachable")

    def _turn(self, body: Body) -> Generator[_Step, Any, Reservation]:
        """A slot, and room in the budget, at a time when the service wants to be asked."""
        tokens, dollars = self._estimate(body)
        while True:
            if wait := self.line.wait:
                yield _Sleep(wait)
            yield _Take()
            try:
                # A pause may have begun while we waited for the slot.
                if not self.line.wait:
                    return self.ledger.reserve(self.role, tokens=tokens, dollars=dollars)
            except BudgetExhausted as full:
                self.slots.give()
                if full.final:
                    raise
                yield _Sleep(_ROOM_WAIT)  # calls in flight hold the rest; what they do not use comes back
            else:
                self.slots.give()

    def _attempt(
        self, body: Body, held: Reservation
    ) -> Generator[_Step, Any, tuple[Mapping[str, Any], Tokens] | SelfImproveError]:
        try:
            completion = yield _Send(body)
        except Exception as error:
            failure = failure_of(error)
            if isinstance(error, json.JSONDecodeError):
                failure = Unavailable("The model's service sent an answer that is not JSON.", remedy="Try again later.")
            if failure is None:
                self.ledger.release(held)
                raise
            # After a time-out nobody knows whether the call was computed; anything else was not charged.
            if isinstance(failure, TimedOut):
                self.ledger.settle(held)
            else:
                self.ledger.release(held)
            failure.__cause__ = error
            return failure
        except BaseException:
            self.ledger.settle(held)  # interrupted in flight: it may have been charged
            raise
        used = tokens_of(completion)
        self.ledger.settle(held, tokens=used.input + used.output, dollars=self.price.of(used) if self.price else 0.0)
        if not is_completion(completion):
            return Refused(
                f"What answers for {self.model.name} sends no chat completions.",
                remedy="Check the base URL; it usually ends in /v1.",
            )
        return completion, used

    def ask(self, body: Body) -> Mapping[str, Any]:
        """Send a body of one's own, whatever model it names, and have the completion's JSON; raises our own errors."""
        return _drive(self._story(self._whole(body)), self._carry_out)

    def complete(self, request: Request) -> Response:
        body = self._body(request)
        try:
            return response_of(request.model, _drive(self._story(body), self._carry_out))
        except SelfImproveError as failure:
            error = _lm15_error(failure)
            raise error from error.__cause__

    async def acomplete(self, request: Request) -> Response:
        body = self._body(request)
        try:
            return response_of(request.model, await _adrive(self._story(body), self._acarry_out))
        except SelfImproveError as failure:
            error = _lm15_error(failure)
            raise error from error.__cause__

    def _carry_out(self, step: _Step) -> Any:
        if isinstance(step, _Send):
            return self.line.wire.send(step.body)
        if isinstance(step, _Sleep):
            return time.sleep(step.seconds)
        turn = self.slots.ask()
        try:
            return turn.result()
        except BaseException:
            self.slots.leave(turn)
            raise

    async def _acarry_out(self, step: _Step) -> Any:
        if isinstance(step, _Send):
            return await self.line.wire.asend(step.body)
        if isinstance(step, _Sleep):
            return await asyncio.sleep(step.seconds)
        turn = self.slots.ask()
        try:
            return await asyncio.wrap_future(turn)
        except BaseException:
            self.slots.leave(turn)
            raise

    def _body(self, request: Request) -> Body:
        own = (request.config.extensions or {}).get(BODY)
        if own is not None:
            return self._whole(cast(Body, thaw(own)))
        # DSPy keeps the writer of chat-completion bodies in a module of its own; there is no public door to it.
        from dspy.clients.lm15_boundary import request_kwargs

        return {**request_kwargs(request, "chat"), "model": self.model.id}

    def _whole(self, body: Body) -> Body:
        body = {**body, "model": self.model.id}
        if body.pop("stream", None) or (body.get("n") or 1) != 1:
            raise UsageError(
                "One call gives one whole answer; the request asks for a stream or for several.",
                remedy="Take stream and n out of the request, and ask again for another answer.",
            )
        return body

    def _estimate(self, body: Body) -> tuple[int, float]:
        # Four characters a token: close enough to hold room, and no tokenizer has to be fetched.
        asked = len(json.dumps(body.get("messages", ()), ensure_ascii=False, default=str)) // 4
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        answer = limit if isinstance(limit, int) else 0
        return asked + answer, self.price.of(Tokens(asked, answer)) if self.price else 0.0

    def _record(self, start: float, attempts: int, tokens: Tokens | None = None, failure: str | None = None) -> None:
        if self._watch is None:
            return
        call = Call(
            role=self.role,
            model=self.model.name,
            seconds=time.monotonic() - start,
            attempts=attempts,
            tokens=tokens or Tokens(),
            dollars=self.price.of(tokens or Tokens()) if self.price else None,
            failure=failure,
        )
        try:
            self._watch(call)
        except Exception:
            # The answer is paid for; whoever only watches must not lose it.
            logging.getLogger(__name__).exception("A function that watches calls failed.")


class _Shared:
    """Optimizers copy programs, and their LM with them, all the time; the pool and the client stay the same ones."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Engine(_Shared):
    """What `dspy.LM` calls from a thread."""

    def complete(self, request: Request) -> Response:
        return self.caller.complete(request)


class AsyncEngine(_Shared):
    """What `dspy.LM` awaits."""

    async def complete(self, request: Request) -> Response:
        return await self.caller.acomplete(request)


def _drive(story: _Story, carry_out: Callable[[_Step], Any]) -> Mapping[str, Any]:
    """Carry out a story's steps in this thread; what a step raises is told to the story."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = story.send(answer) if error is None else story.throw(error)
        except StopIteration as end:
            return cast("Mapping[str, Any]", end.value)
        answer = error = None
        try:
            answer = carry_out(step)
        except BaseException as raised:
            error = raised


async def _adrive(story: _Story, carry_out: Callable[[_Step], Coroutine[Any, Any, Any]]) -> Mapping[str, Any]:
    """The same on an event loop."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = story.send(answer) if error is None else story.throw(error)
        except StopIteration as end:
            return cast("Mapping[str, Any]", end.value)
        answer = error = None
        try:
            answer = await carry_out(step)
        except BaseException as raised:
            error = raised


_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_ROOM_WAIT = 0.05


def _backoff(attempt: int, failure: SelfImproveError) -> float | None:
    """Seconds until the next attempt, or None if there should be none.

    Doubling with full jitter, so that callers turned away together do not come back together. A service that asks for
    a longer wait gets it; one that asks for more than a minute is out for this run.
    """
    if not isinstance(failure, Outage):
        return None
    asked = failure.retry_after or 0.0
    if asked > _LONGEST_WAIT:
        return None
    return max(asked, random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(attempt, 16))))


def _lm15_error(failure: SelfImproveError) -> Exception:
    """The error DSPy expects from an engine, caused by `failure`; what is not about a model passes as it is."""
    from dspy import lm15

    known: list[tuple[type[SelfImproveError], Callable[..., Exception]]] = [
        (RateLimited, lm15.RateLimitError),
        (TimedOut, lm15.TimeoutError),
        (Outage, lm15.ServerError),
        (BadAnswer, lm15.ContextLengthError),
        (Refused, lm15.InvalidRequestError),
    ]
    make = next((make for kind, make in known if isinstance(failure, kind)), None)
    if make is None:
        return failure
    error = make(str(failure))
    error.__cause__ = failure
    return error
