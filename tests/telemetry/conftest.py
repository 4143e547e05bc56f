"""Real HTTP peers for the doors to Phoenix: a model's endpoint that answers whatever form it is asked for, and a
collector that can be told to fail, stopped and started again."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from dspy_selfimprove.telemetry.server import Phoenix

WITHIN = 20.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _serve(handler: type[_Handler], port: int = 0) -> _Server:
    server = _Server(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@dataclass
class ChatServer:
    """An OpenAI-compatible endpoint. It takes the first choice it is offered, and keeps what it was asked."""

    url: str
    bodies: list[bytes] = field(default_factory=list)

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]


def _value(schema: dict[str, Any]) -> Any:
    for key in ("oneOf", "anyOf"):
        if key in schema:
            return _value(schema[key][0])
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: _value(each) for name, each in schema.get("properties", {}).items()}
    return {"number": 0.5, "integer": 1, "boolean": True, "array": []}.get(schema.get("type", ""), "because")


def _message(request: dict[str, Any]) -> dict[str, Any]:
    if tools := request.get("tools"):
        function = tools[0]["function"]
        call = {"name": function["name"], "arguments": json.dumps(_value(function["parameters"]))}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        }
    form = request.get("response_format") or {}
    if form.get("type") == "json_schema":
        return {"role": "assistant", "content": json.dumps(_value(form["json_schema"]["schema"]))}
    said = request["messages"][-1]["content"]
    if "[[ ## answer ## ]]" in str(said):  # DSPy's chat form
        return {
            "role": "assistant",
            "content": "[[ ## reasoning ## ]]\nso\n\n[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]",
        }
    return {"role": "assistant", "content": f"You said: {said}"}


@pytest.fixture(scope="session")
def _chat_server() -> Iterator[ChatServer]:
    chat = ChatServer("")

    class Handler(_Handler):
        def do_POST(self) -> None:
            body = self.body()
            chat.bodies.append(body)
            request = json.loads(body)
            message, base = _message(request), {"id": "x", "created": 1, "model": request["model"]}
            if request.get("stream"):
                deltas = [{"role": "assistant"}, *({"content": word} for word in message["content"].split(" "))]
                chunks = [
                    {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
                    for delta in deltas
                ]
                lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
                self.answer(200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode())
            else:
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
                full = {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
                self.answer(200, "application/json", json.dumps(full).encode())

    server = _serve(Handler)
    chat.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield chat
    server.shutdown()
    server.server_close()


@pytest.fixture
def chat(_chat_server: ChatServer) -> ChatServer:
    _chat_server.bodies.clear()
    return _chat_server


class Collector:
    """A collector of spans: `status`, `kind` and `headers` are its next answers, `names` the spans it took."""

    def __init__(self) -> None:
        self.status, self.kind = 200, "application/x-protobuf"
        self.headers: dict[str, str] = {}
        self.posts: list[ExportTraceServiceRequest] = []
        self.keys: list[str | None] = []
        self.attempts = 0
        self._server: _Server | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def spans(self) -> list[Any]:
        return [
            span for post in self.posts for part in post.resource_spans for scope in part.scope_spans
            for span in scope.spans
        ]  # fmt: skip

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def start(self) -> None:
        collector = self

        class Handler(_Handler):
            def do_POST(self) -> None:
                body = self.body()
                collector.attempts += 1
                collector.keys.append(self.headers.get("authorization"))
                if collector.status == 200 and "html" not in collector.kind:
                    collector.posts.append(ExportTraceServiceRequest.FromString(body))
                self.answer(collector.status, collector.kind, b"", **collector.headers)

            def do_GET(self) -> None:
                collector.attempts += 1
                collector.keys.append(self.headers.get("authorization"))
                self.answer(200, "application/json", b"{}")

        self._server = _serve(Handler, self._port)
        self._port = self._server.server_port

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture
def elsewhere() -> Iterator[Collector]:
    """Another one, on another host as far as HTTP is concerned."""
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture
def project() -> str:
    """A project of this test's own in the shared Phoenix."""
    return f"telemetry-{uuid.uuid4().hex[:12]}"


def _until(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WITHIN
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], bool]:
    """Whether something comes true soon."""
    return _until


@pytest.fixture
def spans_in(phoenix: Phoenix) -> Callable[[str, int], list[dict[str, Any]]]:
    """The spans of a project, oldest first, once there are so many."""
    import httpx
    from phoenix.client import Client

    client = Client(base_url=phoenix.url)

    def read(project: str, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []

        def are_there() -> bool:
            try:
                found[:] = [dict(span) for span in client.spans.get_spans(project_identifier=project, limit=1000)]
            except httpx.HTTPStatusError:  # the project begins with its first span
                found.clear()
            return len(found) >= count

        assert _until(are_there), f"{len(found)} of {count} spans arrived"
        return sorted(found, key=lambda span: str(span["start_time"]))

    return read
