"""Scores reach the spans they judge in a real Phoenix, once however often they are written."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dspy_selfimprove.errors import PhoenixUnauthorized, PhoenixUnreachable, TelemetryError, UsageError
from dspy_selfimprove.score import Score
from dspy_selfimprove.telemetry import annotations, client
from dspy_selfimprove.telemetry.annotations import Annotation, Written, read, write
from dspy_selfimprove.telemetry.client import Address, clean_text, connect
from dspy_selfimprove.telemetry.instrument import instrument

UNKNOWN = "ffffffffffffffff"


@pytest.fixture(scope="module")
def annotated(phoenix):
    """The ids of five spans in a project of this file's own, and the project."""
    import uuid

    project = f"annotations-{uuid.uuid4().hex[:12]}"
    ids = []
    with instrument(project, endpoint=phoenix.url) as sending:
        for number in range(5):
            with sending.tracer.start_as_current_span(str(number)) as span:
                ids.append(f"{span.get_span_context().span_id:016x}")
        assert sending.flush()
    return project, ids


@pytest.fixture
def spans(annotated, spans_in):
    project, ids = annotated
    spans_in(project, len(ids))
    return ids


@pytest.fixture
def written(annotated, phoenix, spans):
    """The annotations of the spans under one name, as Phoenix has them."""

    def readings(name):
        found = read(spans, project=annotated[0], names=[name], endpoint=phoenix.url)
        return {(each.span_id, each.identifier): each for each in found}

    return readings


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(client, "_PAUSE", 0.01)


def test_scores_arrive_as_they_are(phoenix, spans, written):
    scores = [
        Score(0.0, label="no", feedback="Too short.", details={"tokens": 3, "parts": ["a", {"b": None}]}),
        Score(1.0),
        Score(1 / 3, label="partly"),
    ]
    done = write(
        [
            Annotation(span, "arrive", score, kind)
            for span, score, kind in zip(spans, scores, ["LLM", "CODE", "HUMAN"], strict=False)
        ],
        endpoint=phoenix.url,
    )
    assert done == Written(3)
    found = [written("arrive")[span, annotations.IDENTIFIER] for span in spans[:3]]
    assert [(each.score, each.label, each.explanation, each.kind) for each in found] == [
        (0.0, "no", "Too short.", "LLM"),
        (1.0, None, None, "CODE"),
        (1 / 3, "partly", None, "HUMAN"),
    ]
    assert found[0].metadata == {"tokens": 3, "parts": ("a", {"b": None})}


def test_writing_again_replaces_and_another_identifier_stands_beside(phoenix, spans, written):
    first, second = Score(0.2, feedback="first"), Score(0.8, label="good")
    for score in (first, first, second):
        assert write([Annotation(spans[0], "again", score)], endpoint=phoenix.url) == Written(1)
    assert write([Annotation(spans[0], "again", first, identifier="v1")], endpoint=phoenix.url) == Written(1)
    found = written("again")
    assert {key: each.score for key, each in found.items()} == {
        (spans[0], annotations.IDENTIFIER): 0.8,
        (spans[0], "v1"): 0.2,
    }
    assert found[spans[0], annotations.IDENTIFIER].explanation is None


def test_the_last_of_several_in_one_call_counts(phoenix, spans, written):
    done = write([Annotation(spans[0], "last", Score(value)) for value in (0.1, 0.9, 0.5)], endpoint=phoenix.url)
    assert done == Written(1)
    assert written("last")[spans[0], annotations.IDENTIFIER].score == 0.5


def test_missing_is_not_zero(phoenix, spans, written):
    write([Annotation(spans[0], "missing", Score(0.7))], endpoint=phoenix.url)
    done = write(
        [
            Annotation(spans[0], "missing", Score.missing("the judge was away")),
            Annotation(spans[1], "missing", Score.missing("the judge was away")),
            Annotation(spans[2], "missing", Score(value=None, label="billing", failure="a label carries no number")),
        ],
        endpoint=phoenix.url,
    )
    assert done == Written(1, missing=2)
    found = written("missing")
    assert found.keys() == {(spans[0], annotations.IDENTIFIER), (spans[2], annotations.IDENTIFIER)}
    assert found[spans[0], annotations.IDENTIFIER].score == 0.7
    assert (found[spans[2], annotations.IDENTIFIER].score, found[spans[2], annotations.IDENTIFIER].label) == (
        None, "billing",
    )  # fmt: skip


def test_nothing_to_write_asks_nobody():
    assert write([], endpoint="http://127.0.0.1:9") == Written(0)
    missing = [Annotation(UNKNOWN, "q", Score.missing("away"))]
    assert write(missing, endpoint="http://127.0.0.1:9") == Written(0, missing=1)


def test_unknown_spans_are_part_of_the_answer_and_the_others_are_written(phoenix, spans, written, monkeypatch):
    monkeypatch.setattr(annotations, "BATCH", 3)
    ids = [spans[0], UNKNOWN, spans[1], "no such id, at all", spans[2], spans[3], spans[4]]
    done = write([Annotation(span, "known", Score(0.5)) for span in ids], endpoint=phoenix.url)
    assert (done.count, done.missing, set(done.unknown)) == (5, 0, {UNKNOWN, "no such id, at all"})
    assert len(written("known")) == 5
    assert write([Annotation(UNKNOWN, "known", Score(0.5))], endpoint=phoenix.url) == Written(0, unknown=(UNKNOWN,))


def test_thousands_go_in_batches(phoenix, spans, annotated):
    many = [Annotation(span, f"many {number}", Score(number / 500)) for number in range(500) for span in spans]
    assert write(many, endpoint=phoenix.url) == Written(2500)
    found = read(spans, project=annotated[0], names=["many 499", "many 0"], endpoint=phoenix.url)
    assert sorted(each.score for each in found) == [0.0] * 5 + [499 / 500] * 5


def test_hostile_text_arrives_whole_enough(phoenix, spans, written):
    text = "nul \x00, half \ud83d, whole \U0001f600, joined \ud83d\ude00, \u202eright to left, <script>, '; DROP"
    score = Score(0.5, label=text, feedback=text, details={text: text, "nan": math.nan, "when": ZeroDivisionError})
    huge = Score(0.5, label="l" * 5000, feedback="x" * 5_000_000)
    done = write(
        [Annotation(spans[0], "hostile", score, identifier="a\x00b"), Annotation(spans[1], "hostile", huge)],
        endpoint=phoenix.url,
    )
    assert done == Written(2)
    found = written("hostile")
    safe = "nul \ufffd, half \ufffd, whole \U0001f600, joined \U0001f600, \u202eright to left, <script>, '; DROP"
    one, other = found[spans[0], "a\ufffdb"], found[spans[1], annotations.IDENTIFIER]
    assert (one.label, one.explanation) == (safe, safe)
    assert one.metadata == {safe: safe, "nan": "nan", "when": "<class 'ZeroDivisionError'>"}
    assert (len(other.label), len(other.explanation)) == (1000 + len(" [4000 more characters]"), 20_026)
    assert other.explanation.endswith(" [4980000 more characters]")


def test_several_writers_at_once_leave_what_one_leaves(phoenix, spans, written):
    rows = [Annotation(span, "at once", Score(0.25)) for span in spans]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: write(rows, endpoint=phoenix.url), range(4)))
    assert done == [Written(5)] * 4
    assert len(written("at once")) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"span_id": ""}, {"name": " "}, {"name": "note"}, {"kind": "llm"}, {"identifier": ""},
    ],
)  # fmt: skip
def test_what_phoenix_could_not_take_is_refused_at_once(wrong):
    right = {"span_id": UNKNOWN, "name": "q", "score": Score(1.0)}
    with pytest.raises(UsageError):
        Annotation(**{**right, **wrong})


def test_reading_spans_and_projects_that_are_not_there(phoenix, spans, annotated, monkeypatch):
    monkeypatch.setattr(annotations, "CHUNK", 1)
    write([Annotation(spans[0], "there", Score(1.0))], endpoint=phoenix.url)
    found = read([UNKNOWN, spans[0], spans[1]], project=annotated[0], names=["there"], endpoint=phoenix.url)
    assert [each.span_id for each in found] == [spans[0]]
    assert read(spans, project=annotated[0], names=[], endpoint=phoenix.url) == ()
    with pytest.raises(UsageError, match="no project 'nobody-made-this'"):
        read(spans, project="nobody-made-this", endpoint=phoenix.url)


# When it is not Phoenix that answers, or not now.


class Peer:
    """A server that gives its answers in turn, the last one for ever; None breaks the connection off."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                peer.asked.append(self.headers.get("authorization"))
                answer = peer.answers.pop(0) if len(peer.answers) > 1 else peer.answers[0]
                if answer is None:
                    self.close_connection = True
                    return
                status, kind, body = answer
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


ONE = [Annotation(UNKNOWN, "q", Score(1.0, feedback="what a user said"))]
TAKEN = (200, "application/json", '{"data": [{"id": "x"}]}')
BUSY = (503, "text/plain", "later")


def test_outages_are_waited_out():
    with Peer(BUSY, None, (500, "text/plain", "oh"), (429, "text/plain", ""), TAKEN) as peer:
        assert write(ONE, endpoint=peer.url, api_key="secret-key") == Written(1)
    assert peer.asked == ["Bearer secret-key"] * 5


@pytest.mark.parametrize(
    ("answer", "error", "attempts"),
    [
        (BUSY, PhoenixUnreachable, 5),
        (None, PhoenixUnreachable, 5),
        ((500, "text/plain", "what a user said"), TelemetryError, 5),
        ((401, "text/plain", "what a user said"), PhoenixUnauthorized, 1),
        ((403, "text/plain", ""), PhoenixUnauthorized, 1),
        ((200, "text/html; charset=utf-8", "<html>"), PhoenixUnreachable, 1),
        ((404, "text/plain", "Not Found"), TelemetryError, 1),
        ((404, "text/plain", "Spans with IDs abc do not exist."), TelemetryError, 1),
        ((307, "text/plain", "what a user said"), PhoenixUnreachable, 1),
        ((422, "application/json", '{"detail": "what a user said"}'), TelemetryError, 1),
    ],
)
def test_each_failure_has_its_error_and_none_quotes_the_key_or_a_text(answer, error, attempts):
    with Peer(answer) as peer, pytest.raises(TelemetryError) as raised:
        write(ONE, endpoint=peer.url.replace("//", "//me:url-password@"), api_key="secret-key")
    assert type(raised.value) is error
    assert len(peer.asked) == attempts
    assert raised.value.remedy
    for hidden in ("secret-key", "url-password", "what a user said"):
        assert hidden not in f"{raised.value} {raised.value!r}"


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PhoenixUnreachable, match=r"Phoenix at http://127\.0\.0\.1:9 cannot be reached"):
        write(ONE, endpoint="http://127.0.0.1:9")
    with pytest.raises(PhoenixUnreachable, match="No Phoenix is running for this project"):
        write(ONE)


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Peer(TAKEN) as peer:
        assert write(ONE, endpoint=peer.url) == Written(1)


def test_a_request_that_must_not_be_repeated_is_not():
    with (
        Peer(BUSY, TAKEN) as peer,
        connect(Address(peer.url), attempts=1) as phoenix,
        pytest.raises(PhoenixUnreachable),
    ):
        phoenix.spans.log_span_annotations(
            span_annotations=[{"name": "q", "span_id": UNKNOWN, "annotator_kind": "LLM"}], sync=True
        )
    assert len(peer.asked) == 1


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain", "plain"), ("ü 💥", "ü 💥"), ("\x00", "\ufffd"), ("\ud83d", "\ufffd"), ("\ude00x", "\ufffdx"),
        ("\ud83d\ude00", "\U0001f600"), ("", ""),
    ],
)  # fmt: skip
def test_clean_text(text, clean):
    assert clean_text(text) == clean
    clean_text(text).encode()
