"""Spans on their way to Phoenix: kept in memory for a moment, sent in batches, never in the application's way.

An OpenTelemetry span processor of our own instead of the SDK's batch processor and OTLP exporter, because beside a
production application these matter and those lack them:
  - `flush` is truthful and keeps to its time; the SDK's returns True whatever became of the spans, and takes as long as
    it takes (30 s at exit with a dead collector);
  - a collector that restarts loses nothing: spans wait, within a bound of number *and* size, and the oldest go first;
  - one warning per kind of trouble, then quiet; the exporter writes a line for every attempt;
  - one span that UTF-8 cannot hold does not cost the batch it is in;
  - a redirect is no delivery: following one makes a GET without the spans, and takes the key to another host;
  - no connection and no lock is shared with a forked child, which starts with an empty box.

The encoding is OpenTelemetry's; only the sending is ours, over urllib: an HTTP library that the application uses too
might be traced, mocked or logging. All that happens on the application's thread is to add up lengths and take a lock.
Not covered: spans still in the box when the process is killed (SIGKILL, or SIGTERM without a handler).
"""

from __future__ import annotations

import http.client
import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import httpx
from openinference.instrumentation import suppress_tracing
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.trace import Status

from dspy_selfimprove.telemetry.client import CHECK_IT, GIVE_A_KEY, NONE_RUNS, START_IT, Address, clean_text

logger = logging.getLogger("dspy_selfimprove.telemetry")

HELD_SPANS, HELD_CHARACTERS = 10_000, 64 * 2**20
BATCH_SPANS, BATCH_CHARACTERS = 512, 4 * 2**20
PERIOD = 1.0
LONGEST_PAUSE = 30.0
ANSWER_WITHIN = 2.0


class _Outcome(Enum):
    TAKEN = auto()
    AWAY = auto()  # keep the batch and try again
    REFUSED = auto()  # this batch will be refused again


class Outbox(SpanProcessor):
    """Holds ended spans and sends them to wherever `find` says the collector is."""

    def __init__(self, find: Callable[[], Address | None]) -> None:
        self._find = find
        self._told: set[str] = set()
        self._tls: ssl.SSLContext | None = None
        self._empty()
        if hasattr(os, "register_at_fork"):
            after_fork = weakref.WeakMethod(self._empty)
            os.register_at_fork(after_in_child=lambda: (refill := after_fork()) and refill())

    def _empty(self) -> None:
        self._changed = threading.Condition()
        self._held: deque[tuple[ReadableSpan, int]] = deque()
        self._characters = 0
        # Counts of spans, ever: all that ended, those with an outcome, those of them that are lost. A flush waits until
        # as many are settled as had ended when it was called.
        self._ended = self._settled = self._lost = self._lost_told = 0
        self._wanted = self._failures = 0
        self._pause = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> int:
        """How many spans the collector will never have."""
        return self._lost

    def on_end(self, span: ReadableSpan) -> None:
        # A processor's exception would surface in the application's own call.
        try:
            self._hold(span)
        except Exception as error:
            self._tell("hold", f"A span could not be kept ({type(error).__name__}); it is lost.")

    def _hold(self, span: ReadableSpan) -> None:
        characters = sum(len(value) for value in (span.attributes or {}).values() if isinstance(value, str))
        with self._changed:
            if self._closed:
                return
            self._held.append((span, characters))
            self._characters += characters
            self._ended += 1
            self._trim()
            if self._thread is None:
                # Started with the first span: a process that only imports, or is about to fork, has no thread of ours.
                self._thread = threading.Thread(target=self._work, name="dspy-selfimprove-outbox", daemon=True)
                self._thread.start()
            if len(self._held) in (1, BATCH_SPANS):
                self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Send what is held. True if the collector took everything that ended since the last flush, in time.

        It does not wait for a collector that is away: the first failed attempt answers.
        """
        with self._changed:
            ended, failures = self._ended, self._failures
            self._wanted = max(self._wanted, ended)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._settled >= ended or self._failures > failures, timeout)
            taken = self._settled >= ended and self._lost == self._lost_told
            self._lost_told = self._lost
            return taken

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Take and send nothing more; what is still held is lost."""
        with self._changed:
            self._closed = True
            self._give_up(len(self._held))
            self._held.clear()
            self._changed.notify_all()

    def _give_up(self, spans: int) -> None:
        self._lost += spans
        self._settled += spans

    def _work(self) -> None:
        with suppress_tracing():
            while batch := self._next():
                self._settle(batch, self._send([span for span, _ in batch]))

    def _next(self) -> list[tuple[ReadableSpan, int]]:
        """The next batch, once it is due; empty when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._closed)
            self._changed.wait_for(self._is_urgent, self._pause or PERIOD)
            batch: list[tuple[ReadableSpan, int]] = []
            characters = 0
            while self._held and len(batch) < BATCH_SPANS and characters < BATCH_CHARACTERS:
                batch.append(self._held.popleft())
                characters += batch[-1][1]
            self._characters -= characters
            return batch

    def _is_urgent(self) -> bool:
        full = len(self._held) >= BATCH_SPANS or self._characters >= BATCH_CHARACTERS
        return self._closed or self._wanted > self._settled or (full and not self._pause)

    def _settle(self, batch: list[tuple[ReadableSpan, int]], outcome: _Outcome) -> None:
        with self._changed:
            if outcome is _Outcome.AWAY and not self._closed:
                self._held.extendleft(reversed(batch))
                self._characters += sum(characters for _, characters in batch)
                self._trim()
                self._failures += 1
                self._wanted = 0
                self._pause = min(max(2 * self._pause, PERIOD), LONGEST_PAUSE)
            elif outcome is _Outcome.TAKEN:
                self._settled += len(batch)
                self._pause = 0.0
            else:
                self._give_up(len(batch))
            self._changed.notify_all()

    def _trim(self) -> None:
        while len(self._held) > HELD_SPANS or (self._characters > HELD_CHARACTERS and len(self._held) > 1):
            self._characters -= self._held.popleft()[1]
            self._give_up(1)

    def _send(self, spans: Sequence[ReadableSpan]) -> _Outcome:
        try:
            collector = self._find()
        except Exception:
            collector = None
        if collector is None:
            self._tell("none", f"{NONE_RUNS}; spans wait in memory. {START_IT}")
            return _Outcome.AWAY
        try:
            return self._post(collector, encode_spans([_encodable(span) for span in spans]).SerializeToString())
        except Exception as error:
            self._tell("encode", f"A batch of spans could not be sent ({type(error).__name__}); it is lost.")
            return _Outcome.REFUSED

    def _post(self, collector: Address, body: bytes) -> _Outcome:
        headers = {"content-type": "application/x-protobuf", **collector.headers}
        request = urllib.request.Request(f"{collector.shown}/v1/traces", body, headers, method="POST")  # noqa: S310
        try:
            with self._opener(collector).open(request, timeout=ANSWER_WITHIN) as answer:
                kind = answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            return self._judge(error.code, collector)
        except (OSError, http.client.HTTPException):
            self._tell("away", f"Phoenix at {collector.shown} does not take spans; they wait in memory. {START_IT}")
            return _Outcome.AWAY
        if kind == "text/html":
            return self._judge(404, collector)
        return _Outcome.TAKEN

    def _judge(self, status: int, collector: Address) -> _Outcome:
        where = collector.shown
        if status in (401, 403):
            self._tell("key", f"Phoenix at {where} does not accept our key; spans wait in memory. {GIVE_A_KEY}")
        elif status >= 500 or status == 429:
            self._tell("busy", f"Phoenix at {where} takes no spans now (status {status}); they wait in memory.")
        elif 300 <= status < 400:
            self._tell("moved", f"What answers at {where} sends spans elsewhere; they wait in memory. {CHECK_IT}")
        elif status in (404, 405):
            self._tell("other", f"What answers at {where} is not Phoenix; spans wait in memory. {CHECK_IT}")
        else:
            self._tell("refused", f"Phoenix at {where} refused a batch of spans (status {status}); it is lost.")
            return _Outcome.REFUSED
        return _Outcome.AWAY

    def _opener(self, collector: Address) -> urllib.request.OpenerDirector:
        if collector.is_loopback:
            return urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
        if self._tls is None:
            # Python's own default finds no certificates on some installations; httpx brings them.
            self._tls = httpx.create_ssl_context()
        return urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=self._tls))

    def _tell(self, kind: str, sentence: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("%s", sentence)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirect what any other refusal is: an HTTPError with its status."""

    def redirect_request(self, *_: object) -> None:
        return None


def _encodable(span: ReadableSpan) -> ReadableSpan:
    """`span`, or a copy whose every text UTF-8 can hold."""
    events = span.events
    texts = (span.name, span.status.description, span.attributes, [(event.name, event.attributes) for event in events])
    if _is_encodable(texts):
        return span
    return ReadableSpan(
        name=clean_text(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_cleaned(span.attributes),
        events=[Event(clean_text(event.name), _cleaned(event.attributes), event.timestamp) for event in events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, _cleaned(span.status.description)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _is_encodable(value: object) -> bool:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, Mapping):
        return all(_is_encodable(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return all(_is_encodable(item) for item in value)
    return True


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value
