"""The guard's client: it starts a guard or finds the one that runs, holds relays closed by renewing leases, and reads
what the guard knows of relays.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from wattline.core.unixsocket import connect_unix
from wattline.device.controller.settings import GuardSettings
from wattline.device.relays.relay import RelayError


@dataclass(frozen=True, slots=True)
class RelayState:
    """One relay as the guard last saw it."""

    outlet_id: str
    closed: bool
    """As read back from the hardware; True as well while that is not known, which is the worst it can be."""
    confirmed: bool
    """The hardware has said so since it was last switched."""
    at_ms: int
    """Monotonic clock of the machine when it was seen."""
    lease_ends_ms: int | None
    """Until when it is held closed at the most, on the same clock; None when nobody holds it."""
    fault: str
    """What is wrong with it, for people; empty when nothing is."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """From JSON. Raises TypeError, KeyError."""
        return cls(**values)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GuardState:
    """The guard and all its relays."""

    pid: int
    fingerprint: str
    """Of the settings with which it was started: another one guards other relays."""
    leaving: bool
    """It ends as soon as every relay is confirmed open."""
    held: bool
    """A client is connected that has taken the guard."""
    plugin_starts: int
    """How often it has tried to start the plugin since a client last lived for long."""
    relays: tuple[RelayState, ...]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """From JSON. Raises TypeError, KeyError."""
        return cls(**{**values, "relays": tuple(RelayState.of(item) for item in values["relays"])})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


TIMEOUT_S = 2.0


class GuardClient:
    """A connection to the guard; may be shared by threads. When it ends, however, every relay held by it opens.

    Every method raises RelayError. After ``guard_lost`` the connection is closed for good: make a new one.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = connected
        self._received = b""
        self._number = 0
        """Of the last request. A signal can break off the wait for an answer, or what is done with it, at any point;
        what then lies in the connection bears the number of an earlier request."""

    @classmethod
    def connect(cls, path: Path | str, timeout_s: float = TIMEOUT_S) -> Self:
        """To the guard that listens at ``path``; ``timeout_s`` is for each answer, too. Raises RelayError."""
        try:
            return cls(connect_unix(Path(path), timeout_s))
        except OSError as error:
            raise RelayError("guard_lost", f"no guard answers at {path}: {error}") from error

    def hold(self, outlet_id: str, lease_ms: int) -> RelayState:
        """Keep the relay closed for ``lease_ms`` (at most 1000) from this call on, or until the next hold.

        Raises RelayError: the relay is open then, or opens when an earlier lease ends.
        """
        asked_ms = time.monotonic_ns() // 1_000_000
        return self._relay({"ask": "hold", "outlet_id": outlet_id, "lease_ms": lease_ms, "asked_ms": asked_ms})

    def open(self, outlet_id: str) -> RelayState:
        """Open the relay now. Raises RelayError when that could not be confirmed; the guard goes on trying."""
        return self._relay({"ask": "open", "outlet_id": outlet_id})

    def take(self) -> GuardState:
        """Become the one client that may hold relays; from now on the guard minds whether this one lives.

        Raises RelayError: ``guard_busy`` when another has, ``guard_leaving``.
        """
        return self._guard({"ask": "take"})

    def state(self) -> GuardState:
        return self._guard({"ask": "state"})

    def bye(self) -> GuardState:
        """Open every relay; the guard ends as soon as they are, and does not start the plugin again."""
        return self._guard({"ask": "bye"})

    def relieve(self) -> GuardState:
        """As ``bye``, but the guard ends also when a relay does not obey: the caller's own guard opens it from now
        on."""
        return self._guard({"ask": "relieve"})

    def close(self) -> None:
        """Without ``bye`` this is what a crash is: relays open, and the plugin is started again."""
        with self._lock:
            self._drop()

    def _relay(self, request: dict[str, Any]) -> RelayState:
        return RelayState.of(self._ask(request)["relay"])

    def _guard(self, request: dict[str, Any]) -> GuardState:
        return GuardState.of(self._ask(request)["guard"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._socket is None:
                raise RelayError("guard_lost", "the connection to the guard is closed")
            self._number = number = self._number + 1
            try:
                self._socket.sendall(json.dumps({**request, "number": number}).encode() + b"\n")
                answer = json.loads(self._line(self._socket))
                while isinstance(answer, dict) and answer.get("number") in range(1, number):
                    answer = json.loads(self._line(self._socket))
            except (OSError, ValueError) as error:
                # An answer that comes late would be taken for that of the next request.
                self._drop()
                raise RelayError("guard_lost", f"the guard does not answer: {error}") from error
        if not isinstance(answer, dict):
            raise RelayError("guard_lost", f"the guard answers {answer!r}")
        if "code" in answer:
            raise RelayError(answer["code"], answer["message"])
        return answer

    def _line(self, connected: socket.socket) -> bytes:
        while b"\n" not in self._received:
            data = connected.recv(65_536)
            if not data:
                raise ConnectionResetError("closed by the other side")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


START_TIMEOUT_S = 15.0
LOOK_AGAIN_S = 0.02


def guard_for(settings: GuardSettings, timeout_s: float = START_TIMEOUT_S) -> GuardClient:
    """A connection to the guard of ``settings`` that may hold relays: the one that runs, else a new one.

    A guard with other settings is told to go first. Raises RelayError: ``guard_busy`` when another client holds its
    relays, ``guard_start`` when none could be started.
    """
    try:
        client = GuardClient.connect(settings.socket)
    except RelayError:
        return spawn_guard(settings, timeout_s)
    try:
        state = client.state()
        if state.fingerprint == settings.fingerprint and not state.leaving:
            client.take()
            return client
        client.bye()
    except RelayError as error:
        client.close()
        if error.code == "guard_busy":
            raise
    client.close()
    return spawn_guard(settings, timeout_s)


def spawn_guard(settings: GuardSettings, timeout_s: float = START_TIMEOUT_S) -> GuardClient:
    """Start a guard that outlives this process, and take it; every relay has been opened by then.

    It has a session, a standard input and a standard output of its own. It waits for an older guard to end. Raises
    RelayError ``guard_start``, ``guard_busy``; ``relay_taken`` when a guard at another socket drives one of the relays.
    """
    deadline = time.monotonic() + timeout_s
    report, reporting = os.pipe()
    try:
        os.set_blocking(report, False)
        try:
            _start(settings, timeout_s, reporting)
        finally:
            os.close(reporting)
        return _awaited(settings, deadline, timeout_s, report)
    finally:
        os.close(report)


def _start(settings: GuardSettings, timeout_s: float, reporting: int) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "wattline.device.controller.guard",
        "--config",
        "-",
        "--report",
        str(reporting),
    ]
    try:
        started = subprocess.run(
            command,
            input=settings.model_dump_json(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd="/",
            pass_fds=(reporting,),
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RelayError("guard_start", f"the guard did not start: {error}") from error
    if started.returncode != 0:
        reason = started.stderr.strip().splitlines() or [f"exit status {started.returncode}"]
        raise RelayError("guard_start", f"the guard did not start: {reason[-1]}")


def _awaited(settings: GuardSettings, deadline: float, timeout_s: float, report: int) -> GuardClient:
    while True:
        try:
            return _connected(settings)
        except RelayError as error:
            if error.code == "guard_busy":
                raise
            _check_not_refused(report)
            if time.monotonic() > deadline:
                reason_now = f"{error}; its log is {settings.log}"
                raise RelayError("guard_start", f"no guard after {timeout_s:g} s: {reason_now}") from error
        time.sleep(LOOK_AGAIN_S)


def _check_not_refused(report: int) -> None:
    """Raises the RelayError with which the guard has said that it may not work."""
    refusal = b""
    with contextlib.suppress(BlockingIOError):
        # Shorter than what a pipe takes at once, so it comes whole; nothing when the guard has closed it.
        refusal = os.read(report, 4096)
    if refusal:
        told = json.loads(refusal)
        raise RelayError(told["code"], told["message"])


def _connected(settings: GuardSettings) -> GuardClient:
    """To the guard with these very settings. Raises RelayError."""
    client = GuardClient.connect(Path(settings.socket), TIMEOUT_S)
    try:
        state = client.state()
        if state.fingerprint != settings.fingerprint or state.leaving:
            waiting = ", ".join(f"{s.outlet_id} ({s.fault})" for s in state.relays if s.fault) or "its end"
            raise RelayError("guard_start", f"an older guard has not ended; it waits for {waiting}")
        client.take()
    except RelayError:
        client.close()
        raise
    return client
