"""Relays on a PCF8574 I/O expander (NXP data sheet): eight pins behind one byte, latched until the next write."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from wattline.device.relays.expander import ADDRESSES, ExpanderSettings, LatchedExpander


class Pcf8574RelaySettings(ExpanderSettings):
    """A relay on one pin of a PCF8574 or PCF8574A."""

    driver: Literal["pcf8574"]
    address: int = Field(description="I2C address, 0x20 to 0x27 (PCF8574) or 0x38 to 0x3F (PCF8574A).")
    bit: int = Field(ge=0, le=7, description="Pin P0 to P7.")

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: int) -> int:
        if value not in ADDRESSES:
            raise ValueError("a PCF8574 is at 0x20 to 0x27, a PCF8574A at 0x38 to 0x3F")
        return value


class Pcf8574(LatchedExpander):
    """One expander as :class:`wattline.device.relays.expander.Expander`.

    The chip tells the levels of its pins, not its latch: so the pins of relays are written from what they were told
    last, and only the pins of strangers are taken as they are read.
    """

    def write(self, bit: int, level: int) -> None:
        pins = self._settled(lambda: self._bus.read_byte(self._address))
        self._claims.set(bit, level)
        value = self._claims.over(pins)
        self._attempt(lambda: self._bus.write_byte(self._address, value))

    def read(self, bit: int) -> int:
        return self._settled(lambda: self._bus.read_byte(self._address)) >> bit & 1
