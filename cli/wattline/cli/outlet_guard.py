"""A guard for one outlet and one command: the relay opens when the command ends, however it ends."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wattline.device.controller.client import GuardClient, GuardState, spawn_guard
from wattline.device.controller.plugin_starter import is_running, process_start_time
from wattline.device.controller.settings import GUARD_SOCKET, GuardSettings, ProcessSettings
from wattline.device.relays.exclusion import check_unclaimed
from wattline.device.relays.relay import RelayError
from wattline.plugin.settings import OutletSettings

END_TIMEOUT_S = 3.0
LOOK_AGAIN_S = 0.02
DIRECTORY = "wattline-outlet-"
WHOSE = "config"
"""File in the directory of a guard: the configuration that it was started for."""


def check_not_beside_the_plugin(config: Path, outlets: Sequence[OutletSettings]) -> None:
    """Nobody else drives the relays of ``outlets``, but for guards that earlier tests of ``config`` have left.

    It is for the words and the moment, before anything is switched: whoever comes later is kept out by the guard of
    each test. Raises RelayError ``relay_taken``.
    """
    left = []
    for _, client, state in _left_over(config):
        client.close()
        left.append(state.pid)
    check_unclaimed([outlet.relay for outlet in outlets], but_by=left)


def relieve_left_over(config: Path, outlet_ids: Sequence[str], tell: Callable[[str], None]) -> None:
    """Take over from the guards that earlier tests of ``config`` have left, because a relay did not obey: they would
    go on opening it as the configuration said then. Those of other outlets than ``outlet_ids`` are only told of.

    Raises RelayError ``guard_busy`` when one of them belongs to a test that still runs.
    """
    for directory, guard, state in _left_over(config):
        try:
            names = ", ".join(relay.outlet_id for relay in state.relays)
            if state.held:
                raise RelayError("guard_busy", f"another `wattline outlet test` has the relay of {names}")
            left = f"process {state.pid}, left by an earlier test, still tries to open its relay ({_faults(state)})"
            if not {relay.outlet_id for relay in state.relays} <= set(outlet_ids):
                tell(f"{names}: {left}; test that outlet, too")
                continue
            tell(f"{names}: {left}; this test takes over from it")
            guard.relieve()
        finally:
            guard.close()
        if _ended(state):
            shutil.rmtree(directory, ignore_errors=True)


def _left_over(config: Path) -> Iterator[tuple[Path, GuardClient, GuardState]]:
    """The guards of tests of ``config`` that live: their directory, a connection to be closed, their state."""
    for directory in sorted(Path(tempfile.gettempdir()).glob(f"{DIRECTORY}*")):
        try:
            found = directory.stat(follow_symlinks=False)
            mine = found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
            if not mine or (directory / WHOSE).read_text(encoding="utf-8") != str(config.absolute()):
                continue
            guard = GuardClient.connect(directory / GUARD_SOCKET)
        except (OSError, RelayError):
            # Not one of ours, or it has ended.
            continue
        try:
            state = guard.state()
        except RelayError:
            guard.close()
            raise
        yield directory, guard, state


@contextmanager
def own_guard(outlet: OutletSettings, config: Path) -> Iterator[GuardClient]:
    """A guard with the relay of ``outlet`` only, which is open when it begins and when it ends.

    Should this very process be killed, the guard opens the relay and ends by itself. Raises RelayError, also when the
    relay could not be confirmed open at the end: the guard goes on trying then.
    """
    directory = Path(tempfile.mkdtemp(prefix=DIRECTORY))
    (directory / WHOSE).write_text(str(config.absolute()), encoding="utf-8")
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
    if not _ended(state):
        raise RelayError(
            "relay_stuck",
            f"{outlet_id}: THE RELAY IS NOT CONFIRMED OPEN ({_faults(state)}); cut the supply. Process {state.pid} goes"
            f" on trying, its log is {settings.log}; the next test of this outlet takes over from it",
        )


def _ended(state: GuardState) -> bool:
    """Whether the guard has ended, or does so within a moment."""
    started = process_start_time(state.pid)
    deadline = time.monotonic() + END_TIMEOUT_S
    while started is not None and is_running(state.pid, started):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_AGAIN_S)
    return True


def _faults(state: GuardState) -> str:
    return "; ".join(relay.fault for relay in state.relays if relay.fault) or "see its log"
