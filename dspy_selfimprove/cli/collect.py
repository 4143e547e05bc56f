"""`dspy-selfimprove collect`: from production to a checkpoint and a split dataset, in one command.

Run again, it goes on where it was: nothing that is held is fetched again, and a dataset that exists stays as it is.
"""

from __future__ import annotations

from pathlib import Path

import click

_SCALE = "NAME=LOW:HIGH"


def _scales(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    found = {}
    for written in given:
        name, _, ends = written.rpartition("=")
        low, _, high = ends.partition(":")
        try:
            found[name] = (float(low), float(high))
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"{written!r} is not {_SCALE}, as in stars=1:5", ctx, param)
    return found


@click.command()
@click.option("--project", help="The Phoenix project of the application.")
@click.option("--since", help="Where to begin: 2026-11-01, 2026-11-01T09:30+01:00, 7d, 12h.")
@click.option("--until", help="Where to end (not included); now, if left out.")
@click.option(
    "--source", type=click.Path(exists=True, path_type=Path), help="Spans from a file instead: Parquet or JSONL."
)
@click.option("--prompt-version", help="Which version of the prompt; the newest, if left out.")
@click.option("--samples", default=300, show_default=True, type=click.IntRange(min=3), help="How many to draw.")
@click.option("--name", help="What to call the dataset.")
@click.option("--seed", default=0, show_default=True, help="Another seed, another draw and another split.")
@click.option("--scale", "scales", metavar=_SCALE, multiple=True, callback=_scales, help="How a metric is written.")
@click.option("--extend", is_flag=True, help="Add what is new to a dataset that exists.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Where to keep spans and checkpoint, and the plot."
)
def collect(
    project: str | None,
    since: str | None,
    until: str | None,
    source: Path | None,
    prompt_version: str | None,
    samples: int,
    name: str | None,
    seed: int,
    scales: dict[str, tuple[float, float]],
    extend: bool,
    out: Path | None,
) -> None:
    """Make a checkpoint and a split dataset of what production did.

    Reads the traces of PROJECT (or of a file), finds the prompt and its variables, draws a diverse sample, and splits
    it into train, validation and a sealed test.
    """
    from dspy_selfimprove.errors import UsageError
    from dspy_selfimprove.runner import Runner

    if source is None and (project is None or since is None):
        raise UsageError(
            "Say which project, and since when.",
            remedy="For example: dspy-selfimprove collect --project support --since 7d",
        )
    runner = Runner(project, since, until, source=source, folder=out)
    checkpoint = runner.checkpoint(scales=scales or None)
    runner.dataset(samples, prompt_version=prompt_version, name=name, seed=seed, extend=extend)
    click.echo(str(runner.summary()))
    click.echo(f"checkpoint  {checkpoint.folder}")
    if runner.draw is not None:
        plot = checkpoint.folder / "clusters.svg"
        runner.draw.plot().save(plot)
        click.echo(f"plot        {plot}")
