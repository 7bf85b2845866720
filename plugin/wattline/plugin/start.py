"""Where the plugin's executable begins."""

from __future__ import annotations

from wattline.core.loading import loading


def main() -> None:
    """Run until lightningd says `shutdown` or is gone."""
    with loading():
        from wattline.plugin.main import main as run
    run()
