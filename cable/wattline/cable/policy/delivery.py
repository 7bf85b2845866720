"""What only the own meter can refute: that there is voltage while the socket delivers, and current while it counts.

Pure. A socket that cheats, a blown fuse behind its meter and a dead contact look alike: it says that it delivers, and
nothing arrives. What it can charge for that is bounded here, whatever it says:

- time: SLACK_MS over a whole run, SWITCH_MS for each time that the own voltage came up, and 2 % of all the time that
  there was voltage (`Known.most_delivered_ms`); where nobody looked, what was paid for comes instead of all that
  (:mod:`wattline.cable.policy.delivery`); the session ends with the first statement beyond that (``no_voltage``);
- energy: what the tolerance grants (``energy_mismatch``), or before that 1/50 of the rated power for as long as no
  current flows (``no_current``).

The cable's own energy since the open of the session, with a short memory so that it can be compared in time.

What can have been delivered while nobody looked: the cable was down, or its machine slept.

Pure. A socket that keeps the rules stops at the credit that it holds. So all that it has delivered by the time somebody
looks again comes to no more than was paid by then or was in doubt, energy and time together: that much the caps
believe, and what is claimed beyond it is untrue, as far as two honest meters and a relay's way can be apart.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from wattline.cable.policy.reconciliation import LONGEST_CLAIM_AGE_MS, Breach, Claim, Mismatch, Tolerance
from wattline.core.tariff import Tariff, left_ms, worth_msat

SLACK_MS = 3_000
"""A relay closes within 50 ms; a power supply that is switched with it may take two seconds to start."""
SWITCH_MS = 250
"""Between a socket that begins to count and the voltage, each time that the relay closes: a relay takes up to 50 ms, a
contactor 200. The own interval in which voltage shows counts as a whole, and the socket's intervals do not matter: a
meter that sees no voltage counts no time."""
CLOCK_DIVISOR = 50
IDLE_DIVISOR = 50
"""Less than 1/50 of the rated power may be the offset of the socket's meter."""
UNSEEN_MS = 2_000
"""Of what was between two own readings that are further apart, nothing is known: there are ten a second."""
LEAST_IDLE_MW = 5_000
"""The same where the rated power is small: 100 mA at 48 V, the offset of an INA219 over 1 milliohm."""
MW_MS_PER_UWH = 3_600


@dataclass(frozen=True, slots=True)
class _Point:
    """A claim from which on the socket's count is held against the own one."""

    at_ms: int
    claimed_uwh: int
    own_uwh: int
    """The own energy at the earliest moment that the claim may stand for."""


class DeliveryWatch:
    """Of one run, fed by its deciding thread. What an earlier run of the session left is not judged again: of it the
    socket's word is taken, as far as :func:`wattline.cable.policy.reconciliation.compare` grants it."""

    def __init__(self, min_voltage_mv: int, rated_power_mw: int, claim_age_ms: int) -> None:
        """``min_voltage_mv``: below, there is no voltage. ``claim_age_ms``: how old a claim may be when it is read."""
        self._min_voltage_mv = min_voltage_mv
        self._idle_mw = max(LEAST_IDLE_MW, rated_power_mw // IDLE_DIVISOR)
        self._claim_age_ms = claim_age_ms
        self._newest: tuple[int, bool] | None = None
        """When the own meter was read last, and whether there was voltage."""
        self._live_ms = 0
        self._unseen_ms = 0
        """The part of it in which nobody looked."""
        self._switchings = 0
        self._dark_since_ms: int | None = None
        self._delivering_since_ms: int | None = None
        """When the first of an unbroken row of words that say so was heard."""
        self._begun_ms: int | None = None
        """What the socket had counted at its first word."""
        self._point: _Point | None = None

    def on_reading(self, at_ms: int, voltage_mv: int) -> None:
        """Between two readings of which one shows voltage there was voltage, and there may have been where nobody
        looked for longer than UNSEEN_MS."""
        has_voltage = voltage_mv >= self._min_voltage_mv
        if self._newest is not None:
            before_ms, had_voltage = self._newest
            passed_ms = max(0, at_ms - before_ms)
            if passed_ms > UNSEEN_MS:
                self._unseen_ms += passed_ms
                self._dark_since_ms = self._delivering_since_ms = None
            if has_voltage or had_voltage or passed_ms > UNSEEN_MS:
                self._live_ms += passed_ms
            self._switchings += has_voltage and not had_voltage
        if has_voltage:
            self._dark_since_ms = None
        elif self._dark_since_ms is None:
            self._dark_since_ms = at_ms
        self._newest = (at_ms, has_voltage)

    def most_delivered_ms(self) -> int | None:
        """More time than this cannot have been delivered; None before the socket's first word."""
        if self._begun_ms is None:
            return None
        return self._begun_ms + self.seen_ms + self._unseen_ms + self._unseen_ms // CLOCK_DIVISOR

    @property
    def seen_ms(self) -> int:
        """What was delivered of it in this run while somebody looked."""
        live_ms = self._live_ms - self._unseen_ms
        return live_ms + SLACK_MS + SWITCH_MS * self._switchings + live_ms // CLOCK_DIVISOR

    def begin(self, claim: Claim) -> None:
        """The socket's first word in this run; later ones are held against it."""
        if self._begun_ms is None:
            self._begun_ms = claim.delivered_ms

    def refuted(
        self, claim: Claim, at_ms: int, own_before_uwh: int, own_now_uwh: int, *, is_delivering: bool
    ) -> Mismatch | None:
        """What the own meter says against a claim that arrived at ``at_ms``: the own energy was ``own_now_uwh`` then
        and ``own_before_uwh`` at the earliest moment that the claim may stand for."""
        if not is_delivering:
            self._delivering_since_ms = None
        elif self._delivering_since_ms is None:
            self._delivering_since_ms = at_ms
        elif self._dark_since_ms is not None:
            # When this was said, both had lasted for SLACK_MS, however late it was heard.
            dark_ms = at_ms - max(self._dark_since_ms, self._delivering_since_ms)
            if dark_ms >= self._claim_age_ms + SLACK_MS:
                return Mismatch(
                    Breach.NO_VOLTAGE,
                    f"the socket says that it delivers; the own meter sees no voltage for {dark_ms} ms",
                )
        return self._without_current(_Point(at_ms, claim.energy_uwh, own_before_uwh), own_now_uwh)

    def _without_current(self, now: _Point, own_now_uwh: int) -> Mismatch | None:
        """The socket's count grows, and the own one by not even half of it: measured from the last claim at which it
        was otherwise."""
        point = self._point
        if point is None or 2 * (own_now_uwh - point.own_uwh) >= now.claimed_uwh - point.claimed_uwh:
            self._point = now
            return None
        claimed_uwh, own_uwh = now.claimed_uwh - point.claimed_uwh, own_now_uwh - point.own_uwh
        lasted_ms = now.at_ms - point.at_ms + self._claim_age_ms
        if claimed_uwh <= self._idle_mw * lasted_ms // MW_MS_PER_UWH:
            return None
        return Mismatch(
            Breach.NO_CURRENT,
            f"the socket has counted {claimed_uwh} uWh more, the own meter {own_uwh} uWh: no current arrives",
        )


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


OVERDRAFT_MS = 5_000
"""By so much, at the rated power, an honest socket may overdraw: a meter interval, or the lease of a remote relay."""


def longest_paid_ms(tariff: Tariff, tolerance: Tolerance, rated_power_mw: int, paid_msat: int, own_uwh: int) -> int:
    """Longer an honest socket cannot have delivered for ``paid_msat``, when the own meter has counted ``own_uwh``."""
    least_uwh = max(0, own_uwh - tolerance.allowed_uwh(own_uwh))
    return left_ms(tariff, paid_msat + worth_msat(tariff, rated_power_mw, OVERDRAFT_MS), least_uwh, 0, 0)


@dataclass(frozen=True, slots=True)
class Unseen:
    """The newest time that nobody looked, and what is believed of it. Before any: nothing was delivered."""

    tariff: Tariff
    most_ms: int = 0
    """What would be believed by its end if all of it was delivery."""
    paid_msat: int = 0
    """The most that the socket can have got by its end, payments in doubt included."""
    own_uwh: int = 0
    """By the own meter at its end, with what two honest meters drift apart."""
    seen_ms: int = 0
    """What the own meter had seen by its end of this run; what it sees later comes on top."""
    underway: frozenset[int] = frozenset()
    """The payments over Lightning that were not resolved at its end."""

    def believed_ms(self, seen_ms: int) -> int:
        """The longest that delivery can have lasted, as far as the caps believe it, when the own meter has seen
        ``seen_ms`` in this run."""
        paid_for_ms = left_ms(self.tariff, self.paid_msat, self.own_uwh, 0, 0)
        return min(self.most_ms, paid_for_ms) + seen_ms - self.seen_ms

    def failed(self, sequence: int, amount_msat: int) -> Unseen:
        """A payment came back: nothing was delivered for it."""
        if sequence not in self.underway:
            return self
        return replace(self, paid_msat=self.paid_msat - amount_msat, underway=self.underway - {sequence})
