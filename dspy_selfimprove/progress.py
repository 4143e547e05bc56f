"""Progress: what is being done now, wherever it is looked at from.

A terminal gets bars that move, a notebook one line that changes in place, a log one line per finished step; nobody
(`shown=False`) gets nothing. Steps are named by what they do, in words; text from a trace is never among them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

OFTEN = 0.1  # seconds between two changes of a notebook's line


@contextmanager
def step(doing: str, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """A step that is under way; what it gives is called with how much is done and, if it is known, of how much.

    >>> with step("Reading spans", shown=False) as done:
    ...     done(500, 1_000)
    """
    if not shown:
        yield lambda count, total=None: None
    elif _in_notebook():
        with _notebook(doing) as advance:
            yield advance
    elif sys.stderr.isatty():
        with _terminal(doing) as advance:
            yield advance
    else:
        with _log(doing) as advance:
            yield advance


@contextmanager
def _terminal(doing: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console

    with _bars(Console(stderr=True)) as bars:
        task = bars.add_task(doing, total=None, counted="")
        seen = 0

        def advance(count: int, total: int | None = None) -> None:
            nonlocal seen
            seen = count
            bars.update(task, completed=count, total=total, counted=f"{count:,}/{total:,}" if total else f"{count:,}")

        yield advance
        bars.update(task, completed=max(seen, 1), total=max(seen, 1), counted=f"{seen:,}" if seen else "")


def _bars(console: Any) -> Bars:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(finished_text="[green]✓[/green]"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[counted]}"),
        TimeElapsedColumn(),
        console=console,
    )


@contextmanager
def _notebook(doing: str) -> Iterator[Callable[..., None]]:
    import IPython.display

    show: Any = IPython.display.display  # it has no types
    handle = show({"text/plain": f"{doing} ..."}, raw=True, display_id=True)
    began = last = time.monotonic()
    seen = 0

    def advance(count: int, total: int | None = None) -> None:
        nonlocal last, seen
        seen = count
        if time.monotonic() - last >= OFTEN:
            last = time.monotonic()
            of = f" of {total:,}" if total else ""
            handle.update({"text/plain": f"{doing} ... {count:,}{of}"}, raw=True)

    yield advance
    handle.update({"text/plain": _done(doing, seen, began)}, raw=True)


@contextmanager
def _log(doing: str) -> Iterator[Callable[..., None]]:
    began, seen = time.monotonic(), 0

    def advance(count: int, total: int | None = None) -> None:
        nonlocal seen
        seen = count

    yield advance
    sys.stderr.write(f"{_done(doing, seen, began)}\n")
    sys.stderr.flush()


def _done(doing: str, count: int, began: float) -> str:
    return f"{doing}: {f'{count:,}, ' if count else ''}{time.monotonic() - began:.1f} s"


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
