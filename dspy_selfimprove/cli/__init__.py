"""The command line: thin commands, one file per group, each loaded only when it is asked for.

Every error of ours ends as one sentence and its remedy on standard error with exit code 1, ctrl-C as `Interrupted.`
with 130; neither shows a traceback. An error that is not ours does: it is a bug, and a bug report needs it.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from dspy_selfimprove import __version__
from dspy_selfimprove.errors import SelfImproveError

_GROUPS = {
    "collect": "Make a checkpoint and a split dataset of what production did.",
    "metrics": "List the metrics, show one, or check whether its judge is any good.",
    "phoenix": "Run the Phoenix server that receives the traces.",
    "rehearsal": "Run the stand-in model, for trying everything without a key.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_GROUPS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _GROUPS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_GROUPS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Turn the traces of an LLM application into a better prompt."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point: `cli`, with errors as sentences and exit codes."""
    try:
        code = cli.main(args=arguments, standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SelfImproveError as error:
        click.secho(f"Error: {error.problem}", fg="red", err=True)
        if error.remedy:
            click.echo(error.remedy, err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody is left to tell.
        sys.stderr.close()
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)
