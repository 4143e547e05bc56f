"""The wire: a chat-completion body goes out as it is, and what comes back becomes a DSPy response, whole.

One attempt, and no opinion: retries, slots and cost are model.py's, what an error means is outage.py's. A body sent
through the official client arrives unchanged, names, null contents, developer role and strict tools included; LiteLLM
takes the same body and translates it for its provider.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dspy_selfimprove.errors import SetupError

if TYPE_CHECKING:
    from dspy.lm15 import Response
    from openai import AsyncOpenAI, OpenAI

Body: TypeAlias = dict[str, Any]

BODY = "openai_chat"  # where a DSPy request carries a body of its own: `Config.extensions[BODY]`


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one answer used, as the service counted it; `cached` is part of `input`."""

    input: int = 0
    output: int = 0
    cached: int = 0


class Wire(Protocol):
    """A way to one service."""

    def send(self, body: Body) -> Any: ...

    async def asend(self, body: Body) -> Any: ...


class OpenAIWire:
    """The official client, unchanged in both directions; its own retries are off.

    An async client belongs to the event loop that first used it, so each loop gets its own.
    """

    def __init__(self, base_url: str | None, api_key: str | None, timeout: float) -> None:
        self._settings = {"max_retries": 0, "timeout": timeout, **_given(base_url=base_url, api_key=api_key)}
        self._lock = threading.Lock()
        self._client: OpenAI | None = None
        self._clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}

    def send(self, body: Body) -> Any:
        import openai

        with self._lock:
            if self._client is None:
                self._client = openai.OpenAI(**self._settings)
        return self._client.chat.completions.create(**_known(body))

    async def asend(self, body: Body) -> Any:
        import openai

        loop = asyncio.get_running_loop()
        with self._lock:
            # A client keeps its loop alive, so the ones of loops that ended have to be let go here.
            self._clients = {each: client for each, client in self._clients.items() if not each.is_closed()}
            client = self._clients.get(loop)
            if client is None:
                # The client's own transport, when let go, tries to close itself on whatever loop runs then, and fails.
                transport = openai.DefaultAsyncHttpxClient()
                client = self._clients[loop] = openai.AsyncOpenAI(**self._settings, http_client=transport)
        return await client.chat.completions.create(**_known(body))


def _known(body: Body) -> Body:
    """The body as the client takes it: parameters it has no name for (top_k of a local server) go in `extra_body`."""
    from openai.resources.chat.completions import Completions

    names = _parameters(Completions.create)
    extra = {name: value for name, value in body.items() if name not in names}
    if not extra:
        return body
    known = {name: value for name, value in body.items() if name in names}
    return {**known, "extra_body": {**(known.get("extra_body") or {}), **extra}}


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


class LiteLLMWire:
    """Every other provider: LiteLLM takes the same body and raises the official client's errors."""

    def __init__(self, name: str, base_url: str | None, api_key: str | None, timeout: float) -> None:
        own = _given(api_base=base_url, api_key=api_key)
        self._settings = {"num_retries": 0, "max_retries": 0, "timeout": timeout, **own}
        self._name = name

    def send(self, body: Body) -> Any:
        with _naming_packages():
            return _litellm().completion(**{**body, "model": self._name}, **self._settings)

    async def asend(self, body: Body) -> Any:
        with _naming_packages():
            return await _litellm().acompletion(**{**body, "model": self._name}, **self._settings)


@contextmanager
def _naming_packages() -> Iterator[None]:
    """LiteLLM imports what a request needs when it meets one, such as `mcp` for tools."""
    try:
        yield
    except ModuleNotFoundError as lacking:
        raise SetupError(
            f"LiteLLM needs the package {lacking.name} for this request.", remedy=f"pip install {lacking.name}"
        ) from None


def _given(**settings: str | None) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def use_local_prices() -> None:
    """Keep DSPy and LiteLLM from asking the network for a price list: it takes seconds, and they bring one along."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")


def _litellm() -> Any:
    use_local_prices()
    import litellm

    litellm.suppress_debug_info = True  # it prints advice in red beside the error it raises
    return litellm


# Servers that speak the official protocol at an address of the user's.
_COMPATIBLE = frozenset({"custom_openai", "hosted_vllm", "litellm_proxy", "lm_studio", "openai_like"})


def wire(name: str, *, base_url: str | None, api_key: str | None, timeout: float) -> Wire:
    """The wire to the model `name` (provider/model); None leaves the address and the key to the provider's client."""
    provider = name.partition("/")[0]
    if provider == "openai" or (provider in _COMPATIBLE and base_url is not None):
        return OpenAIWire(base_url, api_key, timeout)
    return LiteLLMWire(name, base_url, api_key, timeout)


_FINISH = {"tool_calls": "tool_call", "length": "length", "content_filter": "content_filter"}


def response_of(name: str, completion: Any) -> Response:
    """A chat completion as DSPy's Response; the message itself rides along in `provider_data`, whole."""
    from dspy.lm15 import Message, Response, TextPart, ToolCallPart, Usage

    choice = completion.choices[0]
    message = choice.message
    parts: list[Any] = [TextPart(message.content)] if message.content else []
    parts.extend(
        ToolCallPart(id=call.id, name=call.function.name, input=_arguments(call.function.arguments))
        for call in getattr(message, "tool_calls", None) or ()
        if getattr(call, "function", None)  # a custom tool's call has none; it is in `provider_data` all the same
    )
    used = tokens_of(completion)
    return Response(
        id=completion.id,
        model=completion.model or name,
        message=Message("assistant", tuple(parts)) if parts else Message.assistant(""),
        finish_reason=_FINISH.get(choice.finish_reason, "stop"),
        usage=Usage(
            input_tokens=used.input,
            output_tokens=used.output,
            total_tokens=used.input + used.output,
            cache_read_tokens=used.cached or None,
        ),
        provider_data={
            "message": message.model_dump(mode="json", exclude_unset=True),
            "finish_reason": choice.finish_reason,
        },
    )


def _arguments(text: str | None) -> dict[str, Any]:
    """A tool call's arguments; a model's broken JSON stays readable in `provider_data` and is no reason to fail."""
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def tokens_of(completion: Any) -> Tokens:
    usage = getattr(completion, "usage", None)
    if usage is None:
        return Tokens()
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None) or 0
    return Tokens(usage.prompt_tokens or 0, usage.completion_tokens or 0, cached)
