"""How an error looks: one line on stderr."""

from __future__ import annotations

import typer


def tell_error(text: str) -> None:
    """``text`` is the code and what there is to say of it: ``config_missing: x.toml: no such file``."""
    typer.echo(f"wattline: error: {' '.join(text.split())}", err=True)
