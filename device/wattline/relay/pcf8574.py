"""Relays on a PCF8574 I/O expander (NXP data sheet): eight pins behind one byte, latched until the next write."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

from pydantic import Field, field_validator

from wattline.bus import BusError, I2CBus, check_bus_spec
from wattline.relay.relay import RelayError
from wattline.settings import Settings

T = TypeVar("T")

TRIES = 3
TRY_AGAIN_S = 0.002
ADDRESSES = (*range(0x20, 0x28), *range(0x38, 0x40))


class Pcf8574RelaySettings(Settings):
    """A relay on one pin of a PCF8574 or PCF8574A."""

    driver: Literal["pcf8574"]
    bus: int | str = Field(description="Number N of /dev/i2c-N, or 'sim:PROFILE[/INSTANCE]' for a simulated bus.")
    address: int = Field(description="I2C address, 0x20 to 0x27 (PCF8574) or 0x38 to 0x3F (PCF8574A).")
    bit: int = Field(ge=0, le=7, description="Pin P0 to P7.")
    active_low: bool = Field(
        default=True, description="The relay closes when the pin is low (the pins are high at power-on)."
    )

    @field_validator("bus")
    @classmethod
    def _is_a_bus(cls, value: int | str) -> int | str:
        return check_bus_spec(value)

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: int) -> int:
        if value not in ADDRESSES:
            raise ValueError("a PCF8574 is at 0x20 to 0x27, a PCF8574A at 0x38 to 0x3F")
        return value


class Pcf8574:
    """One expander, shared by all relays on it.

    The chip tells the levels of its pins, not its latch. Were a byte built from the pins alone, a pin that is stuck low
    would be written into the latch and its relay closed for good by a write for its neighbour. So the pins of relays
    are written from what they were told last, and only the pins of strangers are taken as they are read.
    """

    def __init__(self, bus: I2CBus, address: int, name: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.name = name
        self._bus = bus
        self._address = address
        self._sleep = sleep
        self._levels: dict[int, int] = {}

    def claim(self, bit: int, level: int) -> None:
        """A relay is on pin ``bit``, open at ``level``. Nothing is written yet. Raises ValueError when it is taken."""
        if bit in self._levels:
            raise ValueError(f"{self.name}: two relays on pin P{bit}")
        self._levels[bit] = level

    def write(self, bit: int, level: int) -> None:
        """Put pin ``bit`` at ``level``. Raises RelayError."""
        value = self._attempt(lambda: self._bus.read_byte(self._address))
        self._levels[bit] = level
        for claimed, wanted in self._levels.items():
            value = value & ~(1 << claimed) | wanted << claimed
        self._attempt(lambda: self._bus.write_byte(self._address, value))

    def read(self, bit: int) -> int:
        """The level that pin ``bit`` really has. Raises RelayError."""
        return self._attempt(lambda: self._bus.read_byte(self._address)) >> bit & 1

    def close(self) -> None:
        self._bus.close()

    def _attempt(self, transfer: Callable[[], T]) -> T:
        for _ in range(TRIES - 1):
            try:
                return transfer()
            except BusError:
                self._sleep(TRY_AGAIN_S)
        try:
            return transfer()
        except BusError as error:
            raise RelayError("relay_bus_error", f"{self.name}: {error}") from error


class Pcf8574Relay:
    """One pin of an expander as :class:`wattline.relay.relay.Relay`."""

    def __init__(
        self, expander: Pcf8574, bit: int, active_low: bool, release: Callable[[], None] = lambda: None
    ) -> None:
        """Nothing is written. ``release`` is called at the end. Raises ValueError when the pin has a relay already."""
        self._release = release
        self._expander = expander
        self._bit = bit
        self._level_closed = 0 if active_low else 1
        expander.claim(bit, 1 - self._level_closed)

    def set_closed(self, closed: bool) -> None:
        level = self._level_closed if closed else 1 - self._level_closed
        self._expander.write(self._bit, level)
        if self._expander.read(self._bit) != level:
            wanted, found = ("closed", "open") if closed else ("open", "closed")
            raise RelayError("relay_stuck", f"{self._expander.name} pin P{self._bit}: put {wanted}, read back {found}")

    def is_closed(self) -> bool:
        return self._expander.read(self._bit) == self._level_closed

    def close(self) -> None:
        self._release()
