"""The ``wattline`` command. Exit status: 0 done, 1 it failed, 2 bad usage or configuration."""

from __future__ import annotations

import sys
import traceback

import typer

from wattline.cli.cable import cable_app
from wattline.cli.demo import demo
from wattline.cli.init import init_app
from wattline.cli.meter import meter_app
from wattline.cli.outlet import outlet_app
from wattline.errors import UsageError, WattlineError

FAILED = 1
BAD_USAGE = 2

app = typer.Typer(
    name="wattline",
    help="Electricity paid for by things: a smart socket sells, a smart cable buys, payment by payment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(init_app, name="init")
app.add_typer(cable_app, name="cable")
app.add_typer(meter_app, name="meter")
app.add_typer(outlet_app, name="outlet")
app.command()(demo)


@app.callback()
def _common(
    context: typer.Context,
    verbose: bool = typer.Option(False, "--verbose", help="Show tracebacks and debug lines."),
) -> None:
    context.obj = {"verbose": verbose}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; commands end with ``typer.Exit``. A person's mistake is one line, never a
    traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=words, prog_name="wattline")
    except UsageError as error:
        _tell(error, words)
        sys.exit(BAD_USAGE)
    except WattlineError as error:
        _tell(error, words)
        sys.exit(FAILED)


def _tell(error: WattlineError, words: list[str]) -> None:
    if "--verbose" in words:
        traceback.print_exception(error)
    _say(f"error: {error.message}")


def _say(text: str) -> None:
    for line in text.splitlines():
        typer.echo(f"wattline: {line}", err=True)


if __name__ == "__main__":
    main()
