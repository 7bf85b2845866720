"""Where programs leave things behind: the places that the environment names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from wattline.device.i2c.simulated import DIRECTORY_VARIABLE

VARIABLES = ("TMPDIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME")

Places = Mapping[str, Path]
"""By the variable of the environment that says it."""


def make_places(directory: Path) -> Places:
    """Empty ones in ``directory``."""
    made = {name: directory / name.lower() for name in VARIABLES}
    for path in made.values():
        path.mkdir(mode=0o700)
    return made


def environment_of(places: Places) -> dict[str, str]:
    """This process's environment, but with these places."""
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}}
    environment.pop(DIRECTORY_VARIABLE, None)
    return environment


def left(places: Places) -> list[Path]:
    """What lies there now."""
    return [path for place in places.values() for path in place.rglob("*")]
