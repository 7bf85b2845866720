"""Where a simulated world lives: its name, its socket, its lock."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wattline.bus.i2c import BusError
from wattline.bus.simulation.profile import Scenery

PREFIX = "sim:"
DIRECTORY_VARIABLE = "WATTLINE_SIM_DIR"
"""Of the environment: the directory of the worlds. The directory above it must exist."""
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Place:
    """A world by its name ``PROFILE/INSTANCE``."""

    profile: str
    instance: str
    chosen: Path | None = None
    """The directory of its files; None: :func:`directory`."""

    @staticmethod
    def of(spec: str, chosen: Path | None = None) -> Place:
        """The world that ``sim:LOAD[@VOLTS][/INSTANCE]`` names. Raises ValueError saying what is allowed."""
        if not spec.startswith(PREFIX):
            raise ValueError(f"bus {spec!r}: a bus is the number N of /dev/i2c-N or 'sim:PROFILE[/INSTANCE]'")
        profile, slash, instance = spec.removeprefix(PREFIX).partition("/")
        Scenery.of(profile)
        if slash and not _INSTANCE.fullmatch(instance):
            raise ValueError(f"bus {spec!r}: the instance is 1 to 64 letters, digits, '.', '_' or '-'")
        return Place(profile, instance or "default", chosen)

    @property
    def spec(self) -> str:
        return f"{PREFIX}{self.profile}/{self.instance}"

    @property
    def socket(self) -> Path:
        return self._file("sock")

    @property
    def lock(self) -> Path:
        return self._file("lock")

    @property
    def log(self) -> Path:
        return self._file("log")

    def _file(self, suffix: str) -> Path:
        # The digest keeps "a/b-c" and "a-b/c" apart.
        digest = hashlib.sha256(self.spec.encode()).hexdigest()[:8]
        return directory(self.chosen) / f"{self.profile}-{self.instance}-{digest}.{suffix}"


def directory(chosen: Path | None = None) -> Path:
    """The directory of all worlds: the chosen one, ``WATTLINE_SIM_DIR``, else one of this user alone. Raises
    BusError."""
    if chosen is None and os.environ.get(DIRECTORY_VARIABLE):
        chosen = Path(os.environ[DIRECTORY_VARIABLE])
    if chosen is not None:
        path = chosen
    elif os.environ.get("XDG_RUNTIME_DIR"):
        path = Path(os.environ["XDG_RUNTIME_DIR"]) / "wattline-sim"
    else:
        path = Path(tempfile.gettempdir()) / f"wattline-sim-{os.getuid()}"
    try:
        # One who outlives the directory in which the worlds of a test were must not make that one anew.
        path.mkdir(mode=0o700, parents=chosen is None, exist_ok=True)
        found = path.stat(follow_symlinks=chosen is not None)
    except OSError as error:
        raise BusError("no_bus", f"simulated bus: {path} cannot be used: {error}") from error
    # In a shared directory somebody else could have made it first.
    if chosen is None and (found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077):
        raise BusError("no_permission", f"simulated bus: {path} must be a directory of this user alone (mode 0700)")
    if found.st_mode & stat.S_IWOTH:
        raise BusError("no_permission", f"simulated bus: everybody may write into {path}; choose another directory")
    return path.absolute()
