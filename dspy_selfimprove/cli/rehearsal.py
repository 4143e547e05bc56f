"""`dspy-selfimprove rehearsal serve`: the stand-in model as a server, until it is stopped.

Ctrl-C and SIGTERM are how it is meant to end: both stop it cleanly, with exit code 0.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from dspy_selfimprove.errors import UsageError

if TYPE_CHECKING:
    from dspy_selfimprove.rehearsal.engine import Counts

_PORT = 8010
_REFRESH = 0.5


def _parsed(ctx: click.Context, param: click.Parameter, value: str) -> Any:
    from dspy_selfimprove.rehearsal.fault import Faults, Latency

    read = Latency.parse if param.name == "latency" else Faults.parse
    try:
        return read(value)
    except UsageError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.group()
def rehearsal() -> None:
    """Run the stand-in model, for trying everything without a key."""


@rehearsal.command()
@click.option("--port", default=_PORT, show_default=True, help="Where to listen; 0 takes a free port.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other answers and other faults.")
@click.option(
    "--latency",
    callback=_parsed,
    default="0ms",
    show_default=True,
    help="How long an answer takes: 50ms, lognormal:50ms:0.5, or heavy:50ms.",
)
@click.option(
    "--faults",
    callback=_parsed,
    default="none",
    show_default=True,
    help="What goes wrong how often: 10% of all kinds, or 429=5%,500=2%,timeout=1%.",
)
@click.option("--api-key", help="Refuse requests that do not bring this key.")
def serve(port: int, seed: int, latency: Any, faults: Any, api_key: str | None) -> None:
    """Serve the stand-in model on this machine, as OpenAI's API would be served.

    It shows that the machinery works (clients, retries, tracing, evaluators, the search). It says nothing about the
    quality of any model: its answers follow simple rules, and no figure measured on it should be read as more.

    Counters are at /counters. Ctrl-C stops it.
    """
    from dspy_selfimprove.rehearsal.model import RehearsalModel
    from dspy_selfimprove.rehearsal.server import serve as serving

    with _until_stopped() as stopped:
        with serving(
            RehearsalModel(seed=seed), port=port, seed=seed, latency=latency, faults=faults, api_key=api_key
        ) as served:
            click.echo(f"The rehearsal model answers at {served.url}. It shows the machinery, not a model's quality.")
            click.echo("Point an application at it, in the shell that starts it:\n")
            click.echo(f"  export OPENAI_BASE_URL={served.url}")
            click.echo(f"  export OPENAI_API_KEY={api_key or 'rehearsal'}\n")
            click.echo("Ctrl-C stops it.")
            while not stopped.wait(_REFRESH):
                if sys.stdout.isatty():
                    click.echo(f"\r\x1b[K{_line(served.counts())}", nl=False)
        click.echo(f"{chr(10) if sys.stdout.isatty() else ''}Stopped. Calls: {served.counts().calls}.")


def _line(counts: Counts) -> str:
    errors = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.errors.items()))
    tokens = counts.prompt_tokens + counts.completion_tokens
    line = f"{counts.calls} calls, {counts.in_flight} in flight (peak {counts.peak}), {tokens} tokens"
    line = f"{line}; {errors}" if errors else line
    # One that wraps could not be written over.
    return line[: shutil.get_terminal_size().columns - 1]


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """An event that ctrl-C and SIGTERM set, so that neither strikes in the middle of starting or stopping."""
    stopped = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stopped.set()) for number in signals]
    try:
        yield stopped
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
