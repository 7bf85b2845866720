"""How an error looks: one line on stderr."""

from __future__ import annotations

import contextlib

import typer


def tell_error(text: str) -> None:
    """``text`` is the code and what there is to say of it: ``config_missing: x.toml: no such file``."""
    # Where nobody can be told, the exit status still says it.
    with contextlib.suppress(OSError):
        typer.echo(f"wattline: error: {' '.join(text.split())}", err=True)
