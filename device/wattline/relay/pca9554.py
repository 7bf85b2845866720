"""Relays on a PCA9554 I/O expander (NXP and TI data sheets): eight pins that are inputs until they are told otherwise.

At power-on every pin is an input that is pulled up, so a relay board that closes on low is open then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from pydantic import Field, field_validator

from wattline.bus import I2CBus, Register
from wattline.relay.expander import ADDRESSES, Claims, ExpanderSettings, attempt

INPUT = Register(0x00, 8)
"""The levels of the pins, those set in POLARITY turned round."""
OUTPUT = Register(0x01, 8)
POLARITY = Register(0x02, 8)
CONFIGURATION = Register(0x03, 8)
"""1: the pin is an input."""


class Pca9554RelaySettings(ExpanderSettings):
    """A relay on one pin of a PCA9554 or PCA9554A (also TCA9554, PCA9534)."""

    driver: Literal["pca9554"]
    address: int = Field(description="I2C address, 0x20 to 0x27 (PCA9554) or 0x38 to 0x3F (PCA9554A).")
    bit: int = Field(ge=0, le=7, description="Pin IO0 to IO7.")

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: int) -> int:
        if value not in ADDRESSES:
            raise ValueError("a PCA9554 is at 0x20 to 0x27, a PCA9554A at 0x38 to 0x3F")
        return value


class Pca9554:
    """One expander as :class:`wattline.relay.expander.Expander`; the pins of strangers are left as they are."""

    def __init__(self, bus: I2CBus, address: int, name: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.name = name
        self._bus = bus
        self._address = address
        self._sleep = sleep
        self._claims = Claims(name)

    def claim(self, bit: int, level: int) -> None:
        self._claims.add(bit, level)

    def write(self, bit: int, level: int) -> None:
        """The levels first, then the direction: a pin that becomes an output has its right level at once."""
        latch = self._read(OUTPUT)
        self._claims.set(bit, level)
        self._write(OUTPUT, self._claims.over(latch))
        directions = self._read(CONFIGURATION)
        if directions & self._claims.mask:
            self._write(CONFIGURATION, directions & ~self._claims.mask)

    def read(self, bit: int) -> int:
        return (self._read(INPUT) ^ self._read(POLARITY)) >> bit & 1

    def close(self) -> None:
        self._bus.close()

    def _read(self, register: Register) -> int:
        return attempt(self.name, lambda: register.read(self._bus, self._address), self._sleep)

    def _write(self, register: Register, value: int) -> None:
        attempt(self.name, lambda: register.write(self._bus, self._address, value), self._sleep)
