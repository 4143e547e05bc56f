"""Desk: the LLM object that Phoenix's evaluators ask, with our own calls behind it.

Phoenix's own adapter writes the request (messages, schema or forced tool call, the fall-back from one to the other) and
reads the answer, so what a judge is sent is what Phoenix sends. Only the client below it is ours: slots, budget,
retries and cost are the Caller's, and Phoenix's limiter of five calls a second is not there.

Until a service has given its first answer it gets less patience: whoever never answered is more likely to be set up
wrongly than to be briefly away.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from dspy_selfimprove.budget import Ledger
from dspy_selfimprove.errors import Outage, UsageError
from dspy_selfimprove.judges.helpers import ask
from dspy_selfimprove.judges.slip import CUT_OFF, DECLINED, EMPTY, NOT_JSON, WITHHELD, Slip, bad_request
from dspy_selfimprove.message import thaw
from dspy_selfimprove.model import Caller, Line, Model, Models
from dspy_selfimprove.slots import Slots
from dspy_selfimprove.wire import OpenAIWire

if TYPE_CHECKING:
    from phoenix.evals.llm import LLM

# How often this verdict was asked for before. It moves a fixed seed, so that asking again is not asking for the same.
rollout: ContextVar[int] = ContextVar("rollout", default=0)

SLOTS: Final = 16  # for an evaluator that brings its own model, where nobody says otherwise
_FIRST_ATTEMPTS: Final = 3


class Desk:
    """One judge's way to its model."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self._hasty = copy.copy(caller)
        self._hasty.model = replace(caller.model, attempts=min(_FIRST_ATTEMPTS, caller.model.attempts))
        self._answered = threading.Event()

    def _ask(self, body: dict[str, Any]) -> Mapping[str, Any]:
        """The first choice of one whole answer."""
        if not self._answered.is_set():
            try:
                return self._told(self._hasty, body)
            except Outage:
                if not self._answered.is_set():
                    raise
        return self._told(self.caller, body)

    def _told(self, caller: Caller, body: dict[str, Any]) -> Mapping[str, Any]:
        completion = caller.ask(body)
        self._answered.set()
        found: Mapping[str, Any] = completion["choices"][0]
        return found

    def create(self, **body: Any) -> SimpleNamespace:
        """What Phoenix's adapter calls: `client.chat.completions.create`."""
        body = {**thaw(self.caller.model.parameters), **body}
        if (again := rollout.get()) and isinstance(body.get("seed"), int):
            body["seed"] += again
        try:
            found = self._ask(body)
        except Exception as error:
            if (refused := bad_request(error)) is not None:
                raise refused from None  # the adapter knows the official client's error, and falls back on it
            raise
        message = found.get("message") or {}
        _check(body, message, found.get("finish_reason"))
        calls = [
            SimpleNamespace(function=SimpleNamespace(**call["function"]))
            for call in message.get("tool_calls") or ()
            if call.get("function")
        ]
        told = SimpleNamespace(content=message.get("content"), tool_calls=calls)
        return SimpleNamespace(choices=[SimpleNamespace(message=told)])

    async def acreate(self, **body: Any) -> SimpleNamespace:
        return await asyncio.wrap_future(ask(lambda: self.create(**body)))


def _check(body: Mapping[str, Any], message: Mapping[str, Any], reason: str | None) -> None:
    """Say what is wrong with an answer here, where it can still be seen why."""
    text = message.get("content")
    if "tools" in body:
        calls = [call for call in message.get("tool_calls") or () if call.get("function")]
        if not calls and text:
            raise Slip(CUT_OFF if reason == "length" else NOT_JSON)
        text = calls[0]["function"].get("arguments") if calls else None
    if not (isinstance(text, str) and text.strip()):
        raise Slip(WITHHELD if reason == "content_filter" else DECLINED if message.get("refusal") else EMPTY)
    if "tools" in body or "response_format" in body:
        try:
            whole = isinstance(json.loads(text), dict)
        except ValueError:
            whole = False
        if not whole:
            raise Slip(CUT_OFF if reason == "length" else WITHHELD if reason == "content_filter" else NOT_JSON)


def llm_of(desk: Desk, provider: str | None) -> LLM:
    """Phoenix's LLM, made without its constructor: that would build clients, and limiters for them."""
    from phoenix.evals.llm import LLM

    llm = object.__new__(LLM)
    llm.provider, llm.model = provider, desk.caller.model.id
    llm._sync_client, llm._async_client = _client(desk.create, llm.model), _client(desk.acreate, llm.model)
    llm._sync_adapter, llm._async_adapter = adapter_of(llm._sync_client), adapter_of(llm._async_client)
    llm._rate_limit_errors, llm._rate_limiters = [], []
    return llm


def _client(create: Any, model: str) -> SimpleNamespace:
    return SimpleNamespace(model=model, chat=SimpleNamespace(completions=SimpleNamespace(create=create)))


def adapter_of(client: Any) -> Any:
    from phoenix.evals.llm.adapters.openai.adapter import OpenAIAdapter

    return OpenAIAdapter(client, model=client.model)


def caller_of(llm: Any) -> Caller | None:
    """The way to the model that an evaluator brought along, with its own client; None if that cannot be ours."""
    client: Any = getattr(llm, "_sync_client", None)
    inner = getattr(client, "client", None)
    if any(kind.__module__.partition(".")[0] == "openai" and kind.__name__ == "OpenAI" for kind in type(inner).__mro__):
        line = Line(Model(name=f"openai/{llm.model}"))
        line.wire = OpenAIWire(None, None, line.model.timeout, client=inner)
        return Caller("judge", line, Slots(SLOTS), Ledger())
    if type(client).__name__ != "LiteLLMClient":
        return None
    settings = dict(client.config)
    known = {"base_url": settings.pop("api_base", None), "api_key": settings.pop("api_key", None)}
    if settings or "/" not in client.model_string:
        return None
    return Models(Model(name=client.model_string, **known), slots=SLOTS).caller("judge")


_LITELLM: Final = {"google": "gemini"}  # what Phoenix calls a provider, and LiteLLM


def caller_for(provider: str | None, model: str | None, name: str) -> Caller:
    """The way to the model that a recorded evaluator names; its key comes from the environment."""
    if model is None:
        raise UsageError(
            f"No model is known for the judge {name!r}.",
            remedy="Pass models=Models(...) with the model that should judge.",
        )
    provider = provider or "openai"
    return Models(Model(name=f"{_LITELLM.get(provider, provider)}/{model}"), slots=SLOTS).caller("judge")
