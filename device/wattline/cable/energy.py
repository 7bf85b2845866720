"""The cable's own energy since the open of the session, with a short memory so that it can be compared in time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from wattline.cable.lateness import LONGEST_CLAIM_AGE_MS

MEMORY_MS = LONGEST_CLAIM_AGE_MS + 10_000
"""Every claim can be compared with the moment that it stands for, and those wait until a reading is as new."""


@dataclass(frozen=True, slots=True)
class EnergyPoint:
    at_ms: int
    """Of a monotonic clock."""
    energy_uwh: int
    """Since the open of the session, never negative."""


class EnergyTrack:
    """Own readings turned into energy since the open.

    The chip counts on its own from wherever it stands. ``base_uwh`` is its count at the open; ``extra_uwh`` is energy
    that belongs to the session but is no longer in the chip (it lost its supply while the cable was down).
    """

    def __init__(self, base_uwh: int, extra_uwh: int = 0) -> None:
        self._base_uwh = base_uwh
        self._extra_uwh = extra_uwh
        self._points: deque[EnergyPoint] = deque()

    @property
    def energy_uwh(self) -> int:
        """At the newest reading; 0 before the first."""
        return self._points[-1].energy_uwh if self._points else 0

    @property
    def newest_ms(self) -> int | None:
        """When the newest reading was taken."""
        return self._points[-1].at_ms if self._points else None

    def add(self, at_ms: int, chip_energy_uwh: int) -> EnergyPoint:
        """Take a reading. Energy that flows back below the count at the open counts as none."""
        point = EnergyPoint(at_ms, max(0, chip_energy_uwh - self._base_uwh + self._extra_uwh))
        self._points.append(point)
        while len(self._points) > 2 and self._points[1].at_ms < at_ms - MEMORY_MS:
            self._points.popleft()
        return point

    def covers(self, at_ms: int) -> bool:
        """Whether a reading as new as ``at_ms`` is there."""
        newest = self.newest_ms
        return newest is not None and newest >= at_ms

    def at(self, at_ms: int) -> int:
        """Energy at a point in time, interpolated between readings; the nearest one's outside of what is remembered."""
        if not self._points:
            return 0
        later = self._points[-1]
        if at_ms >= later.at_ms:
            return later.energy_uwh
        for point in reversed(self._points):
            if point.at_ms <= at_ms:
                span = later.at_ms - point.at_ms
                if span == 0:
                    return point.energy_uwh
                return point.energy_uwh + (later.energy_uwh - point.energy_uwh) * (at_ms - point.at_ms) // span
            later = point
        return later.energy_uwh


@dataclass(frozen=True, slots=True)
class Resumption:
    """How own energy goes on after the cable was down."""

    base_uwh: int
    extra_uwh: int
    gap_uwh: int
    """Energy that only the socket has seen; 0 when the chip counted through."""


def resume_energy(
    base_uwh: int, extra_uwh: int, last_own_uwh: int, chip_now_uwh: int, socket_uwh: int, most_in_gap_uwh: int
) -> Resumption:
    """Where to count on from. ``last_own_uwh`` is the newest own energy on record, ``socket_uwh`` the socket's claim at
    the resumption, ``most_in_gap_uwh`` what can at most have flowed meanwhile (rated power, and what was paid).

    A chip that counted through is believed. One that starts anew (lost supply, was reset) cannot tell what flowed: then
    the socket's claim is taken for the gap, as far as it is possible at all."""
    if chip_now_uwh - base_uwh + extra_uwh >= last_own_uwh:
        return Resumption(base_uwh, extra_uwh, 0)
    gap = min(max(0, socket_uwh - last_own_uwh), most_in_gap_uwh)
    return Resumption(chip_now_uwh, last_own_uwh + gap, gap)
