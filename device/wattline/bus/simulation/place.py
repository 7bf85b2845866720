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
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Place:
    """A world by its name ``PROFILE/INSTANCE``."""

    profile: str
    instance: str

    @staticmethod
    def of(spec: str) -> Place:
        """The world that ``sim:LOAD[@VOLTS][/INSTANCE]`` names. Raises ValueError saying what is allowed."""
        if not spec.startswith(PREFIX):
            raise ValueError(f"bus {spec!r}: a bus is the number N of /dev/i2c-N or 'sim:PROFILE[/INSTANCE]'")
        profile, slash, instance = spec.removeprefix(PREFIX).partition("/")
        Scenery.of(profile)
        if slash and not _INSTANCE.fullmatch(instance):
            raise ValueError(f"bus {spec!r}: the instance is 1 to 64 letters, digits, '.', '_' or '-'")
        return Place(profile, instance or "default")

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
        return directory() / f"{self.profile}-{self.instance}-{digest}.{suffix}"


def directory() -> Path:
    """The directory of all worlds: ``WATTLINE_SIM_DIR``, else one of this user alone. Raises BusError."""
    chosen = os.environ.get("WATTLINE_SIM_DIR")
    if chosen:
        path = Path(chosen)
    elif os.environ.get("XDG_RUNTIME_DIR"):
        path = Path(os.environ["XDG_RUNTIME_DIR"]) / "wattline-sim"
    else:
        path = Path(tempfile.gettempdir()) / f"wattline-sim-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat(follow_symlinks=bool(chosen))
    except OSError as error:
        raise BusError("no_bus", f"simulated bus: {path} cannot be used: {error}") from error
    # In a shared directory somebody else could have made it first.
    if not chosen and (found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077):
        raise BusError("no_permission", f"simulated bus: {path} must be a directory of this user alone (mode 0700)")
    return path.absolute()
