"""Where the ``wattline`` command begins."""

from __future__ import annotations

from wattline.loading import loading


def main() -> None:
    """Run the command line and exit."""
    with loading():
        from wattline.cli.main import main as run
    run()
