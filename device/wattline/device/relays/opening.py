"""From the ``relay`` of a configuration file to a relay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, TypeAlias

from pydantic import Discriminator

from wattline.device.i2c.bus import BusError, I2CBus
from wattline.device.i2c.linux import bus_name, open_bus
from wattline.device.relays.expander import Expander, ExpanderRelay, ExpanderSettings
from wattline.device.relays.gpio import GpioRelay, GpioRelaySettings, found_closed
from wattline.device.relays.pca9554 import Pca9554, Pca9554RelaySettings
from wattline.device.relays.pcf8574 import Pcf8574, Pcf8574RelaySettings
from wattline.device.relays.relay import Relay, RelayError

RelaySettings: TypeAlias = Annotated[
    GpioRelaySettings | Pcf8574RelaySettings | Pca9554RelaySettings, Discriminator("driver")
]
"""The settings of any relay, told apart by ``driver``."""


class Expanders:
    """The expanders of a process: relays on the same chip must share one, for they share its latch."""

    def __init__(self, open_bus: Callable[[int | str], I2CBus] = open_bus) -> None:
        self._open_bus = open_bus
        self._opened: dict[tuple[int | str, int, str], Expander] = {}

    def expander(self, settings: Pcf8574RelaySettings | Pca9554RelaySettings) -> Expander:
        """The chip that ``settings`` name. Raises RelayError ``relay_bus_error``."""
        key = (settings.bus, settings.address, settings.driver)
        if key not in self._opened:
            chip = Pcf8574 if isinstance(settings, Pcf8574RelaySettings) else Pca9554
            try:
                bus = self._open_bus(settings.bus)
            except BusError as error:
                raise RelayError("relay_bus_error", f"{settings.chip_name}: {error}") from error
            self._opened[key] = chip(bus, settings.address, settings.chip_name)
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
        case Pcf8574RelaySettings() | Pca9554RelaySettings():
            if expanders is not None:
                return ExpanderRelay(expanders.expander(settings), settings.bit, settings.active_low)
            own = Expanders()
            return ExpanderRelay(own.expander(settings), settings.bit, settings.active_low, release=own.close)


def look_at(settings: RelaySettings) -> bool:
    """Whether the pin of a relay is at the level of a closed one, just as it was left. Nothing is switched.

    Raises RelayError.
    """
    if isinstance(settings, GpioRelaySettings):
        return found_closed(settings)
    relay = open_relay(settings)
    try:
        return relay.is_closed()
    finally:
        relay.close()


def check_relays(relays: Iterable[tuple[str, RelaySettings]]) -> None:
    """Of outlets, by their outlet_id. Raises ValueError when two of them are one relay, or two kinds of chip are named
    at one address."""
    found: dict[str, str] = {}
    chips: dict[tuple[int | str, int], tuple[str, str]] = {}
    for outlet_id, relay in relays:
        same_bus = {"bus": bus_name(relay.bus)} if isinstance(relay, ExpanderSettings) else {}
        other = found.setdefault(relay.model_copy(update=same_bus).model_dump_json(exclude={"active_low"}), outlet_id)
        if other != outlet_id:
            raise ValueError(f"outlets {other} and {outlet_id} share one relay ({relay.place}); each needs its own")
        if isinstance(relay, ExpanderSettings):
            other, driver = chips.setdefault((bus_name(relay.bus), relay.address), (outlet_id, relay.driver))
            if driver != relay.driver:
                raise ValueError(f"outlet {outlet_id}: {relay.chip_name}, where outlet {other} has a {driver.upper()}")
