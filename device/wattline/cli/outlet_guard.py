"""A guard for one outlet and one command: the relay opens when the command ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wattline.errors import UsageError
from wattline.offering import OutletSettings
from wattline.relay import (
    GUARD_SOCKET,
    GuardClient,
    GuardSettings,
    ProcessSettings,
    RelayError,
    open_relay,
    spawn_guard,
)
from wattline.relay.process import is_running, process_start_time

END_TIMEOUT_S = 3.0
LOOK_AGAIN_S = 0.02


@contextmanager
def not_beside_the_plugin(config: Path) -> Iterator[None]:
    """Keep the plugin's guard out meanwhile, which lives beside ``config`` where the plugin reads it by default.

    Whoever has the lock of that guard is the one that may have relays; a guard that starts meanwhile waits for it.
    Raises RelayError ``guard_busy`` when there is one, UsageError when that cannot be told.
    """
    path = config.absolute().parent / f"{GUARD_SOCKET}.lock"
    try:
        lock = path.open("rb")
    except FileNotFoundError:
        # No guard has ever been here.
        yield
        return
    except OSError as error:
        raise UsageError(
            "guard_unknown", f"{path}: cannot be looked at ({error}); be the user that lightningd runs as"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RelayError(
                "guard_busy",
                f"the plugin's guard has the relays of this socket ({path} is locked): stop the plugin first, with"
                " lightning-cli plugin stop wattline-plugin",
            ) from None
        yield


@contextmanager
def own_guard(outlet: OutletSettings) -> Iterator[GuardClient]:
    """A guard with the relay of ``outlet`` only, which is open when it begins and when it ends.

    Should this very process be killed, the guard opens the relay and ends by itself. Raises RelayError, also when the
    relay could not be confirmed open at the end: the guard goes on trying then.
    """
    _within_reach(outlet)
    directory = Path(tempfile.mkdtemp(prefix="wattline-outlet-"))
    settings = GuardSettings(
        socket=str(directory / GUARD_SOCKET),
        log=str(directory / "guard.log"),
        relays={outlet.outlet_id: outlet.relay},
        ends_with=ProcessSettings(pid=os.getpid(), start_time=process_start_time(os.getpid()) or 0),
    )
    try:
        client = spawn_guard(settings)
    except BaseException:
        # It may have started all the same; then it ends with us, and its directory must not go before.
        if not Path(settings.log).exists() or not Path(settings.socket).exists():
            shutil.rmtree(directory, ignore_errors=True)
        raise
    try:
        yield client
    finally:
        _end(client, settings, outlet.outlet_id)
        shutil.rmtree(directory, ignore_errors=True)


def _within_reach(outlet: OutletSettings) -> None:
    """Look for the relay before there is a guard, which would go on trying to open one that is nowhere: a wrong bus,
    address or line in the configuration. Nothing is closed. Raises RelayError."""
    relay = open_relay(outlet.relay)
    try:
        relay.is_closed()
    finally:
        relay.close()


def _end(client: GuardClient, settings: GuardSettings, outlet_id: str) -> None:
    """Open the relay and let the guard go. Raises RelayError when it has not confirmed that."""
    try:
        state = client.bye()
    except RelayError:
        # The guard itself has died: an expander keeps the relay as it was, and a new guard opens it before all else.
        client.close()
        client = spawn_guard(settings)
        state = client.bye()
    finally:
        client.close()
    started = process_start_time(state.pid)
    deadline = time.monotonic() + END_TIMEOUT_S
    while started is not None and is_running(state.pid, started):
        if time.monotonic() > deadline:
            faults = "; ".join(relay.fault for relay in state.relays if relay.fault) or "see its log"
            raise RelayError(
                "relay_stuck",
                f"{outlet_id}: THE RELAY IS NOT CONFIRMED OPEN ({faults}); cut the supply. Process {state.pid} goes on"
                f" trying, its log is {settings.log}",
            )
        time.sleep(LOOK_AGAIN_S)
