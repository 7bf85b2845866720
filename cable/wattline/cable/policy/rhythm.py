"""How much to pay next, and when: a pure function of the credit that is left, never of when the last payment ended.

The cable keeps enough credit at the socket to outlast one payment and one statement at the present power, with a margin
on top, and pays as soon as it has less. So a slow payment delays nothing but itself, and the rate cannot drift.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from wattline.cable.policy.budget import Bound, Room
from wattline.core.increments import ToldIncrements
from wattline.core.tariff import Tariff, worth_msat

SAFETY_PERCENT = 150
"""Margin on latency and statement interval."""
RESERVE_MS = 2_000
"""Credit kept for this long at the outlet's rated power: the socket's lease of its relay is at most 1 s and never
longer than the balance lasts at rated power, and before it begins it wants several meter intervals of up to 400 ms."""
MAX_BOOST = 6


class Hold(StrEnum):
    """Why nothing is paid just now. The first two are the normal state of affairs."""

    ENOUGH = "enough_credit"
    IN_FLIGHT = "max_in_flight"
    PREPAID = "prepaid_limit"
    SESSION = "session_budget"
    DAY = "day_budget"
    EXPOSURE = "exposure_cap"
    FEE = "fee_too_high"
    MINIMUM = "channel_minimum"
    NO_ROUTE = "no_route"
    BELOW_MINIMUM = "below_min_increment"


_HOLD_OF_BOUND = {
    Bound.PREPAID: Hold.PREPAID,
    Bound.SESSION: Hold.SESSION,
    Bound.DAY: Hold.DAY,
    Bound.EXPOSURE: Hold.EXPOSURE,
}


@dataclass(frozen=True, slots=True)
class Pay:
    """Pay this much now."""

    amount_msat: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What the configuration says about single payments."""

    min_increment_msat: int
    max_increment_msat: int
    max_in_flight: int
    pace_ms: int = 500
    """At a steady load one payment is worth this much time."""
    quantum_msat: int = 1
    """Every payment is a multiple of this (1000: whole sats); so are both increments above."""

    def __post_init__(self) -> None:
        if not 0 < self.min_increment_msat <= self.max_increment_msat:
            raise ValueError("0 < min_increment_msat <= max_increment_msat")
        if self.quantum_msat < 1 or self.min_increment_msat % self.quantum_msat:
            raise ValueError("quantum_msat must be at least 1 and divide min_increment_msat")
        if self.max_in_flight < 1 or self.pace_ms < 1:
            raise ValueError("max_in_flight and pace_ms must be at least 1")


@dataclass(frozen=True, slots=True)
class Load:
    """What the session costs as time goes on."""

    tariff: Tariff
    power_mw: int
    """Present; negative when power flows back, which costs nothing."""
    rated_power_mw: int
    """Of the outlet."""
    due_msat: int = 0
    """Owed at once when delivery begins (a session fee not yet charged)."""

    def worth_msat(self, duration_ms: int) -> int:
        """What ``duration_ms`` cost at the present power, rounded up."""
        return worth_msat(self.tariff, max(0, self.power_mw), duration_ms)

    def rated_worth_msat(self, duration_ms: int) -> int:
        """The same at rated power (or the present one, if a load draws more than it is rated for)."""
        return worth_msat(self.tariff, max(self.rated_power_mw, self.power_mw, 0), duration_ms)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was learnt on the way."""

    latency_ms: int
    statement_interval_ms: int
    socket_min_increment_msat: int = 0
    """What the socket asks for, followed as far as ``max_increment_msat`` and the caps allow."""
    fee_floor_msat: int = 0
    """Below this, routing fees were found to exceed their ratio."""
    route_ceiling_msat: int | None = None
    """Above this, no single route was found."""
    boost: int = 0
    """How often the socket did not begin though the target was reached; doubles the target each time."""
    lead_ms: int = 0
    """Credit for so much more time is kept, so that there is time to go over to another method."""
    route_floor_msat: int = 0
    """Less a channel on the way does not carry."""
    least_taken_msat: int = 0
    """Less the socket is known to fail at the htlc."""


def target_msat(load: Load, conditions: Conditions) -> int:
    """The credit to keep: enough for one payment and one statement at the present power, and for the lease."""
    horizon_ms = (conditions.latency_ms + conditions.statement_interval_ms) * SAFETY_PERCENT // 100 + conditions.lead_ms
    keep = load.worth_msat(horizon_ms) + load.rated_worth_msat(RESERVE_MS)
    return (keep << min(conditions.boost, MAX_BOOST)) + load.due_msat


def next_payment(
    pace: Pace, load: Load, conditions: Conditions, credit_msat: int, in_flight: int, room: Room
) -> Pay | Hold:
    """What to do now.

    ``credit_msat`` is what was paid and is on its way less the charge at this moment (negative when overdrawn);
    ``in_flight`` counts payments under way; ``room`` is what the caps allow.
    """
    target = target_msat(load, conditions)
    lack = target - credit_msat
    if lack <= 0:
        return Hold.ENOUGH
    if in_flight >= pace.max_in_flight:
        return Hold.IN_FLIGHT
    if conditions.least_taken_msat > pace.max_increment_msat:
        return Hold.BELOW_MINIMUM
    least = max(pace.min_increment_msat, conditions.fee_floor_msat, conditions.least_taken_msat)
    if least > pace.max_increment_msat:
        return Hold.FEE
    if conditions.route_floor_msat > pace.max_increment_msat:
        return Hold.MINIMUM
    least = max(least, conditions.route_floor_msat)
    ceiling = pace.max_increment_msat
    if conditions.route_ceiling_msat is not None and conditions.route_ceiling_msat < ceiling:
        ceiling = conditions.route_ceiling_msat
        if ceiling < least:
            return Hold.NO_ROUTE
    steady = max(least, conditions.socket_min_increment_msat, load.worth_msat(pace.pace_ms))
    quantum = pace.quantum_msat
    ceiling -= ceiling % quantum
    wanted = min(-(-max(steady, lack) // quantum) * quantum, ceiling)
    if room.amount_msat >= wanted:
        return Pay(wanted)
    room = replace(room, amount_msat=room.amount_msat - room.amount_msat % quantum)
    held_by_cap = _HOLD_OF_BOUND[room.bound]
    if _floor_pushes_over_cap(pace, conditions.fee_floor_msat, room):
        held_by_cap = Hold.FEE
    elif _floor_pushes_over_cap(pace, conditions.route_floor_msat, room):
        held_by_cap = Hold.MINIMUM
    if room.amount_msat < least:
        return held_by_cap
    if room.amount_msat < min(steady, ceiling) and credit_msat * 2 > target:
        # The cap leaves only crumbs and the credit still lasts: wait until a payment of ordinary size fits.
        return held_by_cap
    return Pay(room.amount_msat)


def _floor_pushes_over_cap(pace: Pace, floor_msat: int, room: Room) -> bool:
    """A payment would fit into the cap, were it not that payments so small are forbidden by fees or by a channel."""
    return room.bound is Bound.PREPAID and pace.min_increment_msat <= room.amount_msat < floor_msat


HELD_TO_S = 30.0
"""What the socket asked for so lately it takes: half of the time for which it does, for the way there."""


class AskedIncrement:
    """The smallest payment that the socket asks for."""

    def __init__(self) -> None:
        self._told = ToldIncrements()
        self.is_enforced = False
        """A payment was failed for being smaller."""

    def tell(self, min_increment_msat: int, at_ms: int) -> None:
        self._told.tell(min_increment_msat, at_ms / 1000)

    def tell_anew(self, min_increment_msat: int, at_ms: int) -> None:
        """What was asked for before counts no more, whatever this side's clock says."""
        self._told = ToldIncrements()
        self.tell(min_increment_msat, at_ms)

    def least_msat(self, now_ms: int) -> int:
        """The smallest payment that the socket takes now."""
        return self._told.least_msat(now_ms / 1000, HELD_TO_S)


class Latency:
    """How long payments take: mean and deviation as in RFC 6298, so one slow payment does not set the pace for long."""

    FIRST_MS = 1_000
    LONGEST_MS = 10_000

    def __init__(self) -> None:
        self._mean: float | None = None
        self._deviation = 0.0

    def observe(self, duration_ms: int) -> None:
        duration = float(min(max(0, duration_ms), self.LONGEST_MS))
        if self._mean is None:
            self._mean, self._deviation = duration, duration / 2
            return
        self._deviation += (abs(duration - self._mean) - self._deviation) / 4
        self._mean += (duration - self._mean) / 8

    @property
    def estimate_ms(self) -> int:
        if self._mean is None:
            return self.FIRST_MS
        return min(self.LONGEST_MS, round(self._mean + 2 * self._deviation))
