"""One driver for each piece of hardware: a lock that keeps every second one out, whoever started it and from wherever.

What is locked is what a write touches: a whole expander, for relays on different pins of it share one register, and one
line of a GPIO chip. The kernel drops a lock with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from wattline.bus import BusError
from wattline.bus.simulation.place import Place
from wattline.relay.gpio import GpioRelaySettings
from wattline.relay.opening import RelaySettings
from wattline.relay.relay import RelayError

MACHINE = (Path("/run/lock"), Path("/tmp"))
"""Where the locks of real hardware lie. One is taken in each of them that can be used: who may not write into the first
one still meets in the second one those who may; and not in a TMPDIR, which is different for everybody."""
PATIENCE_S = 2.0
"""How long a lock is waited for: that of a guard that is just ending."""
LOOK_AGAIN_S = 0.02
OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class RelayTakenError(RelayError):
    """Another process drives the hardware of a relay."""

    def __init__(self, relay: RelaySettings, path: Path, pid: int | None) -> None:
        """``pid`` is that of the other process, None when it has not said."""
        holder = "" if pid is None else f"process {pid}, "
        super().__init__(
            "relay_taken",
            f"{relay.place}: another guard has it ({holder}{path} is locked): stop the plugin first, with lightning-cli"
            " plugin stop wattline-plugin, or wait for the end of another `wattline outlet test`",
        )
        self.pid = pid


@contextmanager
def claimed(
    relays: Iterable[RelaySettings], patience_s: float = PATIENCE_S, machine: Sequence[Path] = MACHINE
) -> Iterator[None]:
    """Be the only one that drives the hardware of ``relays`` meanwhile.

    Raises RelayError: ``relay_taken`` when somebody else does, ``relay_lock_unusable`` when that cannot be told.
    """
    wanted = {locks_of(relay, machine): relay for relay in relays}
    deadline = time.monotonic() + patience_s
    with ExitStack() as held:
        # In one order for everybody: no two wait for each other.
        for paths in sorted(wanted):
            for path, descriptor in _waited_for(paths, wanted[paths], deadline):
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


def _let_go(path: Path, descriptor: int) -> None:
    # While it is still locked: whoever waits for it sees that it is at its place no more, and looks again.
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)


def _waited_for(paths: Sequence[Path], relay: RelaySettings, deadline: float) -> list[tuple[Path, int]]:
    while True:
        try:
            return _taken(paths, relay)
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
            descriptor = _opened(path)
        except OSError as error:
            raise RelayError(
                "relay_lock_unusable", f"{relay.place}: {path} cannot be locked: {error.strerror}"
            ) from error
        if descriptor is None:
            return None
        with ExitStack() as opened:
            opened.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RelayTakenError(relay, path, _noted(descriptor)) from None
            if not _is_at(descriptor, path):
                # Cleared away meanwhile: the next one would lock another file.
                continue
            # Only for the words of a refusal.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            opened.pop_all()
            return descriptor


def _opened(path: Path) -> int | None:
    """The file ``path``, made for everybody when there is none; None where none can be made. Raises OSError."""
    # Not with O_CREAT at once: in directories like /tmp the kernel refuses that for a file of another user
    # (fs.protected_regular), who must be kept out as well.
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, OPEN)
        before = os.umask(0)
        try:
            return os.open(path, OPEN | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue  # somebody else was quicker, and may have let go of it again
        except OSError:
            return None
        finally:
            os.umask(before)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _noted(descriptor: int) -> int | None:
    found = os.pread(descriptor, 16, 0).strip()
    return int(found) if found.isdigit() else None
