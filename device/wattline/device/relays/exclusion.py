"""One driver for each piece of hardware: a lock that keeps every second one out, whoever started it and from wherever.

What is locked is what a write touches: a whole expander, for relays on different pins of it share one register, and one
line of a GPIO chip. The kernel drops a lock with the process that holds it, however that ends.

Hardware is there once in a machine, so guards of different users must meet at its lock: it cannot lie in a folder of
one user. Where ``/run/wattline`` is there (only root can make it), all guards meet in it, and who may not write there
drives nothing: the operator chooses who that is. Else they meet in the folders that everybody may write to. There
somebody else may have put a file, a link or a lock of his own in the way: that is never followed, written or trusted,
it keeps the guard from working, and the refusal says whose it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from wattline.core.ownership import ForeignFile, Holder, holder_of, open_lock, user_name
from wattline.device.i2c.bus import BusError
from wattline.device.i2c.simulated import Place
from wattline.device.relays.gpio import GpioRelaySettings
from wattline.device.relays.opening import RelaySettings
from wattline.device.relays.relay import RelayError

OWN = Path("/run/wattline")
"""Where the locks of real hardware lie when the operator has made it: writable for those who may drive hardware."""
MACHINE = (Path("/run/lock"), Path("/tmp"))
"""Where they lie otherwise. One is taken in each of them that can be used: who may not write into the first
one still meets in the second one those who may; and not in a TMPDIR, which is different for everybody."""
PATIENCE_S = 2.0
"""How long a lock is waited for: that of a guard that is just ending."""
LOOK_AGAIN_S = 0.02
READABLE_BY_ALL = 0o644
"""Every user must be able to see that it is locked; nobody else has to write into it."""


class RelayTakenError(RelayError):
    """Another process drives the hardware of a relay."""

    def __init__(self, relay: RelaySettings, path: Path, holder: Holder | None, pid: int | None) -> None:
        """``pid`` is that of the other process, None when neither the kernel nor the lock says it."""
        whose = str(holder) if holder is not None else f"process {pid}" if pid is not None else "an unknown process"
        super().__init__(
            "relay_taken",
            f"{relay.place}: another guard has it ({whose}, holds the lock {path}): stop the plugin first, with"
            " lightning-cli plugin stop wattline-plugin, or wait for the end of another `wattline outlet test`",
        )
        self.pid = pid


@contextmanager
def claimed(
    relays: Iterable[RelaySettings],
    patience_s: float = PATIENCE_S,
    machine: Sequence[Path] | None = None,
    own: Path | None = None,
) -> Iterator[None]:
    """Be the only one that drives the hardware of ``relays`` meanwhile. Without ``machine`` the locks lie in OWN or
    MACHINE; else in ``own`` or ``machine``.

    Raises RelayError: ``relay_taken`` when somebody else does, ``relay_lock_unusable`` when that cannot be told.
    """
    if machine is None:
        machine, own = MACHINE, OWN
    wanted = {locks_of(relay, machine): relay for relay in relays}
    deadline = time.monotonic() + patience_s
    with ExitStack() as held:
        # In one order for everybody: no two wait for each other.
        for paths in sorted(wanted):
            for path, descriptor in _waited_for(paths, machine, own, wanted[paths], deadline):
                held.callback(_let_go, path, descriptor)
        yield


def check_unclaimed(relays: Iterable[RelaySettings], but_by: Collection[int]) -> None:
    """Raises RelayError as ``claimed`` does; but what a process of ``but_by`` has counts as free."""
    for relay in relays:
        try:
            with claimed([relay], patience_s=0):
                continue
        except RelayTakenError as error:
            if error.pid in but_by:
                continue
        with claimed([relay]):
            pass


def locks_of(relay: RelaySettings, machine: Sequence[Path] = MACHINE) -> tuple[Path, ...]:
    """The files that are locked for ``relay``, the same for all that a write to it touches. Raises RelayError."""
    if isinstance(relay, GpioRelaySettings):
        # Links to a chip are common: /dev/gpiochip4 of a Raspberry Pi 5.
        key = f"{Path(relay.chip).resolve()}-{relay.line}"
    elif isinstance(relay.bus, int):
        key = f"i2c-{relay.bus}-{relay.address:#04x}"
    else:
        try:
            world = Place.of(relay.bus).lock
        except BusError as error:
            raise RelayError("relay_bus_error", f"{relay.place}: {error}") from error
        return (world.with_suffix(f".{relay.address:#04x}.lock"),)
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", key).strip("-")
    return tuple(directory / f"wattline-{name}.lock" for directory in machine)


def _own_lock(relay: RelaySettings, own: Path, name: str) -> Path | None:
    """The lock in the folder of our own; None when there is no such folder. Raises RelayError.

    Whether it is there must mean the same for everybody, so it is no matter of taste: who cannot use it is refused.
    """
    try:
        found = own.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RelayError("relay_lock_unusable", f"{relay.place}: {own} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & stat.S_IWOTH:
        raise RelayError(
            "relay_lock_unusable", f"{relay.place}: {own} must be a folder that not everybody may write to"
        )
    if not os.access(own, os.W_OK | os.X_OK, effective_ids=True):
        me = user_name(os.geteuid())
        raise RelayError(
            "relay_lock_unusable",
            f"{relay.place}: {own} is there, but user {me} may not write into it, where guards meet",
        )
    return own / name


def _check_not_held(relay: RelaySettings, paths: Sequence[Path]) -> None:
    """No guard that began before the folder of our own was there has it. Raises RelayTakenError.

    Only one of this user or of root counts: in these folders everybody can lock a file. Root looks at all.
    """
    for path in paths:
        try:
            descriptor = open_lock(path, None)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = holder_of(descriptor)
            if holder is None or os.geteuid() == 0 or holder.uid in (os.geteuid(), 0):
                raise _taken_error(relay, path, descriptor) from None
        finally:
            os.close(descriptor)


def _let_go(path: Path, descriptor: int) -> None:
    # While it is still locked: whoever waits for it sees that it is at its place no more, and looks again.
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)


def _waited_for(
    paths: Sequence[Path], machine: Sequence[Path], own: Path | None, relay: RelaySettings, deadline: float
) -> list[tuple[Path, int]]:
    meeting = _own_lock(relay, own, paths[0].name) if own is not None and paths[0].parent in machine else None
    while True:
        try:
            if meeting is None:
                return _taken(paths, relay)
            _check_not_held(relay, paths)
            return _taken([meeting], relay)
        except RelayTakenError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(LOOK_AGAIN_S)


def _taken(paths: Sequence[Path], relay: RelaySettings) -> list[tuple[Path, int]]:
    """The locks that could be made, and the descriptors that hold them, all or none. Raises RelayError."""
    with ExitStack() as held:
        locks = []
        for path in paths:
            descriptor = _locked(path, relay)
            if descriptor is not None:
                held.callback(_let_go, path, descriptor)
                locks.append((path, descriptor))
        if not locks:
            where = " and ".join(str(path.parent) for path in paths)
            raise RelayError(
                "relay_lock_unusable", f"{relay.place}: no lock can be made for it, {where} cannot be written"
            )
        held.pop_all()
        return locks


def _locked(path: Path, relay: RelaySettings) -> int | None:
    """The descriptor that holds the lock ``path``; None where none can be made. Raises RelayError."""
    while True:
        try:
            descriptor = open_lock(path, READABLE_BY_ALL)
        except OSError as error:
            if os.path.lexists(path):
                raise _unusable(relay, path, error) from error
            return None
        with ExitStack() as opened:
            opened.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _taken_error(relay, path, descriptor) from None
            if not _is_at(descriptor, path):
                # Cleared away meanwhile: the next one would lock another file.
                continue
            if not _is_ours(descriptor):
                # Left behind by a guard of another user that was killed. He could take it away again while we hold it.
                _clear(path, descriptor, relay)
                continue
            _note(descriptor)
            opened.pop_all()
            return descriptor


def _is_ours(descriptor: int) -> bool:
    return os.fstat(descriptor).st_uid in (os.geteuid(), 0)


def _clear(path: Path, descriptor: int, relay: RelaySettings) -> None:
    """Take away another user's lock that nobody holds but we, just now. Raises RelayError where we may not."""
    try:
        path.unlink()
    except OSError as error:
        whose = (
            f"it was left behind by user {user_name(os.fstat(descriptor).st_uid)}, who alone (or root) can remove it"
        )
        raise _unusable(relay, path, ForeignFile(path, whose)) from error


def _unusable(relay: RelaySettings, path: Path, error: OSError) -> RelayError:
    return RelayError("relay_lock_unusable", f"{relay.place}: {path} cannot be locked: {error.strerror}")


def _taken_error(relay: RelaySettings, path: Path, descriptor: int) -> RelayTakenError:
    holder = holder_of(descriptor)
    return RelayTakenError(relay, path, holder, holder.pid if holder is not None else _noted(descriptor))


def _note(descriptor: int) -> None:
    """Our number, for who does not see us in /proc: only for the words of a refusal."""
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, f"{os.getpid():<15}\n".encode(), 0)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _noted(descriptor: int) -> int | None:
    if not _is_ours(descriptor):
        return None
    found = os.pread(descriptor, 16, 0).strip()
    return int(found) if found.isdigit() else None
