"""The command line's table of contents; every command calls one recipe."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from keylayers.cli import acting, choosing, measuring
from keylayers.cli.spelling import Spoken
from keylayers.exports import TARGETS

COMMANDS: tuple[Callable[..., None], ...] = (
    measuring.demo,
    choosing.layers,
    choosing.score,
    choosing.compare,
    acting.tune,
    choosing.share,
    acting.export,
    acting.revert,
    choosing.transfer,
    measuring.doctor,
    measuring.report,
    measuring.verify,
    measuring.reproduce,
    measuring.league,
    acting.harden,
    acting.cleanse,
    acting.screen,
    choosing.criteria,
)
"""In the order in which help lists them."""
EPILOGS: dict[Callable[..., None], str] = {
    acting.export: "\n\n".join(f"**{name}**: {what}" for name, what in TARGETS.items())
}

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find which layers of a model matter for your data, and train only those.",
)
for command in COMMANDS:
    app.command(cls=Spoken, epilog=EPILOGS.get(command))(command)


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> Any:
    if version:
        from keylayers import __version__

        typer.echo(f"keylayers {__version__}")
        raise typer.Exit
