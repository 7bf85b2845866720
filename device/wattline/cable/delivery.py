"""What only the own meter can refute: that there is voltage while the socket delivers, and current while it counts.

Pure. A socket that cheats, a blown fuse behind its meter and a dead contact look alike: it says that it delivers, and
nothing arrives. What it can charge for that is bounded here, whatever it says:

- time: SLACK_MS over a whole run, SWITCH_MS for each time that the own voltage came up, and 2 % of all the time that
  there was voltage (`Known.most_delivered_ms`); where nobody looked, what was paid for comes instead of all that
  (:mod:`wattline.cable.unseen`); the session ends with the first statement beyond that (``no_voltage``);
- energy: what the tolerance grants (``energy_mismatch``), or before that 1/50 of the rated power for as long as no
  current flows (``no_current``).
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.cable.reconciliation import Breach, Claim, Mismatch

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
    socket's word is taken, as far as :func:`wattline.cable.reconciliation.compare` grants it."""

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
