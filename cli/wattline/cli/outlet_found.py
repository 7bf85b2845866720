"""How the pin of an outlet's relay was found, and putting it back when it turns out to be taken the wrong way round."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.cli.outlet_trial import IDLE_MW, power_now_mw
from wattline.device.relays.exclusion import claimed
from wattline.device.relays.opening import look_at, open_relay
from wattline.plugin.settings import OutletSettings


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
