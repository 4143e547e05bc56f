"""Threads that wait for judges on behalf of event loops, and one loop for evaluators that know nothing else.

An event loop hands its verdicts to these threads and stays free; no call of ours hangs on a loop of the user's, so it
does not matter which loop asks, how many there are, or whether one of them is blocked. They are daemons: a process that
ends does not wait for a judge.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_MOST = 256  # slots say how many calls are in flight; this only bounds the threads that wait for one

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_process = os.getpid()


class _Helpers:
    """Daemon threads, as many as there is work for, up to a bound."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads = self._busy = 0
        self._lock = threading.Lock()

    def submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        future: Future[T] = Future()
        context = contextvars.copy_context()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = context.run(work, *args)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            self._busy += 1  # waiting or running
            more = self._busy > self._threads and self._threads < _MOST
            self._threads += more
        if more:
            threading.Thread(target=self._help, name="judge-helper", daemon=True).start()
        self._tasks.put(task)
        return future

    def _help(self) -> None:
        while True:
            self._tasks.get()()
            with self._lock:
                self._busy -= 1


# Two kinds, for who judges may wait for who asks: with one, the judging could take every thread and wait for good.
_judging, _asking = _Helpers(), _Helpers()


def submit(work: Callable[..., T], *args: Any) -> Future[T]:
    """Run `work`, which may judge, in a helper, in a copy of the caller's context."""
    _know_process()
    return _judging.submit(work, *args)


def ask(work: Callable[..., T], *args: Any) -> Future[T]:
    """The same for `work` that waits for a model's answer and for nothing of ours."""
    _know_process()
    return _asking.submit(work, *args)


def run_on_loop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end on the one loop that is ours, so that an evaluator's async client sees only that."""
    _know_process()
    loop = _own_loop()
    if asyncio._get_running_loop() is loop:  # code on our loop asks by a plain call: it cannot wait for itself
        return ask(lambda: asyncio.run(make())).result()
    future = asyncio.run_coroutine_threadsafe(make(), loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _own_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="judge-loop", daemon=True).start()
        return _loop


def _know_process() -> None:
    """A fork takes no threads along: the child starts with none."""
    global _lock, _loop, _judging, _asking, _process
    if _process != os.getpid():
        _process = os.getpid()
        _lock, _loop, _judging, _asking = threading.Lock(), None, _Helpers(), _Helpers()
