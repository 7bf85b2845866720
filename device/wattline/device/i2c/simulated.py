"""Where a simulated world lives: its name, its socket, its lock.

A connection to a simulated world, which is started when it does not run yet.

The bus of a simulated world, shared with whoever else has opened it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattline.core.ownership import open_own
from wattline.core.unixsocket import connect_unix, listen_unix
from wattline.device.i2c.bus import BusError
from wattline.device.simulator.profile import Scenery

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


ANSWER_TIMEOUT_S = 5.0


class WorldConnection:
    """Requests and answers, one after the other; may be shared by threads."""

    def __init__(self, place: Place) -> None:
        """Connect to the world at ``place``, starting it when needed. Raises BusError."""
        self._place = place
        self._lock = threading.Lock()
        self._socket: socket.socket | None = _connect(place)
        self._received = b""

    def call(self, name: str, **arguments: object) -> Any:
        """The answer to one request. Raises BusError with the code that the world says, or ``bus_error``."""
        request = json.dumps({"call": name, **arguments}).encode() + b"\n"
        with self._lock:
            try:
                if self._socket is None:
                    self._socket, self._received = _connect(self._place), b""
                self._socket.sendall(request)
                answer = json.loads(self._line(self._socket))
            except (OSError, ValueError) as error:
                self._drop()
                raise BusError("bus_error", f"{self._place.spec}: the simulated world is gone: {error}") from error
        if answer.get("code") == "bad_request":
            raise ValueError(answer["message"])
        if "code" in answer:
            raise BusError(answer["code"], answer["message"])
        return answer["result"]

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _line(self, connected: socket.socket) -> bytes:
        while b"\n" not in self._received:
            data = connected.recv(65_536)
            if not data:
                raise ConnectionResetError("closed by the other side")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line


def _connect(place: Place) -> socket.socket:
    try:
        with _locked(place.lock):
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return connect_unix(place.socket, ANSWER_TIMEOUT_S)
            _start(place)
            return connect_unix(place.socket, ANSWER_TIMEOUT_S)
    except OSError as error:
        raise BusError("no_bus", f"{place.spec}: the simulated world cannot be reached: {error}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two openers must not start two worlds. A world that leaves takes the file away, so who has waited for it may
    hold one that nobody else will see."""
    while True:
        with os.fdopen(open_own(path), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_nlink > 0:
                yield
                return


def _start(place: Place) -> None:
    """Start the world's process behind a socket that listens already, so nobody has to wait for it."""
    listener = listen_unix(place.socket)
    command = [sys.executable, "-P", "-m", "wattline.device.simulator.server", "--profile", place.profile]
    command += ["--listener", str(listener.fileno()), "--socket", str(place.socket)]
    command += ["--lock", str(place.lock), "--log", str(place.log)]
    with listener, os.fdopen(open_own(place.log), "ab") as log:
        started = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            cwd="/",
            check=False,
        )
    if started.returncode != 0:
        place.socket.unlink(missing_ok=True)
        raise BusError("no_bus", f"{place.spec}: the simulated world did not start: {_last_line(place.log)}")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "no reason given"


class SimulatedBus:
    """:class:`wattline.device.i2c.bus.I2CBus` whose chips live in the process of a world."""

    def __init__(self, place: Place) -> None:
        """Connect to the world at ``place``, starting it when needed. Raises BusError."""
        self._world = WorldConnection(place)

    def read_byte(self, address: int) -> int:
        return int(self._world.call("read_byte", address=address))

    def write_byte(self, address: int, value: int) -> None:
        self._world.call("write_byte", address=address, value=value)

    def write_byte_register(self, address: int, register: int, value: int) -> None:
        self._world.call("write_byte_register", address=address, register=register, value=value)

    def read_word(self, address: int, register: int) -> int:
        return int(self._world.call("read_word", address=address, register=register))

    def write_word(self, address: int, register: int, value: int) -> None:
        self._world.call("write_word", address=address, register=register, value=value)

    def read_block(self, address: int, register: int, length: int) -> bytes:
        return bytes.fromhex(self._world.call("read_block", address=address, register=register, length=length))

    def peek(self, address: int, register: int, after: int) -> int:
        return int(self._world.call("peek", address=address, register=register, after=after))

    def close(self) -> None:
        self._world.close()
