"""The command `modelport`: its table of contents."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from modelport import __version__
from modelport.cli import chat, classify, doctor, keys, migrate, models, openapi, serve, settings, usage
from modelport.cli.output import Failure

app = typer.Typer(
    name="modelport",
    help="Turn AI models into an API product: serve them, hand out keys, see what was used.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# Commands that run or look after a platform on this machine.
app.command()(serve.serve)
app.command()(migrate.migrate)
app.command(name="settings")(settings.settings)
app.command()(doctor.doctor)
app.command()(openapi.openapi)
# Commands that talk to a running platform.
app.add_typer(keys.app)
app.add_typer(models.app)
app.command()(usage.usage)
app.command()(classify.classify)
app.command()(chat.chat)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"modelport {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 asked for what can't be done."""
    try:
        app()
    except Failure as failure:
        typer.echo(f"modelport: {failure}", err=True)
        sys.exit(failure.exit_code)
    except BrokenPipeError:
        # The reader of our output (such as `head`) went away, which is no error.
        sys.stderr.close()
        sys.exit(0)
