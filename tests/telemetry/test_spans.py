"""Production out of a real Phoenix: what applications asked and got comes out exactly, once, through every mishap."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from phoenix.client import Client
from phoenix.client.types.spans import SpanQuery

import dspy_selfimprove
from dspy_selfimprove.errors import PhoenixUnreachable, TelemetryError, UsageError
from dspy_selfimprove.exchange import Aside
from dspy_selfimprove.message import canonical, thaw
from dspy_selfimprove.score import Score
from dspy_selfimprove.telemetry import annotations, client, rows, spans
from dspy_selfimprove.telemetry.annotations import Annotation, write
from dspy_selfimprove.telemetry.nesting import LeftOut
from dspy_selfimprove.telemetry.pages import columns_in, pages_in
from dspy_selfimprove.telemetry.spans import Pull, pull

APPLICATIONS = Path(__file__).with_name("applications.py")
SOURCE = str(Path(dspy_selfimprove.__file__).parents[1])
BEGAN = datetime(2026, 1, 5, 9, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(client, "_PAUSE", 0.01)


# A model, and a collector that keeps what it is sent.


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    collected: list[ExportTraceServiceRequest]

    def log_message(self, *_):
        pass

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/traces"):
            self.collected.append(ExportTraceServiceRequest.FromString(body))
            self.answer(200, "application/x-protobuf", b"")
            return
        request = json.loads(body)
        last = request["messages"][-1]["content"]
        if last == "fail":
            self.answer(400, "application/json", b'{"error": {"message": "no", "type": "invalid_request_error"}}')
            return
        base = {"id": "x", "created": 1, "model": f"{request['model']}-2026"}
        said = [self.said(request, last, index) for index in range(request.get("n") or 1)]
        finish = "tool_calls" if said[0].get("tool_calls") else "stop"
        usage = {"prompt_tokens": 30, "completion_tokens": 2, "total_tokens": 32}
        if not request.get("stream"):
            choices = [{"index": at, "finish_reason": finish, "message": message} for at, message in enumerate(said)]
            full = {**base, "object": "chat.completion", "choices": choices, "usage": usage}
            self.answer(200, "application/json", json.dumps(full).encode())
            return
        deltas = [(at, delta) for at, message in enumerate(said) for delta in self.deltas(message)]
        choices = [[{"index": at, "delta": delta}] for at, delta in deltas]
        choices += [[{"index": at, "delta": {}, "finish_reason": finish}] for at in range(len(said))]
        chunks = [{**base, "object": "chat.completion.chunk", "choices": each} for each in choices]
        if request.get("stream_options"):
            chunks.append({**base, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.answer(200, "text/event-stream", text.encode())

    def said(self, request, last, index):
        if "[[ ## " in str(last):  # DSPy's chat form
            return {
                "role": "assistant",
                "content": f"[[ ## reasoning ## ]]\nso\n\n[[ ## answer ## ]]\nyes, {len(last)}",
            }
        if request.get("tools") and request["messages"][-1]["role"] != "tool":
            function = {"name": "look_up", "arguments": '{"order": "ü 7"}'}
            return {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"c{index}", "type": "function", "function": function}],
            }
        return {"role": "assistant", "content": f"Answer {index} to {json.dumps(last)[:80]} 💥", "refusal": None}

    def deltas(self, message):
        yield {"role": "assistant", "content": ""}
        for call in message.get("tool_calls", ()):
            function = {"name": call["function"]["name"], "arguments": ""}
            yield {"tool_calls": [{"index": 0, "id": call["id"], "type": "function", "function": function}]}
            for letter in call["function"]["arguments"]:
                yield {"tool_calls": [{"index": 0, "function": {"arguments": letter}}]}
        for word in (message["content"] or "").split(" "):
            yield {"content": f"{word} "}


class Production:
    """Spans that real applications sent, and what those applications say of them."""

    def __init__(self, folder, rounds):
        handler = type("Recording", (Handler,), {"collected": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        hide = {"hidden": {"OPENINFERENCE_HIDE_INPUTS": "true"}, "silent": {"OPENINFERENCE_HIDE_OUTPUTS": "true"}}
        running = [
            subprocess.Popen(
                [sys.executable, APPLICATIONS, name, url, f"{url}/v1", folder / name, str(rounds)],
                env={**os.environ, "PYTHONPATH": SOURCE, **hide.get(name, {})},
                cwd=folder,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("desk", "program", "hidden", "silent")
        ]
        for process in running:
            _, said = process.communicate(timeout=240)
            assert process.returncode == 0, said
        server.shutdown()
        server.server_close()
        self.spans = [
            span
            for request in handler.collected
            for part in request.resource_spans
            for scope in part.scope_spans
            for span in scope.spans
        ]
        told = [json.loads(line) for name in ("desk", "program", "hidden", "silent") for line in (folder / name).open()]
        self.exchanges, self.steps = defaultdict(list), defaultdict(list)
        for each in told:
            (self.steps if "step" in each else self.exchanges)[each["call"]].append(each)

    def send(self, phoenix, project, copies):
        """Send the spans to Phoenix `copies` times over, each time as other spans of an earlier hour."""
        chance = random.Random(project)  # Phoenix knows a span by its id, in whatever project
        for copy in range(copies):
            renamed = defaultdict(lambda: chance.randbytes(8))
            traces = defaultdict(lambda: chance.randbytes(16))
            batch = []
            for span in self.spans:
                again = type(span)()
                again.CopyFrom(span)
                again.span_id, again.trace_id = renamed[span.span_id], traces[span.trace_id]
                if span.parent_span_id:
                    again.parent_span_id = renamed[span.parent_span_id]
                again.start_time_unix_nano -= copy * 3600 * 10**9
                again.end_time_unix_nano -= copy * 3600 * 10**9
                batch.append(again)
            for start in range(0, len(batch), 200):
                post(phoenix, project, batch[start : start + 200])


def post(phoenix, project, batch):
    request = ExportTraceServiceRequest()
    part = request.resource_spans.add()
    about = part.resource.attributes.add()
    about.key, about.value.string_value = "openinference.project.name", project
    part.scope_spans.add().spans.extend(batch)
    headers = {"content-type": "application/x-protobuf"}
    httpx.post(f"{phoenix.url}/v1/traces", content=request.SerializeToString(), headers=headers).raise_for_status()


def call(number, minutes=None, *, parent=None, kind="LLM", seconds=1.0, trace=None, **attributes):
    """A span of a call, made by hand."""
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    span = Span(name=attributes.pop("name", "ChatCompletion"), span_id=number.to_bytes(8, "big"))
    span.trace_id = (trace or number).to_bytes(16, "big")
    if parent:
        span.parent_span_id = parent.to_bytes(8, "big")
    began = BEGAN + timedelta(minutes=number % 10**6 if minutes is None else minutes)
    span.start_time_unix_nano = int(began.timestamp() * 1e6) * 1000
    span.end_time_unix_nano = span.start_time_unix_nano + int(seconds * 1e9)
    span.status.code = 1
    body = {"model": "m", "messages": [{"role": "user", "content": f"Question {number}"}]}
    said = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes."}}]}
    written = {"openinference.span.kind": kind, "input.value": json.dumps(body), "output.value": json.dumps(said)}
    for key, value in {**written, **attributes}.items():
        attribute = span.attributes.add()
        attribute.key, attribute.value.string_value = key, value
    return span


@pytest.fixture
def project():
    return f"spans-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def arrived(phoenix):
    """Wait until a project holds so many spans."""

    def wait(project, count, seconds=600):
        reading = Client(base_url=phoenix.url)
        deadline = time.monotonic() + seconds
        while True:
            query = SpanQuery().select("span_id")
            there = len(
                reading.spans.get_spans_dataframe(query=query, project_identifier=project, limit=10**6, timeout=60)
            )
            if there >= count:
                return
            assert time.monotonic() < deadline, f"{there} of {count} spans arrived"
            time.sleep(0.1 if count < 1_000 else 1.0)  # asking takes Phoenix's time from what is to arrive

    return wait


@pytest.fixture
def sent(phoenix, project, arrived):
    """Send spans made by hand, and wait for them."""
    total = 0

    def send(*batch):
        nonlocal total
        total += len(batch)
        post(phoenix, project, batch)
        arrived(project, total)

    return send


@pytest.fixture
def numbers():
    """Ids that no other test has used: Phoenix knows a span by its id, in whatever project."""
    base = random.SystemRandom().randrange(10**6, 2**40) * 10**6
    return [base + each for each in range(1, 1000)]


def ids(found):
    return [int(each.id, 16) for each in found.exchanges()]


# What applications asked and got.


def check(found: Pull, production: Production, copies: int) -> None:
    exchanges, steps = defaultdict(list), defaultdict(list)
    for each in found.exchanges():
        # An aside keeps no metadata; its call is found through its span.
        exchanges[each.id if isinstance(each, Aside) else (each.time, each.metadata["call"])].append(each)
    by_call = defaultdict(list)
    asides = Counter()
    for group in exchanges.values():
        for each in group:
            if isinstance(each, Aside):
                asides[str(each.reason)] += 1
            else:
                by_call[each.metadata["call"]].append(each)
    told = [line for lines in production.exchanges.values() for line in lines]
    assert asides == {
        reason: copies * count for reason, count in Counter(each.get("reason") for each in told).items() if reason
    }
    wanted = {number: lines for number, lines in production.exchanges.items() if "reason" not in lines[0]}
    assert by_call.keys() == wanted.keys()
    for number, lines in wanted.items():
        group = sorted(by_call[number], key=lambda each: each.time)
        assert len(group) == copies * len(lines)
        for at, each in enumerate(group):
            same(each, lines[at % len(lines)])
    for each in found.steps():
        steps[each.metadata["call"]].append(
            (each.path, canonical(each.inputs), canonical(each.outputs), each.instructions)
        )
    assert {number: Counter(each) for number, each in steps.items()} == {
        number: Counter({
            (tuple(line["step"]), canonical(line["inputs"]), canonical(line["outputs"]), line.get("told")): copies
            for line in lines
        })
        for number, lines in production.steps.items()
    }  # fmt: skip


def same(found, told):
    messages = [
        {"role": "assistant", "content": message.get("content"),
         **({"tool_calls": message["tool_calls"]} if message.get("tool_calls") else {})}
        for message in told["messages"]
    ]  # fmt: skip
    assert [thaw(found.output), *thaw(found.others)] == messages, told["way"]
    if told["way"] == "dspy":
        assert found.exact is told["exact"]
        assert thaw(found.messages) == told["asked"]
        assert found.request["temperature"] == 0.3
        assert found.request["model"] == "support-1"
        return
    assert found.exact
    assert canonical(found.request) == canonical(told["request"])
    assert found.finish_reason == told["finish_reason"]
    assert (found.tokens and [found.tokens.input, found.tokens.output]) == told["tokens"]
    assert (found.model, found.user_id, found.tags) == ("support-1-2026", "u1", ("a", "b"))
    assert found.session_id.startswith("s")
    assert thaw(found.metadata) == {"nest": {"a": [1, "ü"]}, "call": told["call"]}
    assert (found.template, found.template_version, thaw(found.template_variables)) == ("T {{x}}", "v2", {"x": "1"})
    assert found.seconds is not None


def test_what_applications_asked_and_got_comes_out_exactly(phoenix, project, arrived, tmp_path):
    production = Production(tmp_path, rounds=2)
    production.send(phoenix, project, copies=1)
    arrived(project, len(production.spans))
    found = pull(project, datetime.now(UTC) - timedelta(hours=1), into=tmp_path / "pull", endpoint=phoenix.url)
    assert (found.new, found.gone, len(found)) == (len(production.spans), 0, len(production.spans))
    check(found, production, copies=1)
    assert found.left_out() == {LeftOut.JUDGED: 2, LeftOut.OWN: 2, LeftOut.OUTER: 4}
    assert found.frame()["kind"].value_counts().to_dict() == Counter(kind(span) for span in production.spans)


def kind(span):
    return next(each.value.string_value for each in span.attributes if each.key == "openinference.span.kind")


@pytest.mark.slow
def test_five_thousand_spans_come_out_exactly(phoenix, project, arrived, tmp_path):
    """Some 500 exchanges are real; the rest are their spans sent again as others, since real ones take long."""
    production = Production(tmp_path, rounds=33)
    copies = -(-5_000 // len(production.spans))
    production.send(phoenix, project, copies)
    arrived(project, copies * len(production.spans), seconds=300)
    found = pull(project, datetime.now(UTC) - timedelta(days=2), into=tmp_path / "pull", endpoint=phoenix.url)
    assert found.new == copies * len(production.spans) >= 5_000
    check(found, production, copies)
    again = pull(project, datetime.now(UTC) - timedelta(days=2), into=tmp_path / "pull", endpoint=phoenix.url)
    assert again.new == 0


# Paging.


def test_slices_and_pages_are_cut_anywhere_and_nothing_is_lost(phoenix, project, sent, numbers, tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "LISTED", 8)
    monkeypatch.setattr(spans, "FIRST", 5)
    monkeypatch.setattr(spans, "MOST", 5)
    # Thirty at one moment, which is more than a slice or a page; the others alone, or days apart.
    batch = [call(number, 0.5) for number in numbers[:30]] + [call(number) for number in numbers[30:60]]
    batch += [call(number, 10_000 * at) for at, number in enumerate(numbers[60:66])]
    sent(*batch)
    told = []
    found = pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url, progress=lambda *said: told.append(said))
    assert (found.new, sorted(ids(found))) == (66, numbers[:66])
    times = [each.time for each in found.exchanges()]
    assert times == sorted(times)
    assert len(pages_in(tmp_path)) >= 14
    assert told[-1] == (66, 66)
    assert all(done <= known for done, known in told)


def test_pages_are_as_large_as_their_texts_allow(phoenix, project, sent, numbers, tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "FIRST", 10)
    monkeypatch.setattr(spans, "PAGE_BYTES", 200_000)
    large = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 20_000}]})
    sent(*(call(number, **{"input.value": large}) for number in numbers[:40]))
    found = pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url)
    assert len(ids(found)) == 40
    assert len(pages_in(tmp_path)) == 4
    assert {len(each.messages[0]["content"]) for each in found.exchanges()} == {20_000}


def test_only_the_recorded_messages_of_bodiless_calls_are_fetched(
    phoenix, project, sent, numbers, tmp_path, monkeypatch
):
    """LangChain's spans, and spans of other kinds, of which only the outline comes."""
    lists = {
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "Hi",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "Hello.",
    }
    odd = {"input.value": json.dumps({"messages": [[{"lc": 1}]]}), "output.value": json.dumps({"generations": []})}
    sent(
        call(numbers[0]),
        call(numbers[1], **odd, **lists),
        call(numbers[2], kind="EMBEDDING", **{"output.value": "[0.1]" * 1000}),
        *(call(number, kind="CHAIN", name="RunnableSequence") for number in numbers[3:6]),
    )
    asked = []
    select = spans._Reader._select
    monkeypatch.setattr(
        spans._Reader,
        "_select",
        lambda self, columns, **how: asked.append((columns, how)) or select(self, columns, **how),
    )
    found = pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url)
    assert [(each.exact, each.output["content"]) for each in found.exchanges()] == [(True, "Yes."), (False, "Hello.")]
    messages = [how["where"] for columns, how in asked if "llm.input_messages" in columns]
    assert messages == [f'span_id in ["{numbers[1]:016x}"]']
    (page,) = pages_in(tmp_path)
    held = columns_in(page.path, (rows.ID, rows.OUTPUT, rows.ASKED))
    assert [text is not None for text in held[rows.OUTPUT]] == [True, True, *(4 * [False])]
    assert [text is not None for text in held[rows.ASKED]] == [False, True, *(4 * [False])]


# Again, and again later.


def test_a_later_pull_fetches_what_is_new_however_early_it_began(phoenix, project, sent, numbers, tmp_path):
    sent(*(call(number, at + 1) for at, number in enumerate(numbers[:6])))
    window = (BEGAN, BEGAN + timedelta(minutes=30))
    first = pull(project, *window, into=tmp_path, endpoint=phoenix.url)
    before = {page.path: page.path.stat().st_mtime_ns for page in pages_in(tmp_path)}
    assert pull(project, *window, into=tmp_path, endpoint=phoenix.url).new == 0
    sent(call(numbers[6], 3.5), call(numbers[7], 0), call(numbers[8], 29.9), call(numbers[9], 30))
    late = pull(project, *window, into=tmp_path, endpoint=phoenix.url)
    assert (first.new, late.new) == (6, 3)
    assert ids(late) == [numbers[at] for at in (7, 0, 1, 2, 6, 3, 4, 5, 8)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    wider = pull(project, BEGAN - timedelta(days=1), BEGAN + timedelta(days=1), into=tmp_path, endpoint=phoenix.url)
    assert (wider.new, len(wider)) == (1, 10)
    assert ids(Pull(tmp_path, BEGAN + timedelta(minutes=3), BEGAN + timedelta(minutes=4))) == [numbers[2], numbers[6]]


def test_an_evaluation_that_began_before_the_window_is_still_one(phoenix, project, sent, numbers, tmp_path):
    judge, chain, inner, plain = numbers[:4]
    sent(
        call(judge, -2, kind="EVALUATOR", seconds=300, trace=judge),
        call(chain, -1, kind="CHAIN", parent=judge, trace=judge),
        call(inner, 1, parent=chain, trace=judge),
        call(plain, 2),
    )
    found = pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url)
    assert (ids(found), found.left_out()) == ([plain], {LeftOut.JUDGED: 1})
    assert (found.new, len(found)) == (2, 2)
    assert pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url).new == 0
    # What was only looked at is not held: a wider window fetches it.
    wider = pull(project, BEGAN - timedelta(hours=1), into=tmp_path, endpoint=phoenix.url)
    assert (wider.new, len(wider), ids(wider), wider.left_out()) == (2, 4, [plain], {LeftOut.JUDGED: 1})


def test_annotations_come_along_and_are_read_again(phoenix, project, sent, numbers, tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "FIRST", 3)
    monkeypatch.setattr(spans, "MOST", 3)
    monkeypatch.setattr(spans, "TOGETHER", 2)
    monkeypatch.setattr(spans, "JOINED", 2)
    monkeypatch.setattr(annotations, "MOST", 2)
    monkeypatch.setattr(annotations, "PAGE", 3)
    sent(*(call(number) for number in numbers[:20]))
    id_ = [f"{number:016x}" for number in numbers]
    names = ["tone", 'odd "]name', "length"]
    said = [Annotation(id_[at], name, Score(at / 20, label="x")) for at in range(12) for name in names]
    write(said, endpoint=phoenix.url)
    write([Annotation(id_[0], "tone", Score(1.0), "HUMAN", identifier="ana")], endpoint=phoenix.url)
    by_hand = Client(base_url=phoenix.url).spans
    by_hand.add_span_annotation(span_id=id_[15], annotation_name="good", annotator_kind="HUMAN", label="yes", sync=True)
    by_hand.add_span_annotation(span_id=id_[0], annotation_name="scale", annotator_kind="CODE", score=4.0, sync=True)
    by_hand.add_span_note(span_id=id_[16], note="what a customer said")

    def read():
        found = {}
        for each in pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url).exchanges():
            for reading in each.readings:
                assert reading.time is not None
                found[int(each.id, 16), reading.name, reading.kind, reading.identifier] = (reading.score, reading.label)
        return found

    ours = annotations.IDENTIFIER
    wanted = {(numbers[at], name, "LLM", ours): (at / 20, "x") for at in range(12) for name in names}
    wanted |= {
        (numbers[0], "tone", "HUMAN", "ana"): (1.0, None),
        (numbers[15], "good", "HUMAN", ""): (None, "yes"),
        (numbers[0], "scale", "CODE", ""): (4.0, None),
    }
    assert read() == wanted
    write([Annotation(id_[3], "tone", Score(0.99)), Annotation(id_[19], "tone", Score(0.5))], endpoint=phoenix.url)
    wanted |= {(numbers[3], "tone", "LLM", ours): (0.99, None), (numbers[19], "tone", "LLM", ours): (0.5, None)}
    assert read() == wanted
    # A Phoenix that does not say what spans were judged on is asked about each.
    monkeypatch.setattr(spans, "names", lambda *_: None)
    assert read() == wanted


# Mishaps.

KILLED = """
import os, signal, sys
from datetime import datetime
from dspy_selfimprove.telemetry import spans
spans.FIRST = spans.MOST = 10
def die(done, known):
    if done >= 30:
        os.kill(os.getpid(), signal.SIGKILL)
spans.pull(sys.argv[1], datetime.fromisoformat(sys.argv[2]), into=sys.argv[3], endpoint=sys.argv[4], progress=die)
"""


def test_killed_in_the_middle_the_next_one_goes_on(phoenix, project, sent, numbers, tmp_path):
    sent(*(call(number) for number in numbers[:60]))
    command = [sys.executable, "-c", KILLED, project, BEGAN.isoformat(), str(tmp_path), phoenix.url]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (tmp_path / ".half.parquet.0.part").write_bytes(b"PAR1")
    before = {page.path: page.path.stat().st_mtime_ns for page in pages_in(tmp_path)}
    held = len(Pull(tmp_path))
    assert 30 <= held <= 40
    found = pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url)
    assert (found.new, ids(found)) == (60 - held, numbers[:60])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.slow
def test_phoenix_goes_away_in_the_middle_and_what_was_pulled_stands(tmp_path, numbers, monkeypatch):
    from dspy_selfimprove.telemetry.server import running

    monkeypatch.setattr(spans, "FIRST", 10)
    monkeypatch.setattr(spans, "MOST", 10)
    home, into = tmp_path / ".selfimprove", tmp_path / "pull"
    with running(home) as phoenix:
        post(phoenix, "away", [call(number) for number in numbers[:60]])
        time.sleep(3)

        def die(done, known):
            if done == 30:
                os.kill(phoenix.pid, signal.SIGKILL)

        with pytest.raises(PhoenixUnreachable):
            pull("away", BEGAN, into=into, endpoint=phoenix.url, progress=die)
    held = len(Pull(into))
    assert 30 <= held <= 40
    assert ids(Pull(into)) == numbers[:held]
    with running(home) as phoenix:
        found = pull("away", BEGAN, into=into, endpoint=phoenix.url)
    assert (found.new, ids(found)) == (60 - held, numbers[:60])


def test_spans_deleted_in_between_are_counted(phoenix, project, sent, numbers, tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "FIRST", 5)
    monkeypatch.setattr(spans, "MOST", 5)
    sent(*(call(number) for number in numbers[:30]))
    at_hand = Client(base_url=phoenix.url).spans

    def delete(done, known):
        if done == 5:
            at_hand.delete(span_identifier=f"{numbers[28]:016x}")

    found = pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url, progress=delete)
    assert (found.new, found.gone) == (29, 1)
    assert ids(found) == [*numbers[:28], numbers[29]]


def test_spans_that_are_listed_and_not_given_are_an_error(phoenix, project, sent, numbers, tmp_path, monkeypatch):
    """A filter that Phoenix no longer knows gives nothing, without a word."""
    sent(*(call(number) for number in numbers[:4]))
    select = spans._Reader._select

    def forgetful(self, columns, **how):
        found = select(self, columns, **how)
        if "input.value" in columns:
            found.pop(f"{numbers[2]:016x}", None)
        return found

    monkeypatch.setattr(spans._Reader, "_select", forgetful)
    with pytest.raises(TelemetryError, match="lists 1 spans that it does not give"):
        pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url)


def test_an_empty_window_is_no_error(phoenix, project, sent, numbers, tmp_path):
    sent(call(numbers[0]))
    found = pull(project, BEGAN - timedelta(days=2), BEGAN - timedelta(days=1), into=tmp_path, endpoint=phoenix.url)
    assert (found.new, len(found), list(found.exchanges()), list(found.steps())) == (0, 0, [], [])
    assert found.frame().empty


def test_a_project_that_is_not_there_names_the_nearest(phoenix, sent, project, numbers, tmp_path):
    sent(call(numbers[0]))
    with pytest.raises(UsageError, match=rf"no project '{project[:-1].upper()}'\. Did you mean '{project}'"):
        pull(project[:-1].upper(), BEGAN, into=tmp_path, endpoint=phoenix.url)
    with pytest.raises(UsageError, match=r"no project 'ünheard_of €€€'\. It has '"):
        pull("ünheard_of €€€", BEGAN, into=tmp_path, endpoint=phoenix.url)
    assert not list(tmp_path.iterdir())


def test_a_folder_belongs_to_one_project_and_one_process(phoenix, sent, project, numbers, tmp_path):
    from filelock import FileLock

    sent(call(numbers[0]))
    pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url)
    with pytest.raises(UsageError, match=f"holds spans of the project '{project}'"):
        pull("default", BEGAN, into=tmp_path, endpoint=phoenix.url)
    holder = textwrap.dedent("""
        import sys
        from filelock import FileLock
        with FileLock(sys.argv[1]):
            print("held", flush=True)
            sys.stdin.read()
    """)
    command = [sys.executable, "-c", holder, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="Another process is pulling"):
            pull(project, BEGAN, into=tmp_path, endpoint=phoenix.url)
        process.stdin.close()
    with FileLock(tmp_path / "lock", timeout=5):
        pass
    (tmp_path / "pull.json").write_text('{"format": 99, "project": "p"}')
    with pytest.raises(UsageError, match="newer dspy-selfimprove"):
        Pull(tmp_path)
    (tmp_path / "pull.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        Pull(tmp_path)
    with pytest.raises(UsageError, match="holds no spans"):
        Pull(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [
        (datetime(2026, 11, 1), None, "`since` has no time zone"),
        (BEGAN, datetime(2026, 11, 1), "`until` has no time zone"),
        (datetime.now(UTC) + timedelta(days=1), None, "lies in the future"),
        (BEGAN, BEGAN, "`until` is not after `since`"),
    ],
)
def test_windows_that_cannot_be_meant(tmp_path, since, until, says):
    with pytest.raises(UsageError, match=says):
        pull("p", since, until, into=tmp_path, endpoint="http://127.0.0.1:9")


def test_nobody_there(tmp_path):
    with pytest.raises(PhoenixUnreachable, match="cannot be reached"):
        pull("p", BEGAN, into=tmp_path, endpoint="http://127.0.0.1:9")
