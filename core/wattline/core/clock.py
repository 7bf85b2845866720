"""What time it is, and for how long: two different questions with two different clocks.

A duration that is held against what the other side did comes from CLOCK_BOOTTIME, which goes on while the machine
sleeps, also across a restart of the process in the same boot; other durations come from the monotonic clock. The
wall clock only dates records: a machine without a clock chip starts in 1970, and people and NTP set it as they like.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
JUMP_S = 5
"""By so much the wall clock has to differ from the time that has passed before it counts as set: NTP slews less."""
DAY_S = 86_400


@cache
def this_boot() -> str:
    """The id of the machine's present boot; empty where the system does not tell."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def since_boot_ns() -> int:
    """CLOCK_BOOTTIME: with the time that the machine slept."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Moment:
    """When something was written down, for whoever reads it after a restart."""

    wall_s: int
    """Unix seconds by the wall clock, for people."""
    boot_id: str = ""
    """Which boot of the machine; empty when that is not known."""
    boot_ms: int = 0
    """Since that boot, with the time that the machine slept."""

    def passed_ms(self, now: Moment) -> int | None:
        """How long before ``now`` it was; None when that is not known: another boot, or a record without one."""
        if not self.boot_id or self.boot_id != now.boot_id:
            return None
        return max(0, now.boot_ms - self.boot_ms)


@dataclass(frozen=True, slots=True)
class Clock:
    """Handed in, so that nothing else asks for the time. Each part may be another one in a test."""

    wall: Callable[[], float] = lambda: time.time()
    """Unix seconds."""
    boot_ns: Callable[[], int] = since_boot_ns
    boot_id: Callable[[], str] = this_boot
    monotonic: Callable[[], float] = lambda: time.monotonic()
    """Seconds of this process's monotonic clock."""

    def now_s(self) -> int:
        """Unix seconds, whole ones."""
        return int(self.wall())

    def monotonic_ms(self) -> int:
        return int(self.monotonic() * 1000)

    def moment(self) -> Moment:
        return Moment(int(self.wall()), self.boot_id(), self.boot_ns() // 1_000_000)


class WallWatch:
    """Notices that the wall clock was set. Not thread-safe."""

    def __init__(self, clock: Clock | None = None, known: Moment | None = None) -> None:
        """``known``: the last moment on record of an earlier process, if there is one."""
        self.clock = clock or Clock()
        self._last = self.clock.moment()
        self._untold_s = 0
        passed_ms = known.passed_ms(self._last) if known is not None else None
        if known is not None and passed_ms is not None:
            self._keep(self._last.wall_s - known.wall_s - passed_ms // 1000)

    def now(self) -> Moment:
        return self._notice()

    def look(self) -> int:
        """By how many seconds the wall clock was set since the last look, backward negative; 0 when it was not."""
        self._notice()
        jump_s, self._untold_s = self._untold_s, 0
        return jump_s

    def _notice(self) -> Moment:
        before, now = self._last, self.clock.moment()
        self._last = now
        passed_ms = before.passed_ms(now)
        if passed_ms is not None:
            self._keep(now.wall_s - before.wall_s - passed_ms // 1000)
        return now

    def _keep(self, jump_s: int) -> None:
        if abs(jump_s) >= JUMP_S:
            self._untold_s += jump_s


def told(jump_s: int) -> str:
    """A jump of the wall clock, for the log."""
    way = "forward" if jump_s > 0 else "back"
    return f"the clock of this machine was set {way} by {abs(jump_s)} s; nothing is measured by it"
