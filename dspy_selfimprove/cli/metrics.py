"""`dspy-selfimprove metrics`: what can be measured, and whether a judge is any good.

`check` keeps every verdict in .selfimprove/calibration/, so a second run asks only for what is new; what it finds is
kept beside them, for the optimizers. Results go to standard output, progress to standard error. No text of a row is
shown.
"""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from dspy_selfimprove.budget import Role
    from dspy_selfimprove.calibration import Calibration
    from dspy_selfimprove.definition import Definition
    from dspy_selfimprove.journal import Journal
    from dspy_selfimprove.metric import Metric
    from dspy_selfimprove.model import Models


@click.group()
def metrics() -> None:
    """List the metrics, show one, or check whether its judge is any good."""


@metrics.command("list")
def list_() -> None:
    """Every metric there is: those in .selfimprove/metrics/, those shipped, and the measures that need no file."""
    from rich.table import Table

    from dspy_selfimprove.metric import metric_of
    from dspy_selfimprove.metrics import HOMES

    heads = ("name", "kind", "inputs", "choices", "what it measures")
    table = Table(*heads, box=None, pad_edge=False, header_style="dim")
    for name in _names():
        made = _read(name)
        inputs = ", ".join(_inputs(made))
        table.add_row(made.name, _kind(made), inputs, _ends(made), _first(made.description))
    for name in sorted(set(HOMES) - set(_names())):
        measure = metric_of(name)
        table.add_row(name, "measure", ", ".join(measure.needs), "", _first(measure.description))
    _console().print(table)


@metrics.command()
@click.argument("name")
def show(name: str) -> None:
    """One metric: what it measures, what it needs, and the judge's prompt."""
    made = _read(name)
    lines = [
        ("", made.description),
        ("kind", _kind(made)),
        ("direction", made.direction),
        ("inputs", ", ".join(_inputs(made))),
        ("choices", _choices(made)),
        ("function", made.function),
        ("given", ", ".join(f"{name}={value!r}" for name, value in made.given.items() if len(repr(value)) < 60)),
        ("file", str(made.path)),
    ]
    click.secho(made.name, bold=True)
    for about, said in lines:
        if said:
            click.echo(f"  {about:<11}{said}" if about else f"  {said}")
    width = max(20, shutil.get_terminal_size().columns - 5)
    for message in made.spec.messages if made.spec else ():
        click.echo()
        click.secho(f"  {message['role']}", dim=True)
        for line in str(message.get("content", "")).rstrip().splitlines():
            for part in textwrap.wrap(line, width) or [""]:
                click.echo(f"  │ {part}".rstrip())


@metrics.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--judge-model", metavar="PROVIDER/MODEL", help="The model that judges, such as openai/gpt-4o-mini.")
@click.option("--base-url", help="Where it is served, if not at its provider's usual address.")
@click.option("--api-key-env", metavar="VARIABLE", help="The environment variable that holds its key.")
@click.option("--worker-model", metavar="PROVIDER/MODEL", help="The model that is to be improved; warns if it judges.")
@click.option("--coach-model", metavar="PROVIDER/MODEL", help="The model that proposes; warns if it judges.")
@click.option(
    "--data", metavar="PATH", help="Rows to judge: a dataset, a checkpoint, a .jsonl.  [default: its own set]"
)
@click.option(
    "--given", metavar="NAME=TEXT", multiple=True, help="An input that is the same for every row; NAME=@FILE reads it."
)
@click.option("--human", metavar="NAME", help="Under which name people judged them.  [default: the metric's]")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=2), help="Verdicts on each answer.")
@click.option("--limit", type=click.IntRange(min=1), help="Judge no more rows than this.")
@click.option("--slots", default=16, show_default=True, type=click.IntRange(min=1), help="Calls at a time.")
@click.option("--again", is_flag=True, help="Ask anew: use no verdict of an earlier run.")
def check(
    names: tuple[str, ...],
    judge_model: str | None,
    base_url: str | None,
    api_key_env: str | None,
    worker_model: str | None,
    coach_model: str | None,
    data: str | None,
    given: tuple[str, ...],
    human: str | None,
    repeats: int,
    limit: int | None,
    slots: int,
    again: bool,
) -> None:
    """Say whether a judge is any good: how noisy, what sways it, whether it agrees with people.

    Judges the rows of each metric's labelled set (or DATA) REPEATS times as they are, twice as often with filler after
    the answer, and once more with the judge's choices reversed. Every verdict is one call of the judge's model, at
    most 4 x rows x repeats for each metric. Without NAME, all metrics that have a judge are checked.
    """
    from contextlib import ExitStack

    from dspy_selfimprove import files
    from dspy_selfimprove.calibration import FOLDER
    from dspy_selfimprove.journal import Journal

    wanted = [_read(name) for name in names or _names() if names or _read(name).spec is not None]
    models = _models(judge_model, base_url, api_key_env, slots) if any(made.spec for made in wanted) else None
    others: dict[Role, str | None] = {"worker": worker_model, "coach": coach_model}
    shared = tuple(role for role, model in others.items() if judge_model and model == judge_model)
    same = _given(given)
    prepared = [(made, _rows(data or _own_set(made), limit)) for made in wanted]
    with ExitStack() as stack:
        journal = None
        if models is not None and not again:
            journal = stack.enter_context(Journal.open(files.home() / FOLDER / "verdicts.db"))
        console = _console()
        for number, (made, rows) in enumerate(prepared):
            found = _checked(_metric(made, models, journal, same), rows, models, repeats, journal, human)
            found = replace(found, shared=shared if made.spec else ())
            path = found.save()
            if number:
                console.print()
            _print(console, found, path, with_table=len(prepared) == 1)


def _checked(
    metric: Metric,
    rows: Sequence[Any],
    models: Models | None,
    repeats: int,
    journal: Journal | None,
    human: str | None,
) -> Calibration:
    from dspy_selfimprove.calibration import check

    return check(metric, rows, models=models, repeats=repeats, journal=journal, human=human)


def _print(console: Console, found: Calibration, path: Path, *, with_table: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    title = f"{found.model}, {found.rows} rows, {found.repeats} verdicts each"
    console.print(Text.assemble((found.metric, "bold"), "  ", (title, "dim")))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for about, said in found.verdict:
        table.add_row(about, Text(said, style="yellow" if about == "warning" else ""))
    table.add_row("kept in", Text(_near(path), style="dim"))
    console.print(table)
    if with_table and found.agreement is not None and found.agreement.confusion:
        console.print()
        console.print(_confusion(found.agreement.labels, found.agreement.confusion))


def _confusion(labels: Sequence[str], cells: Sequence[Sequence[float]]) -> Any:
    """People's labels down, the judge's across, in rows of the data."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 2), header_style="dim")
    table.add_column("right \\ judge")
    for label in labels:
        table.add_column(Text(label), justify="right")
    for label, row in zip(labels, cells, strict=True):
        shown = [f"{cell:.1f}".removesuffix(".0") if cell else "·" for cell in row]
        table.add_row(Text(label), *shown)
    return table


def _near(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


# Metrics.


def _homes(kind: str) -> tuple[Path, Path]:
    from dspy_selfimprove import files

    return files.nearest_home() / kind, files.definitions(kind)


def _names() -> list[str]:
    return sorted({path.stem for home in _homes("metrics") for path in home.glob("*.yaml")})


def _read(name: str) -> Definition:
    from dspy_selfimprove.definition import read

    return read(name)


def _metric(made: Definition, models: Models | None, journal: Journal | None, given: Mapping[str, str]) -> Metric:
    from dspy_selfimprove.metric import metric_of

    own = {name: value for name, value in given.items() if name in _inputs(made)}
    if made.spec is None:
        return metric_of(made.path, given=own)
    return metric_of(made.path, models=models, journal=journal, given=own)


def _given(said: Iterable[str]) -> dict[str, str]:
    found = {}
    for each in said:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{each!r} is not NAME=TEXT.", param_hint="--given")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                raise click.BadParameter(f"{value[1:]!r} cannot be read.", param_hint="--given") from None
        found[name] = value
    return found


def _kind(made: Definition) -> str:
    return "judge" if made.spec is not None else "code"


def _choices(made: Definition) -> str:
    if made.spec is None:
        return ""
    return ", ".join(f"{label} {value:g}" for label, value in made.spec.choices.items() if value is not None)


def _ends(made: Definition) -> str:
    """The worst and the best choice, and how many there are."""
    if made.spec is None:
        return ""
    order = sorted((value, label) for label, value in made.spec.choices.items() if value is not None)
    if made.direction == "minimize":
        order.reverse()
    return f"{order[0][1]} … {order[-1][1]} ({len(order)})"


def _inputs(made: Definition) -> list[str]:
    import yaml

    about = yaml.safe_load(made.path.read_text(encoding="utf-8"))
    said = about.get("inputs") or {}
    return [str(name) for name in said] if isinstance(said, Mapping | list) else []


def _first(text: str) -> str:
    """The first sentence."""
    for end in ("? ", ". ", "\n"):
        head, found, _ = text.partition(end)
        if found:
            return (head + found).strip()
    return text


# Models.


def _models(name: str | None, base_url: str | None, api_key_env: str | None, slots: int) -> Models:
    from dspy_selfimprove.errors import UsageError
    from dspy_selfimprove.model import Model, Models

    if name is None:
        raise UsageError(
            "No model is named that should judge.",
            remedy=(
                "Pass --judge-model provider/model. To try it without a key, run `dspy-selfimprove rehearsal serve` "
                "and pass --judge-model openai/rehearsal --base-url http://127.0.0.1:8010/v1."
            ),
        )
    key = None
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise UsageError(
                f"The environment variable {api_key_env} is not set.", remedy="Set it to the key of the judge's model."
            )
    elif base_url is not None and name.startswith("openai/") and not os.environ.get("OPENAI_API_KEY"):
        key = "none"  # the official client insists on one, and a server of one's own rarely does
    return Models(Model(name=name, base_url=base_url, api_key=key), slots=slots)


# Rows.


def _own_set(made: Definition) -> str:
    from dspy_selfimprove.errors import UsageError

    name = f"judge_{made.name}"
    if any((home / name).is_dir() for home in _homes("datasets")):
        return name
    raise UsageError(f"There is no labelled set for {made.name!r}.", remedy="Say what to judge with --data.")


def _rows(what: str, limit: int | None) -> list[Any]:
    from dspy_selfimprove.errors import UsageError

    rows = list(_read_rows(_found(what)))
    if not rows:
        raise UsageError(f"There are no rows in {what}.", remedy="Give a dataset, a checkpoint or a .jsonl file.")
    return rows[:limit]


def _found(what: str) -> Path:
    from dspy_selfimprove.errors import UsageError

    for path in (Path(what), *(home / what for home in _homes("datasets"))):
        if path.exists():
            return path
    known = sorted({path.name for home in _homes("datasets") for path in home.glob("*") if path.is_dir()})
    raise UsageError(f"There is no dataset {what!r}.", remedy=f"There is {', '.join(known)}; or give a path.")


def _read_rows(path: Path) -> Iterable[Any]:
    """Labelled rows, or samples. Of a split dataset the test stays sealed."""
    import yaml

    from dspy_selfimprove.errors import UsageError

    if path.is_file():
        return _lines(path)
    if (path / "checkpoint.json").is_file():
        from dspy_selfimprove.checkpoint import Checkpoint

        return Checkpoint.load(path).samples
    card = path / "dataset.yaml"
    if not card.is_file():
        raise UsageError(f"{path} is no dataset and no checkpoint.", remedy="Give a folder with a dataset.yaml in it.")
    about = yaml.safe_load(card.read_text(encoding="utf-8"))
    if isinstance(about, dict) and "metric" in about:
        return (row for split in about["splits"].values() for row in _lines(path / split["file"]))
    from dspy_selfimprove.dataset import load

    found = load(path)
    return [*found.train, *found.validation]


def _lines(path: Path) -> Iterator[Any]:
    from dspy_selfimprove.errors import DataError
    from dspy_selfimprove.sample import Sample

    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield Sample.from_json(row) if "chat_history" in row else row
        except (ValueError, TypeError, KeyError):
            raise DataError(f"Line {number} of {path} is no row.", remedy="Write one JSON object per line.") from None
