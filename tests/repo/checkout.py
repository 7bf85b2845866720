"""The checkout as the tests of the repository see it: where things are, and which files belong to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SOURCE_ROOTS = ("core", "device", "cable", "plugin", "cli", "proto", "regtest")
PRODUCT_ROOTS = SOURCE_ROOTS[:5]
"""What is no protocol and no harness."""


def subpackages() -> dict[str, Path]:
    """The folder of every subpackage of wattline, by its dotted name, whichever root it is in."""
    return {
        f"wattline.{folder.name}": folder
        for root in SOURCE_ROOTS
        for folder in sorted((CHECKOUT / root / "wattline").iterdir())
        if any(path.parent.name != "__pycache__" for path in folder.rglob("*.py*") if path.suffix in (".py", ".pyi"))
    }


def product_files() -> list[Path]:
    """Every Python source of the product."""
    return sorted(path for root in PRODUCT_ROOTS for path in (CHECKOUT / root / "wattline").rglob("*.py"))


def files_of_the_checkout() -> list[Path]:
    """Every file that is committed or could be (new and not ignored), and is still there."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [CHECKOUT / name for name in listing.split("\0") if name and (CHECKOUT / name).is_file()]
