"""One outlet tried out: its relay closed for a moment, and what relay and meter say before, meanwhile and after.

Also how the pin of an outlet's relay was found, which is put back when it turns out to be taken the wrong way round.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from wattline.device.controller.client import GuardClient
from wattline.device.meters.opening import open_meter
from wattline.device.meters.reading import Meter, Reading
from wattline.device.relays.exclusion import claimed
from wattline.device.relays.opening import look_at, open_relay
from wattline.plugin.settings import OutletSettings

LEASE_MS = 500
INTERVAL_S = 0.1
SETTLED_S = 0.5
"""After switching: the meter averages, and a load takes its time."""
IDLE_MW = 20_000
"""What may show through an open relay (offset of the meter) before it counts as current that flows."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was seen. A relay is True when closed, as read back from its hardware."""

    relay_before: bool
    before: Reading
    relay_meanwhile: bool
    meanwhile: Reading
    relay_after: bool
    after: Reading
    active_low: bool
    min_voltage_mv: int
    """These two as the configuration has them."""

    @property
    def flows_while_open(self) -> bool:
        """There was power before the relay was to be closed."""
        return abs(self.before.power_mw) > IDLE_MW

    @property
    def without_load(self) -> bool:
        return abs(self.meanwhile.power_mw) <= IDLE_MW

    @property
    def problem(self) -> str:
        """For people; empty when the outlet works."""
        if self.flows_while_open:
            return (
                f"{self.before.power_mw / 1000:.0f} W flow through the open relay: most likely"
                f" active_low = {str(self.active_low).lower()} is wrong; else it is wired past, or stuck."
                " POWER IS STILL ON: cut the supply"
            )
        if not self.relay_meanwhile:
            return "the relay did not close"
        if self.relay_after:
            return "THE RELAY DID NOT OPEN: cut the supply"
        if abs(self.after.power_mw) > IDLE_MW:
            return f"{self.after.power_mw / 1000:.0f} W still flow: THE CONTACT IS WELDED OR WIRED PAST: cut the supply"
        if self.meanwhile.voltage_mv < self.min_voltage_mv:
            return (
                f"no_voltage: {self.meanwhile.voltage_mv / 1000:.1f} V with the relay closed: look at the supply, its"
                " fuse, and whether the meter's VBUS is connected"
            )
        if self.meanwhile.power_mw < -IDLE_MW:
            return f"{self.meanwhile.power_mw / 1000:.0f} W: current flows back; is the shunt the wrong way round?"
        return ""

    def to_json(self) -> dict[str, Any]:
        return {
            "without_load": self.without_load,
            **{
                when: {
                    "relay_closed": closed,
                    "energy_uwh": reading.energy_uwh,
                    "power_mw": reading.power_mw,
                    "voltage_mv": reading.voltage_mv,
                    "current_ma": reading.current_ma,
                }
                for when, closed, reading in (
                    ("before", self.relay_before, self.before),
                    ("closed", self.relay_meanwhile, self.meanwhile),
                    ("after", self.relay_after, self.after),
                )
            },
        }


def try_out(outlet: OutletSettings, guard: GuardClient, seconds: float) -> Trial:
    """Close the relay of ``outlet`` for ``seconds``, unless current flows already, and open it again.

    Raises RelayError, MeterError; the relay is then left to whoever ends ``guard``, at the latest to its lease.
    """
    # Without the rated power: a test must be able to tell that current flows back, or that there is too much of it.
    meter = open_meter(outlet.meter)
    try:
        relay_before = guard.open(outlet.outlet_id).closed
        before = _watch(meter, SETTLED_S)
        if abs(before.power_mw) > IDLE_MW:
            return Trial(
                relay_before,
                before,
                False,
                before,
                relay_before,
                before,
                outlet.relay.active_low,
                outlet.min_voltage_mv,
            )
        relay_meanwhile, meanwhile = _closed(outlet.outlet_id, guard, meter, seconds)
        relay_after = guard.open(outlet.outlet_id).closed
        after = _watch(meter, SETTLED_S)
        return Trial(
            relay_before,
            before,
            relay_meanwhile,
            meanwhile,
            relay_after,
            after,
            outlet.relay.active_low,
            outlet.min_voltage_mv,
        )
    finally:
        meter.close()


def power_now_mw(outlet: OutletSettings) -> int:
    """What flows, once it has settled. Raises MeterError."""
    meter = open_meter(outlet.meter)
    try:
        return _watch(meter, SETTLED_S).power_mw
    finally:
        meter.close()


def _watch(meter: Meter, seconds: float) -> Reading:
    """The last reading of that time."""
    ends = time.monotonic() + seconds
    reading = meter.read()
    while time.monotonic() < ends:
        time.sleep(INTERVAL_S)
        reading = meter.read()
    return reading


def _closed(outlet_id: str, guard: GuardClient, meter: Meter, seconds: float) -> tuple[bool, Reading]:
    """Hold the relay for ``seconds``; what it and the meter said last. A meter that fails ends it at once."""
    ends = time.monotonic() + seconds
    closed, reading = guard.hold(outlet_id, LEASE_MS).closed, meter.read()
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(INTERVAL_S, left))
        closed, reading = guard.hold(outlet_id, LEASE_MS).closed, meter.read()
    return closed, reading


@dataclass(frozen=True, slots=True)
class Found:
    """What was there before anything was switched."""

    closed: bool
    """The pin was at the level that the configuration calls closed."""
    without_power: bool
    """No power flowed all the same; looked at only when the pin was ``closed``."""

    @property
    def contradicts(self) -> bool:
        """The configuration calls closed what let nothing through."""
        return self.closed and self.without_power


def find(outlet: OutletSettings) -> Found:
    """Look at the relay before there is a guard, which would go on trying to open one that is nowhere: a wrong bus,
    address, chip or line in the configuration. Nothing is switched. Raises RelayError, MeterError."""
    closed = look_at(outlet.relay)
    return Found(closed, closed and abs(power_now_mw(outlet)) <= IDLE_MW)


def put_back(outlet: OutletSettings) -> bool:
    """The pin at the level that the configuration calls closed, at which it was found and nothing flowed. Whether
    nothing flows now. Raises RelayError, MeterError."""
    # No guard has it at this moment.
    with claimed([outlet.relay]):
        relay = open_relay(outlet.relay)
        try:
            relay.set_closed(True)
        finally:
            relay.close()
    # Only now: what a GPIO line does when it is let go belongs to it.
    return abs(power_now_mw(outlet)) <= IDLE_MW
