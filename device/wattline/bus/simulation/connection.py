"""A connection to a simulated world, which is started when it does not run yet."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wattline.bus.i2c import BusError
from wattline.bus.simulation.place import Place
from wattline.bus.unixsocket import connect_unix, listen_unix
from wattline.ownership import open_own

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
    command = [sys.executable, "-P", "-m", "wattline.bus.simulation.server", "--profile", place.profile]
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
