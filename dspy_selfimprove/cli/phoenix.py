"""`dspy-selfimprove phoenix`: the server that receives the traces, started, stopped and looked at.

Results go to standard output, progress to standard error. A Phoenix that `PHOENIX_COLLECTOR_ENDPOINT` names is the one
to use, so none is started, and that one is looked at and opened; `stop` ends this project's own and never another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dspy_selfimprove.telemetry.server import Phoenix


@click.group()
def phoenix() -> None:
    """Run the Phoenix server that receives the traces."""


@phoenix.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Use this port and no other.  [default: 6006 or the next]")
@click.option("--database-url", metavar="URL", help="Keep the data in PostgreSQL instead of in .selfimprove/phoenix/.")
@click.option("--timeout", type=float, default=120.0, show_default=True, help="Seconds the server may take to come up.")
def start(port: int | None, database_url: str | None, timeout: float) -> None:
    """Start this project's server, or say where it runs already.

    The first start on a machine installs Phoenix into the user's cache, unless DSPY_SELFIMPROVE_PHOENIX_PYTHON names a
    Python that has arize-phoenix. If PHOENIX_COLLECTOR_ENDPOINT names a server, that one is used and none is started.
    """
    from dspy_selfimprove.telemetry import server

    with _shown() as progress:
        found = server.start(port=port, database_url=database_url, timeout=timeout, progress=progress)
    if found.ours:
        click.echo(f"Phoenix {found.version} is running at {found.shown}")
        click.echo(f"Its data is in {_place(found)}; `dspy-selfimprove phoenix stop` ends it.")
    else:
        click.echo(f"Using the Phoenix {found.version} at {found.shown}, which PHOENIX_COLLECTOR_ENDPOINT names.")


@phoenix.command()
def stop() -> None:
    """Stop this project's server, whatever PHOENIX_COLLECTOR_ENDPOINT names. Its data stays."""
    from dspy_selfimprove.telemetry import server

    click.echo("Phoenix is stopped." if server.stop() else "No Phoenix of this project was running.")


@phoenix.command()
@click.pass_context
def status(context: click.Context) -> None:
    """Say which Phoenix is used; exit code 1 if there is none."""
    from dspy_selfimprove.telemetry import server

    if server.locate() is None and server.status() is None:
        click.echo("No Phoenix is running for this project; `dspy-selfimprove phoenix start` starts one.")
        context.exit(1)
    found = server.find()
    click.echo(f"Phoenix {found.version} is running at {found.shown}")
    if found.ours:
        click.echo(f"  process   {found.pid}")
        click.echo(f"  traces    {found.traces_url}" + (f", gRPC on port {found.grpc_port}" if found.grpc_port else ""))
        click.echo(f"  data      {_place(found)}")


@phoenix.command("open")
@click.argument("project", required=False)
def open_(project: str | None) -> None:
    """Show Phoenix, or PROJECT in it, in the browser; its address is printed in any case."""
    import os
    import sys
    import webbrowser

    from dspy_selfimprove.telemetry import server

    found = server.find()
    url = found.project_url(project) if project else found.shown
    click.echo(url)
    # Without a display, webbrowser would start a text browser in this very terminal.
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(url)


def _place(found: Phoenix) -> str:
    return (found.database or "").removeprefix("sqlite:///")


@contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    """A spinner that says what is being done; where no terminal is, one line per thing done."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("looking for Phoenix") as spinner:
            yield lambda doing: spinner.update(doing)
        return
    said: set[str] = set()

    def say(doing: str) -> None:
        what = re.sub(r"\s*\(.*\)", "", doing)
        if what not in said:
            said.add(what)
            click.echo(f"{doing} ...", err=True)

    yield say
