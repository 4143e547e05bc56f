"""Pool: threads that work off tasks side by side, with no barrier between a task and what follows from it.

A task is called, and gives the tasks that follow from it. Those go before everything that has not begun, so what was
started is finished first: a run that ends early leaves whole results, and at no time are many halves in memory.

Every task runs in a copy of the context of whoever called `run`: DSPy's settings, OpenTelemetry's span, context
variables. An exception of a task stops the run and is raised where `run` was called. Ctrl-C lets the tasks under way
come to their end and begins no other; a second one does not wait for them (the threads are daemons).

Not covered: ending a task under way. Threads cannot be interrupted; a call that hangs is its own time-out's affair.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

Task: TypeAlias = Callable[[], Iterable["Task"]]

_LOOK = 0.1  # seconds between two looks at how far it got


class Pool:
    """`size` threads at most, for one run.

    >>> done = []
    >>> def task(number):
    ...     def work():
    ...         done.append(number)
    ...         return [task(number * 10)] if number < 10 else []
    ...     return work
    >>> Pool(1).run([task(1), task(2)])
    >>> done
    [1, 10, 2, 20]
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._change = threading.Condition()
        self._next: deque[Task] = deque()
        self._first: Iterator[Task] = iter(())
        self._busy = self._alive = 0
        self._over = threading.Event()  # apart from the condition: the caller is not to be woken by every task
        self._stopped = self._exhausted = False
        self._error: BaseException | None = None

    def run(self, tasks: Iterable[Task], *, look: Callable[[], None] = lambda: None) -> None:
        """Work off `tasks` and all that follows from them; `look` is called now and then, in the caller's thread."""
        self._first = iter(tasks)
        context = contextvars.copy_context()
        try:
            with self._change:
                self._hire(context)
                if not self._alive:  # it was stopped before it began
                    self._over.set()
            while not self._over.wait(_LOOK):
                look()
        except BaseException:
            self.stop()
            self._drain()
            raise
        look()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Begin nothing more; what is under way comes to its end."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    @property
    def is_stopped(self) -> bool:
        return self._stopped

    def _drain(self) -> None:
        while self._alive and not self._over.wait(_LOOK):
            pass

    def _hire(self, context: contextvars.Context) -> None:
        """One more thread, which hires the next when it finds work: few tasks need few threads."""
        if self._alive < self.size and not self._stopped:
            self._alive += 1
            threading.Thread(target=self._work, args=(context,), name=f"evaluation-{self._alive}", daemon=True).start()

    def _work(self, context: contextvars.Context) -> None:
        try:
            while (task := self._take(context)) is not None:
                follows: list[Task] = []
                try:
                    follows = list(context.copy().run(task))
                except BaseException as error:
                    with self._change:
                        self._error, self._stopped = self._error or error, True
                finally:
                    with self._change:
                        self._busy -= 1
                        self._next.extend(follows)
                        if follows or not self._busy:
                            self._change.notify_all()
        finally:
            with self._change:
                self._alive -= 1
                self._change.notify_all()
                if not self._alive:
                    self._over.set()

    def _take(self, context: contextvars.Context) -> Task | None:
        with self._change:
            while not self._stopped:
                task = self._next.popleft() if self._next else self._begin()
                if task is not None:
                    self._busy += 1
                    self._hire(context)
                    return task
                if not self._busy:
                    return None
                self._change.wait()
            return None

    def _begin(self) -> Task | None:
        if self._exhausted:
            return None
        try:
            return next(self._first)
        except StopIteration:
            self._exhausted = True
            return None
        except BaseException as error:
            self._error, self._stopped = error, True
            return None
