"""The guard: the one process that drives the relays (``python -m wattline.device.controller.guard --config FILE``).

It holds a relay closed only as long as its client's lease lasts, and a lease only as long as the client lives. It
knows nothing of money, opens everything before it does anything else, and ends only when everything is open; but for a
relay on another chip than its configuration says, which it cannot open however long it tries. It touches no hardware
that another guard drives, wherever that one's socket is: it is refused then, and says so to who started it.

Requests and answers are lines of JSON: ``{"ask": "hold", "outlet_id", "lease_ms", "asked_ms"}``, ``{"ask": "open",
"outlet_id"}``, ``{"ask": "take"}``, ``{"ask": "state"}``, ``{"ask": "bye"}``; answered by ``{"relay": ...}``,
``{"guard": ...}`` or ``{"code", "message"}``. Times are ms of the machine's monotonic clock. ``{"ask": "relieve"}`` is
a ``bye`` that does not wait for a relay which does not obey: whoever asks it goes on opening that one. An answer bears
the ``number`` of its request, if that has one.

``take`` makes the client the one that may hold relays and whose death starts the plugin again, before it has held any;
a hold that succeeds does the same.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, BinaryIO

from wattline.core.errors import UsageError
from wattline.core.ownership import check_folder, open_own
from wattline.core.settings import parse_settings, read_text
from wattline.core.unixsocket import listen_unix
from wattline.device.controller.client import GuardClient, GuardState
from wattline.device.controller.contacts import Contacts
from wattline.device.controller.plugin_starter import PluginStarter, is_running
from wattline.device.controller.settings import GuardSettings
from wattline.device.relays.exclusion import claimed
from wattline.device.relays.opening import Expanders, open_relay
from wattline.device.relays.relay import RelayError

log = logging.getLogger(__name__)

LONGEST_LINE = 4096
POLL_MS = 250
LOCK_POLL_S = 0.1
LOG_BYTES = 1_000_000


def clock_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Guard:
    """One thread, one loop: requests, leases, the life of lightningd."""

    def __init__(self, settings: GuardSettings, contacts: Contacts, listener: socket.socket) -> None:
        self._settings = settings
        self._contacts = contacts
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._clients: dict[socket.socket, bytes] = {}
        self._holder: socket.socket | None = None
        self._leaving = False
        self._relieved = False
        self._started_ms = clock_ms()
        self._had_client = False
        self._starter = None if settings.lightningd is None else PluginStarter(settings.lightningd, clock_ms)

    def leave(self, reason: str) -> None:
        """Open everything now; ``run`` returns as soon as that is confirmed."""
        if not self._leaving:
            log.info("leaving: %s", reason)
        self._leaving = True
        self._contacts.open_all()

    def run(self, wakeup: socket.socket) -> None:
        """Guard until it is time to leave and every relay is open. ``wakeup`` gets a byte for every signal."""
        for readable in (self._listener, wakeup):
            readable.setblocking(False)
            self._selector.register(readable, selectors.EVENT_READ)
        while not (self._leaving and (self._relieved or self._contacts.all_done)):
            wait_ms = min(POLL_MS, max(0, self._contacts.next_ms() - clock_ms()))
            for key, _ in self._selector.select(wait_ms / 1000):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is wakeup:
                    wakeup.recv(64)
                    self.leave("told by a signal")
                elif isinstance(key.fileobj, socket.socket):
                    self._serve(key.fileobj)
            # After the requests: a renewal that came in time must not make the relay clatter.
            self._contacts.tend()
            self._watch()

    def _watch(self) -> None:
        served = self._settings.ends_with
        if served is not None and not self._leaving and not is_running(served.pid, served.start_time):
            self.leave("the process that it was started for is gone")
            return
        node = self._settings.lightningd
        if node is None or self._starter is None or self._leaving:
            return
        if not is_running(node.pid, node.start_time):
            self.leave("lightningd is gone")
            return
        if not self._had_client and clock_ms() - self._started_ms > self._settings.first_client_s * 1000:
            self._had_client = True
            self._starter.client_vanished()
        self._starter.tick()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            log.warning("a client was gone before it was accepted: %s", error)
            return
        client.setblocking(False)
        self._clients[client] = b""
        self._selector.register(client, selectors.EVENT_READ)

    def _serve(self, client: socket.socket) -> None:
        try:
            data = client.recv(LONGEST_LINE)
            if not data:
                self._forget(client, "has closed its connection")
                return
            lines = (self._clients[client] + data).split(b"\n")
            self._clients[client] = lines.pop()
            for line in lines:
                answer = self._answer(client, line)
                # An answer fits into the buffer of the socket unless the client has stopped reading.
                encoded = json.dumps(answer).encode() + b"\n"
                if client.send(encoded) != len(encoded):
                    raise BlockingIOError("it does not read its answers")
                if answer.get("code") == "bad_request":
                    self._forget(client, f"speaks nonsense: {answer['message']}")
                    return
        except OSError as error:
            self._forget(client, f"is gone: {error}")
            return
        if len(self._clients[client]) > LONGEST_LINE:
            self._forget(client, "speaks nonsense: a line without end")

    def _forget(self, client: socket.socket, why: str) -> None:
        self._contacts.release(client)
        self._selector.unregister(client)
        del self._clients[client]
        client.close()
        if self._holder is client:
            self._holder = None
            log.warning("the client %s; still to be opened: %s", why, self._unopened())
            if self._starter is not None and not self._leaving:
                self._starter.client_vanished()

    def _answer(self, client: socket.socket, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            answer = self._obeyed(client, request)
        except (ValueError, RecursionError) as error:
            return {"code": "bad_request", "message": f"not JSON: {error}"}
        match request:
            case {"number": int(number)}:
                return {**answer, "number": number}
        return answer

    def _obeyed(self, client: socket.socket, request: Any) -> dict[str, Any]:
        try:
            match request:
                case {"ask": "hold", "outlet_id": str(outlet_id), "lease_ms": int(lease), "asked_ms": int(asked)}:
                    self._check_free(client)
                    held = self._contacts.hold(outlet_id, client, asked, lease)
                    self._take(client)
                    return {"relay": held.as_json()}
                case {"ask": "take"}:
                    self._check_free(client)
                    self._take(client)
                    return {"guard": self._state().as_json()}
                case {"ask": "open", "outlet_id": str(outlet_id)}:
                    return {"relay": self._contacts.open(outlet_id).as_json()}
                case {"ask": "state"}:
                    return {"guard": self._state().as_json()}
                case {"ask": "bye"}:
                    self._check_not_held(client)
                    self.leave("the client said goodbye")
                    return {"guard": self._state().as_json()}
                case {"ask": "relieve"}:
                    self._check_not_held(client)
                    self.leave("another guard takes over")
                    self._relieved = True
                    return {"guard": self._state().as_json()}
        except RelayError as error:
            return {"code": error.code, "message": error.message}
        return {"code": "bad_request", "message": "ask hold, open, take, state, bye or relieve"}

    def _check_free(self, client: socket.socket) -> None:
        """Only one client holds relays, and the first one keeps them as long as it lives. Raises RelayError."""
        if self._leaving:
            raise RelayError("guard_leaving", f"the guard is ending; still to be opened: {self._unopened()}")
        self._check_not_held(client)

    def _take(self, client: socket.socket) -> None:
        if self._holder is client:
            return
        self._holder = client
        self._had_client = True
        if self._starter is not None:
            self._starter.client_came()

    def _check_not_held(self, client: socket.socket) -> None:
        if self._holder not in (None, client):
            raise RelayError("guard_busy", "another client holds relays")

    def _unopened(self) -> str:
        return ", ".join(s.outlet_id for s in self._contacts.states() if s.closed) or "none"

    def _state(self) -> GuardState:
        return GuardState(
            pid=os.getpid(),
            fingerprint=self._settings.fingerprint,
            leaving=self._leaving,
            held=self._holder is not None,
            plugin_starts=0 if self._starter is None else self._starter.tries,
            relays=self._contacts.states(),
        )


def take_lock(settings: GuardSettings) -> BinaryIO | None:
    """The lock of the one guard, waited for; None when there is nothing to wait for any more.

    That is when lightningd has gone, or when the guard that has the lock does what this one would do.
    """
    lock = os.fdopen(open_own(settings.lock), "ab")
    node = settings.lightningd
    waiting = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                log.info("waiting for another guard to end")
            waiting = True
        else:
            return lock
        if _is_guarded(settings) or (node is not None and not is_running(node.pid, node.start_time)):
            lock.close()
            return None
        time.sleep(LOCK_POLL_S)


def _is_guarded(settings: GuardSettings) -> bool:
    try:
        client = GuardClient.connect(settings.socket, timeout_s=0.5)
    except RelayError:
        return False
    try:
        state = client.state()
    except RelayError:
        return False
    finally:
        client.close()
    return state.fingerprint == settings.fingerprint and not state.leaving


def guard(settings: GuardSettings) -> None:
    """Be the guard until it is time to go. Raises OSError when the socket or the lock cannot be made, RelayError
    ``relay_taken`` when another guard, at another socket, drives the hardware of a relay: nothing is switched then."""
    lock = take_lock(settings)
    if lock is None:
        log.info("not needed")
        return
    # An older guard that was killed may have let go of this lock a moment before the hardware's.
    with lock, claimed(settings.relays.values()):
        wakeup, woken = socket.socketpair()
        woken.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        expanders = Expanders()
        contacts = Contacts(settings.relays, lambda relay: open_relay(relay, expanders), clock_ms)
        contacts.open_all()
        log.info("guarding %s", ", ".join(settings.relays))
        listener = listen_unix(Path(settings.socket))
        try:
            Guard(settings, contacts, listener).run(wakeup)
        finally:
            # Also when the loop has died of a fault of its own.
            contacts.open_all()
            Path(settings.socket).unlink(missing_ok=True)
        if contacts.all_open:
            log.info("every relay is open; good night")
        else:
            faults = "; ".join(f"{s.outlet_id}: {s.fault}" for s in contacts.states() if s.fault)
            log.warning("not every relay is confirmed open (%s); good night", faults)


def _detach(output: Path) -> None:
    """Become nobody's child, in a session of its own, with its output in a file."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log_file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, null), (1, log_file), (2, log_file)):
        os.dup2(source, target)
    os.close(null)
    os.close(log_file)


def _report(refusal: RelayError, descriptor: int | None) -> None:
    if descriptor is not None:
        # Whoever started this guard may have stopped waiting for it.
        with contextlib.suppress(OSError):
            os.write(descriptor, json.dumps({"code": refusal.code, "message": refusal.message}).encode())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hold relays closed on short leases; open them whatever happens.")
    parser.add_argument("--config", required=True, help="JSON file with the settings; '-' reads them from stdin")
    parser.add_argument(
        "--report", type=int, metavar="FD", help="file descriptor that a refusal is written to, as JSON"
    )
    parser.add_argument("--foreground", action="store_true", help="stay a child of the caller, for service managers")
    given = parser.parse_args(arguments)
    try:
        text = sys.stdin.read() if given.config == "-" else read_text(Path(given.config))
        settings = parse_settings(json.loads(text), GuardSettings, given.config)
        for needed in (Path(settings.log), settings.lock):
            check_folder(needed.parent)
            os.close(open_own(needed))
    except (OSError, ValueError, UsageError) as error:
        sys.stderr.write(f"guard: {error}\n")
        return 2
    os.umask(0o077)
    # A lease is kept as exactly as the scheduler lets us; without the right to it we go on as we are.
    with contextlib.suppress(OSError):
        os.nice(-10)
    if not given.foreground:
        _detach(Path(settings.log))
    handler = RotatingFileHandler(settings.log, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
    logging.basicConfig(
        level=logging.INFO, handlers=[handler], format="%(asctime)s guard[%(process)d] %(levelname)s %(message)s"
    )
    try:
        guard(settings)
    except RelayError as error:
        log.error("the guard is refused: %s", error)
        _report(error, given.report)
        return 1
    except OSError:
        log.exception("the guard cannot work")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
