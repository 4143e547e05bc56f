"""The wire: a chat-completion body goes out as it is, and what comes back becomes a DSPy response, whole.

One attempt, and no opinion: retries, slots and cost are model.py's, what an error means is outage.py's. A body sent
through the official client arrives unchanged, names, null contents, developer role and strict tools included; LiteLLM
takes the same body and translates it for its provider.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dspy_selfimprove.errors import SetupError

if TYPE_CHECKING:
    from dspy.lm15 import Response
    from openai import AsyncOpenAI, OpenAI
    from openai._types import RequestOptions

Body: TypeAlias = dict[str, Any]

BODY = "openai_chat"  # where a DSPy request carries a body of its own: `Config.extensions[BODY]`


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one answer used, as the service counted it; `cached` is part of `input`."""

    input: int = 0
    output: int = 0
    cached: int = 0


class Wire(Protocol):
    """A way to one service. What comes back is the answer's JSON, empty if it is no JSON object at all."""

    def send(self, body: Body) -> Mapping[str, Any]: ...

    async def asend(self, body: Body) -> Mapping[str, Any]: ...


class OpenAIWire:
    """The official client, unchanged in both directions; its own retries are off.

    It is asked by its lower door, `post`, for the answer as it came: turning a request and its answer into typed
    objects costs as much again as the call, and both are plain data here before and after. An async client belongs to
    the event loop that first used it, so each loop gets its own. A `client` given is used as it is, for `send` only.
    """

    def __init__(
        self, base_url: str | None, api_key: str | None, timeout: float, *, client: OpenAI | None = None
    ) -> None:
        self._settings = {"max_retries": 0, "timeout": timeout, **_given(base_url=base_url, api_key=api_key)}
        self._lock = threading.Lock()
        self._client = client
        self._clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}

    def send(self, body: Body) -> Mapping[str, Any]:
        from openai.types.chat import ChatCompletion

        body, options = _split(body)
        client = self._client or self._made()
        return _answer(client.post(_PATH, cast_to=ChatCompletion, body=body, options=options))

    def _made(self) -> OpenAI:
        import openai

        with self._lock:
            if self._client is None:
                self._client = openai.OpenAI(**self._settings)
            return self._client

    async def asend(self, body: Body) -> Mapping[str, Any]:
        import openai
        from openai.types.chat import ChatCompletion

        loop = asyncio.get_running_loop()
        with self._lock:
            # A client keeps its loop alive, so the ones of loops that ended have to be let go here.
            self._clients = {each: client for each, client in self._clients.items() if not each.is_closed()}
            client = self._clients.get(loop)
            if client is None:
                # The client's own transport, when let go, tries to close itself on whatever loop runs then, and fails.
                transport = openai.DefaultAsyncHttpxClient()
                client = self._clients[loop] = openai.AsyncOpenAI(**self._settings, http_client=transport)
        body, options = _split(body)
        return _answer(await client.post(_PATH, cast_to=ChatCompletion, body=body, options=options))


_PATH = "/chat/completions"

# The client's own word for "the answer unread". An instrumentor that watches the client still finds a ChatCompletion.
_UNREAD = {"X-Stainless-Raw-Response": "true"}


def _split(body: Body) -> tuple[Body, RequestOptions]:
    """What goes into the body, and what the client's `create` takes beside it, under the names it has there."""
    sent = {name: value for name, value in body.items() if name not in _BESIDE}
    options: RequestOptions = {"headers": {**(body.get("extra_headers") or {}), **_UNREAD}}
    if query := body.get("extra_query"):
        options["params"] = query
    if "timeout" in body:
        options["timeout"] = body["timeout"]
    return {**sent, **(body.get("extra_body") or {})}, options


_BESIDE = frozenset({"extra_headers", "extra_query", "extra_body", "timeout"})


def _answer(unread: Any) -> Mapping[str, Any]:
    """The answer's JSON. Something that does not call itself JSON and is none (a page) is no answer: empty."""
    reply = unread.http_response
    try:
        found = json.loads(reply.content)
    except ValueError:
        if reply.headers.get("content-type", "").partition(";")[0].endswith("json"):
            raise json.JSONDecodeError("The answer is not JSON", "", 0) from None
        return {}
    return found if isinstance(found, dict) else {}


class LiteLLMWire:
    """Every other provider: LiteLLM takes the same body and raises the official client's errors."""

    def __init__(self, name: str, base_url: str | None, api_key: str | None, timeout: float) -> None:
        own = _given(api_base=base_url, api_key=api_key)
        self._settings = {"num_retries": 0, "max_retries": 0, "timeout": timeout, **own}
        self._name = name

    def send(self, body: Body) -> Mapping[str, Any]:
        with _naming_packages():
            return _dumped(_litellm().completion(**{**body, "model": self._name}, **self._settings))

    async def asend(self, body: Body) -> Mapping[str, Any]:
        with _naming_packages():
            return _dumped(await _litellm().acompletion(**{**body, "model": self._name}, **self._settings))


def _dumped(completion: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = completion.model_dump(mode="json", exclude_unset=True)
    return found


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


def response_of(name: str, completion: Mapping[str, Any]) -> Response:
    """A chat completion as DSPy's Response; the message itself rides along in `provider_data`, whole."""
    from dspy.lm15 import Message, Response, TextPart, ToolCallPart, Usage

    choice = completion["choices"][0]
    message = _object(choice.get("message"))
    parts: list[Any] = [TextPart(message["content"])] if message.get("content") else []
    parts.extend(
        ToolCallPart(id=call.get("id"), name=function.get("name"), input=_arguments(function.get("arguments")))
        for call in message.get("tool_calls") or ()
        if (function := call.get("function"))  # a custom tool's call has none; it is in `provider_data` all the same
    )
    used = tokens_of(completion)
    return Response(
        id=completion.get("id"),
        model=completion.get("model") or name,
        message=Message("assistant", tuple(parts)) if parts else Message.assistant(""),
        finish_reason=_FINISH.get(choice.get("finish_reason"), "stop"),
        usage=Usage(
            input_tokens=used.input,
            output_tokens=used.output,
            total_tokens=used.input + used.output,
            cache_read_tokens=used.cached or None,
        ),
        provider_data={"message": message, "finish_reason": choice.get("finish_reason")},
    )


def _arguments(text: str | None) -> dict[str, Any]:
    """A tool call's arguments; a model's broken JSON stays readable in `provider_data` and is no reason to fail."""
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def is_completion(answer: Mapping[str, Any]) -> bool:
    """Whether this is a chat completion at all; many other services answer 200 too."""
    choices = answer.get("choices")
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict)


def tokens_of(completion: Mapping[str, Any]) -> Tokens:
    usage = _object(completion.get("usage"))
    cached = _object(usage.get("prompt_tokens_details")).get("cached_tokens")
    return Tokens(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
