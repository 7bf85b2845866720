"""From the ``relay`` of a configuration file to a relay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

from pydantic import Discriminator

from wattline.bus import BusError, I2CBus, open_bus
from wattline.relay.gpio import GpioRelay, GpioRelaySettings
from wattline.relay.pcf8574 import Pcf8574, Pcf8574Relay, Pcf8574RelaySettings
from wattline.relay.relay import Relay, RelayError

RelaySettings: TypeAlias = Annotated[GpioRelaySettings | Pcf8574RelaySettings, Discriminator("driver")]
"""The settings of any relay, told apart by ``driver``."""


class Expanders:
    """The expanders of a process: relays on the same chip must share one, for they share its latch."""

    def __init__(self, open_bus: Callable[[int | str], I2CBus] = open_bus) -> None:
        self._open_bus = open_bus
        self._opened: dict[tuple[int | str, int], Pcf8574] = {}

    def expander(self, bus: int | str, address: int) -> Pcf8574:
        """The expander at ``address``. Raises RelayError ``relay_bus_error``."""
        key = (bus, address)
        if key not in self._opened:
            name = f"PCF8574 at {address:#04x} on bus {bus}"
            try:
                self._opened[key] = Pcf8574(self._open_bus(bus), address, name)
            except BusError as error:
                raise RelayError("relay_bus_error", f"{name}: {error}") from error
        return self._opened[key]

    def close(self) -> None:
        """Let go of all buses; the latches stay as they are."""
        for expander in self._opened.values():
            expander.close()
        self._opened.clear()


def open_relay(settings: RelaySettings, expanders: Expanders | None = None) -> Relay:
    """The relay; relays that share a chip must share ``expanders``. Raises RelayError, ValueError (pin taken twice)."""
    match settings:
        case GpioRelaySettings():
            return GpioRelay(settings)
        case Pcf8574RelaySettings():
            if expanders is not None:
                shared = expanders.expander(settings.bus, settings.address)
                return Pcf8574Relay(shared, settings.bit, settings.active_low)
            own = Expanders()
            expander = own.expander(settings.bus, settings.address)
            return Pcf8574Relay(expander, settings.bit, settings.active_low, release=own.close)
