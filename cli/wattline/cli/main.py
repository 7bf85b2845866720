"""The ``wattline`` command. Exit status: 0 done, 1 it failed, 2 bad usage or configuration."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from wattline.cli.command import tell_error
from wattline.core.errors import UsageError, WattlineError

VERBOSE = "--verbose"
FAILED = 1
BAD_USAGE = 2

COMMANDS = ("init", "cable", "meter", "outlet")
MORE_COMMANDS = "wattline.commands"
"""The group of entry points whose names are commands, too."""


def assemble(words: Sequence[str]) -> typer.Typer:
    """The command line that is to understand ``words``: with the command that they name, since to load all of them
    takes up to twice as long; with all, when they name none (to show what there is, or what may have been meant)."""
    app = typer.Typer(
        name="wattline",
        help="Electricity paid for by things: a smart socket sells, a smart cable buys, payment by payment.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_common)
    # No option before the command takes a value.
    named = next((word for word in words if not word.startswith("-")), "")
    for command in [named] if named in COMMANDS else COMMANDS:
        _load(app, command)
    if named not in COMMANDS:
        for entry in entry_points(group=MORE_COMMANDS):
            app.command(entry.name)(entry.load())
    return app


def _load(app: typer.Typer, command: str) -> None:
    match command:
        case "init":
            from wattline.cli.init import init_app

            app.add_typer(init_app, name=command)
        case "cable":
            from wattline.cli.cable import cable_app

            app.add_typer(cable_app, name=command)
        case "meter":
            from wattline.cli.meter import meter_app

            app.add_typer(meter_app, name=command)
        case "outlet":
            from wattline.cli.outlet import outlet_app

            app.add_typer(outlet_app, name=command)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wattline {version('wattline')}")
        raise typer.Exit


def _common(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option(VERBOSE, help="Show tracebacks and debug lines.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = {"verbose": verbose}


def main(words: Sequence[str]) -> None:
    """Run the command that ``words`` name and exit."""
    run(assemble(words), words)


def run(app: typer.Typer, words: Sequence[str]) -> None:
    """Run what ``words`` say and exit; commands end with ``typer.Exit``. A person's mistake is one line, never a
    traceback; ``--verbose``, wherever it stands, shows the rest."""
    try:
        _run(app, words)
    except SystemExit as end:
        sys.exit(_with_output_written(end.code))


def _with_output_written(status: str | int | None) -> str | int | None:
    """``status``, unless the output of a command that went well cannot be written: then it has failed, and says so.

    Python itself would find out at its very end only, with a status and words of its own.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError as error:
            # Nothing of what waits there is tried again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not status:
                status = FAILED
                # Who closes a pipe has seen enough.
                if error.errno != errno.EPIPE:
                    tell_error(f"system_error: output: {error.strerror}")
    return status


def _run(app: typer.Typer, words: Sequence[str]) -> None:
    if sys.stdout is None:
        # The shell's `>&-`: nothing that is asked for could be answered, and Python drops it in silence.
        tell_error("system_error: output: is closed")
        sys.exit(FAILED)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows no µ or × shows a question mark in its place.
        sys.stdout.reconfigure(errors="replace")
    verbose = VERBOSE in words
    if verbose:
        words = [VERBOSE, *(word for word in words if word != VERBOSE)]
    try:
        # Not in "standalone mode", in which bad usage is a box of its own; commands end with a status.
        status = app(args=list(words), prog_name="wattline", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except typer.TyperException as error:
        _tell_usage(error, verbose)
        sys.exit(BAD_USAGE)
    except typer.Abort:
        sys.exit(FAILED)
    except UsageError as error:
        _tell(error, f"{error.code}: {error.message}", verbose)
        sys.exit(BAD_USAGE)
    except WattlineError as error:
        _tell(error, f"{error.code}: {error.message}", verbose)
        sys.exit(FAILED)
    except OSError as error:
        # A full disk or a file in the way: what this machine says, and of what.
        _tell(error, f"system_error: {error.filename or 'output'}: {error.strerror or error}", verbose)
        sys.exit(FAILED)
    except Exception as error:  # noqa: BLE001 - the last resort: a person is told whose mistake it was
        what = f"internal_error: {type(error).__name__}: {error} (a bug in wattline; {VERBOSE} shows where)"
        _tell(error, what, verbose)
        sys.exit(FAILED)


def _tell_usage(error: typer.TyperException, verbose: bool) -> None:
    """One line, as for all else that is wrong; a command without a word of its own has shown its help already."""
    text = error.format_message()
    if text:
        _tell(error, f"bad_usage: {text.rstrip('.')} (--help shows what there is)", verbose)


def _tell(error: Exception, text: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exception(error)
    tell_error(text)


if __name__ == "__main__":
    main(sys.argv[1:])
