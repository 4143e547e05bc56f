"""The stand-in model behind an OpenAI-compatible HTTP server, so that real clients can be tried with no key.

It shows that the machinery works: clients, retries, instrumentation, evaluators, the search. It says nothing about the
quality of any model, and no figure measured on it should be read as one.

    POST /v1/chat/completions    GET /v1/models    GET /healthz    GET /counters    POST /counters/reset

An application's own model name is answered too, so an application needs nothing but another base URL. What a request
must be is in request.py. Faults happen on the wire: a 429 has its headers, a dropped connection is one.

One event loop in one thread serves everything. A slow answer is a sleeping task, not a thread; the model's millisecond
of work runs in the loop, which bounds a server to a few hundred to a thousand answers a second. Only this machine can
connect. Stopping cuts off what is in flight.

Not covered: the pace of a stream (its pieces come at once, after the latency), log probabilities, the
Responses API, embeddings, TLS.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from aiohttp import web

from dspy_selfimprove.errors import SetupError, UsageError
from dspy_selfimprove.message import digest
from dspy_selfimprove.rehearsal.engine import Call, Counts, Service, StandIn
from dspy_selfimprove.rehearsal.fault import Fault, Faults, Latency
from dspy_selfimprove.rehearsal.request import Refusal, parse

HOST = "127.0.0.1"
MODEL = "rehearsal"

_log = logging.getLogger(__name__)
_LARGEST = 16 * 2**20
_GRACE = 0.1  # seconds that calls in flight get when the server stops
_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def serve(
    model: StandIn,
    *,
    port: int = 0,
    seed: int = 0,
    latency: Latency | None = None,
    faults: Faults | None = None,
    api_key: str | None = None,
) -> Iterator[Served]:
    """Serve `model` on this machine until the block is left; port 0 takes a free one.

    Give an `api_key` to have requests without it refused.
    """
    served = Served(Service(model, seed=seed, latency=latency, faults=faults), port=port, api_key=api_key)
    try:
        yield served
    finally:
        served.stop()


class Served:
    """A running server: where it is, what it has seen, and how to stop it."""

    def __init__(self, service: Service, *, port: int = 0, api_key: str | None = None) -> None:
        self._service = service
        listener = _listen(port)
        self.port: int = listener.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/v1"
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(listener, _Api(service, api_key)), name=f"rehearsal:{self.port}", daemon=True
        )
        self._thread.start()
        self._loop, self._stopping = self._ready.result()

    def counts(self) -> Counts:
        return self._service.counters.counts()

    def reset(self) -> None:
        self._service.counters.reset()

    def stop(self) -> None:
        """Stop listening, cut off what is in flight, and wait until the thread is gone. Again is no error."""
        with suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self, listener: socket.socket, api: _Api) -> None:
        try:
            asyncio.run(self._live(listener, api))
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _live(self, listener: socket.socket, api: _Api) -> None:
        # Cancelling a handler whose client went away keeps the count of calls in flight true.
        runner = web.AppRunner(api.application(), access_log=None, handler_cancellation=True, shutdown_timeout=_GRACE)
        stopping = asyncio.Event()
        try:
            await runner.setup()
            await web.SockSite(runner, listener, backlog=1024).start()
            self._ready.set_result((asyncio.get_running_loop(), stopping))
            await stopping.wait()
        finally:
            await runner.cleanup()
            listener.close()


def _listen(port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is no port.", remedy="Choose one up to 65535, or 0 for a free one.")
    try:
        return socket.create_server((HOST, port), backlog=1024)
    except OSError as error:
        raise SetupError(
            f"The rehearsal server cannot listen on port {port} ({error.strerror or error}).",
            remedy="Stop what uses it, choose another with --port, or let 0 find a free one.",
        ) from None


class _Api:
    """The handlers."""

    def __init__(self, service: Service, api_key: str | None) -> None:
        self._service = service
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST, middlewares=[web.middleware(_in_shape)])
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/healthz", self.health)
        app.router.add_get("/counters", self.counters)
        app.router.add_post("/counters/reset", self.reset)
        return app

    async def complete(self, request: web.Request) -> web.StreamResponse:
        try:
            self._authorize(request)
            body = parse(await request.read())
        except Refusal as refusal:
            self._service.counters.refused("unauthorized" if refusal.status == 401 else "bad_request")
            raise
        except web.HTTPRequestEntityTooLarge:
            self._service.counters.refused("bad_request")
            raise
        with self._service.call(body) as call:
            await asyncio.sleep(call.seconds)
            streamed = body.get("stream") is True
            response = await _fail(request, call, streamed=streamed)
            if response is None:
                completion = call.answer()
                if streamed:
                    options = body.get("stream_options") or {}
                    chunks = stream(completion, usage=options.get("include_usage") is True)
                    response = await _send_events(request, map(_event, chunks), call)
                else:
                    response = _json(200, completion, headers=_headers(call))
        return response

    async def models(self, request: web.Request) -> web.StreamResponse:
        self._authorize(request)
        entry = {"id": MODEL, "object": "model", "created": 0, "owned_by": "dspy-selfimprove"}
        return _json(200, {"object": "list", "data": [entry]})

    async def health(self, request: web.Request) -> web.StreamResponse:
        return _json(200, {"status": "ok"})

    async def counters(self, request: web.Request) -> web.StreamResponse:
        return _json(200, self._service.counters.counts().to_json())

    async def reset(self, request: web.Request) -> web.StreamResponse:
        self._service.counters.reset()
        return await self.counters(request)

    def _authorize(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if self._expected is not None and not hmac.compare_digest(given, self._expected):
            raise Refusal(
                "No API key was sent, or not the one this server was started with.",
                code="invalid_api_key",
                status=401,
            )


async def _in_shape(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every error in OpenAI's shape, those of the web framework included."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return _refused(refusal)
    except RecursionError:
        return _refused(Refusal("The body, or a schema in it, is nested too deeply.", code="invalid_value"))
    except UsageError as error:
        return _refused(Refusal(str(error)))
    except web.HTTPNotFound:
        where = f"{request.method} {request.path}"
        return _refused(
            Refusal(f"There is nothing at {where}. The base URL ends in /v1.", code="unknown_url", status=404)
        )
    except web.HTTPRequestEntityTooLarge:
        return _refused(Refusal(f"The body is larger than {_LARGEST} bytes.", code="too_large", status=413))
    except web.HTTPException as error:
        return _refused(Refusal(f"{error.reason}.", status=error.status))
    except ConnectionError:
        raise  # the client left in the middle of its answer
    except Exception:
        _log.exception("The rehearsal model failed on a request that was well formed.")
        return _error(500, "The rehearsal model failed; the server's log says how.", kind="server_error")


# -- answers --------------------------------------------------------------------------------------------------------


def _refused(refusal: Refusal) -> web.Response:
    return _error(refusal.status, refusal.message, param=refusal.param, code=refusal.code)


def _json(status: int, value: Any, *, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=_encoded(value), headers=headers, content_type="application/json", charset="utf-8"
    )


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    error = {"message": message, "type": kind, "param": param, "code": code}
    return _json(status, {"error": error}, headers=headers)


def _headers(call: Call) -> dict[str, str]:
    return {"x-request-id": f"req_{digest(call.key, 24)}"}


def _event(value: Any) -> bytes:
    return b"data: " + _encoded(value) + b"\n\n"


async def _send_events(request: web.Request, events: Iterable[bytes], call: Call) -> web.StreamResponse:
    response = web.StreamResponse(headers={**_headers(call), "Cache-Control": "no-cache"})
    response.content_type, response.charset = "text/event-stream", "utf-8"
    await response.prepare(request)
    for event in events:
        await response.write(event)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def stream(completion: Mapping[str, Any], *, usage: bool) -> Iterator[dict[str, Any]]:
    """A finished completion in the pieces a client would get; `usage` as `stream_options.include_usage` asks."""
    frame = {key: completion[key] for key in ("id", "created", "model")}
    frame |= {"object": "chat.completion.chunk"} | ({"usage": None} if usage else {})
    for choice in completion["choices"]:
        for delta, reason in _deltas(choice):
            part = {"index": choice["index"], "delta": delta, "logprobs": None, "finish_reason": reason}
            yield {**frame, "choices": [part]}
    if usage:
        yield {**frame, "choices": [], "usage": completion["usage"]}


def _deltas(choice: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str | None]]:
    message = choice["message"]
    calls = message.get("tool_calls") or ()
    yield {"role": "assistant", "content": None if calls else "", "refusal": None}, None
    for word in re.findall(r"\s*\S+|\s+$", message.get("content") or ""):
        yield {"content": word}, None
    for index, call in enumerate(calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        head = {"index": index, "id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
        yield {"tool_calls": [head]}, None
        for piece in re.findall(r"(?s).{1,12}", arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None
    yield {}, choice["finish_reason"]


# -- faults, as the wire shows them -----------------------------------------------------------------------------------

_HALF = (
    b'{"id":"chatcmpl-rehearsal","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","con'
)


async def _fail(request: web.Request, call: Call, *, streamed: bool) -> web.StreamResponse | None:
    """What the client gets instead of an answer, if this attempt is to have none."""
    match call.fault:
        case Fault.RATE_LIMIT:
            wait = call.retry_after
            headers = {
                "Retry-After": str(math.ceil(wait)),
                "retry-after-ms": str(math.ceil(wait * 1000)),
                "x-ratelimit-limit-requests": "500",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": f"{math.ceil(wait * 1000)}ms",
            }
            return _error(
                429,
                f"Rehearsed: too many requests. Try again in {wait:g} s.",
                kind="requests",
                code="rate_limit_exceeded",
                headers=_headers(call) | headers,
            )
        case Fault.SERVER_ERROR:
            code = None if call.status == 500 else "service_unavailable"
            return _error(
                call.status, "Rehearsed: the service failed.", kind="server_error", code=code, headers=_headers(call)
            )
        case Fault.TIMEOUT | Fault.DROPPED:
            return _hang_up(request, web.Response())
        case Fault.TORN:
            response = web.StreamResponse(headers=_headers(call))
            response.content_type = "text/event-stream" if streamed else "application/json"
            if not streamed:
                response.content_length = 2 * len(_HALF)
            await response.prepare(request)
            await response.write(b"data: " + _HALF if streamed else _HALF)
            return _hang_up(request, response)
        case Fault.MALFORMED if streamed:
            return await _send_events(request, [b"data: " + _HALF + b"\n\n"], call)
        case Fault.MALFORMED:
            return web.Response(body=_HALF, headers=_headers(call), content_type="application/json", charset="utf-8")
        case _:
            return None


def _hang_up(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    # close() sends what was written and then ends the connection; the rest of the response has nowhere to go.
    if request.transport is not None:
        request.transport.close()
    return response
