"""Slots: the one pool that every call of a run takes its place in, whoever makes it.

Rollouts, judges and the coach share it, so a slot that one of them leaves is taken by whoever waits longest. Threads
and event loops wait in the same queue. It measures how much of its time it was in use, which is how a search that
leaves slots idle is found out; a `Waits` measures how long one piece of work had to wait for them. Not covered: several
processes, and priorities (the scheduler decides what asks).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar

from dspy_selfimprove.errors import UsageError


class Waits:
    """The seconds in which the work inside `watched()` wanted a slot and had none. While it has one it does not wait.

    >>> slots, waits = Slots(1), Waits()
    >>> with waits.watched():
    ...     slots.ask().result()
    ...     slots.give()
    >>> waits.seconds
    0.0
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wants = self._has = 0
        self._since = self._seconds = 0.0

    @property
    def seconds(self) -> float:
        self._count(0, 0)
        return self._seconds

    @contextmanager
    def watched(self) -> Iterator[None]:
        token = _waits.set(self)
        try:
            yield
        finally:
            _waits.reset(token)

    def _count(self, wants: int, has: int) -> None:
        with self._lock:
            now = self._clock()
            if self._wants and not self._has:
                self._seconds += now - self._since
            self._since = now
            self._wants += wants
            self._has += has

    def _begin(self, turn: Future[None]) -> None:
        if turn.done():
            self._count(0, +1)
            return
        self._count(+1, 0)
        turn.add_done_callback(lambda done: self._count(-1, 0 if done.cancelled() else +1))

    def _end(self) -> None:
        self._count(0, -1)


_waits: ContextVar[Waits | None] = ContextVar("waits", default=None)


class Slots:
    """The one pool: at most `size` calls in flight, first come first served, for threads and event loops together.

    >>> slots = Slots(1)
    >>> first, second = slots.ask(), slots.ask()
    >>> first.done(), second.done()
    (True, False)
    >>> slots.give()
    >>> second.done()
    True
    """

    def __init__(self, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if size < 1:
            raise UsageError(f"{size} slots are too few.", remedy="Use at least one.")
        self.size = size
        self._free = size
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()
        self._clock = clock
        self._start = self._since = clock()
        self._busy_time = 0.0

    def ask(self) -> Future[None]:
        """A future that is done when a slot is ours. Whoever stops waiting must `leave` it."""
        turn: Future[None] = Future()
        with self._lock:
            if self._free:
                self._count(-1)
                turn.set_result(None)
            else:
                self._waiting.append(turn)
        if (waits := _waits.get()) is not None:
            waits._begin(turn)
        return turn

    def give(self) -> None:
        """Hand a slot back: to the first who still waits, else to the pool."""
        if (waits := _waits.get()) is not None:
            waits._end()
        with self._lock:
            while self._waiting:
                # A waiter that was cancelled meanwhile must not take the slot with it.
                if (turn := self._waiting.popleft()).set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._count(+1)

    def leave(self, turn: Future[None]) -> None:
        """Stop waiting; if the slot came meanwhile, hand it on."""
        if not turn.cancel() and turn.exception() is None:
            self.give()

    @property
    def busy(self) -> int:
        with self._lock:
            return self.size - self._free

    @property
    def share_busy(self) -> float:
        """The share of slot time in use since the pool was made."""
        with self._lock:
            self._count(0)
            passed = self._since - self._start
            return self._busy_time / (passed * self.size) if passed > 0 else 0.0

    def _count(self, change: int) -> None:
        now = self._clock()
        self._busy_time += (self.size - self._free) * (now - self._since)
        self._since = now
        self._free += change
