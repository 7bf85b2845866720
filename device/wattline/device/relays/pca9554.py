"""Relays on a PCA9554 I/O expander (NXP and TI data sheets): eight pins that are inputs until they are told otherwise.

At power-on every pin is an input that is pulled up, so a relay board that closes on low is open then.

A PCF8574 may stand at the same address, and to it the number of a register is a level for its pins: 2 pulls all of them
low but one. So the first contact is a peek, whose last byte puts the pins back as they were within the same
transaction, long before a contact can move. A PCF8574 echoes the numbers of the registers; then nothing more is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from pydantic import Field, field_validator

from wattline.device.i2c.bus import BusError, I2CBus, Register
from wattline.device.relays.expander import ADDRESSES, ExpanderSettings, LatchedExpander
from wattline.device.relays.relay import RelayError

INPUT = Register(0x00, 8)
"""The levels of the pins, those set in POLARITY turned round."""
OUTPUT = Register(0x01, 8)
POLARITY = Register(0x02, 8)
CONFIGURATION = Register(0x03, 8)
"""1: the pin is an input."""
ECHOED = (POLARITY, OUTPUT, CONFIGURATION)
"""In this order, for the polarity of a pin is hardly ever turned round: mostly the first answer is enough."""
ECHO_BIT = 1
"""In ``ECHOED`` high, low, high, where a PCA9554 whose polarity is at 0 says low. The bits above are always low in an
echo, unless something outside holds a pin."""


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


class Pca9554(LatchedExpander):
    """One expander as :class:`wattline.device.relays.expander.Expander`; the pins of strangers are left as they are."""

    def __init__(self, bus: I2CBus, address: int, name: str, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(bus, address, name, sleep)
        self._echoes: bool | None = None
        """Whether it is a PCF8574; None before the first contact."""

    def write(self, bit: int, level: int) -> None:
        """The levels first, then the direction: a pin that becomes an output has its right level at once."""
        if self._is_pcf8574():
            # Whatever was asked: opening our relays must not wait for a better configuration, and the claims say how.
            pins = self._settled(lambda: self._bus.read_byte(self._address))
            self._attempt(lambda: self._bus.write_byte(self._address, self._claims.over(pins)))
            raise self._wrong_chip()
        latch = self._read(OUTPUT)
        self._claims.set(bit, level)
        self._write(OUTPUT, self._claims.over(latch))
        directions = self._read(CONFIGURATION)
        if directions & self._claims.mask:
            self._write(CONFIGURATION, directions & ~self._claims.mask)

    def read(self, bit: int) -> int:
        if self._is_pcf8574():
            raise self._wrong_chip()
        return (self._read(INPUT) ^ self._read(POLARITY)) >> bit & 1

    def _is_pcf8574(self) -> bool:
        """Whether a PCF8574 answers, which is found out at the first contact. Raises RelayError."""
        if self._echoes is None:
            pins = self._settled(lambda: self._bus.read_byte(self._address))
            above = set()
            for register in ECHOED:
                answer = self._peek(register, pins)
                if (answer ^ register.address) >> ECHO_BIT & 1:
                    self._echoes = False
                    break
                above.add(answer >> (ECHO_BIT + 1))
            else:
                self._echoes = len(above) == 1
        return self._echoes

    def _peek(self, register: Register, pins: int) -> int:
        """One register, the pins of a PCF8574 being put back at once. Raises RelayError."""

        def transfer() -> int:
            try:
                return self._bus.peek(self._address, register.address, pins)
            except BusError:
                # It may have broken off with the pins of a PCF8574 low; a PCA9554 takes this for a register's number.
                self._bus.write_byte(self._address, pins)
                raise

        return self._settled(transfer)

    def _wrong_chip(self) -> RelayError:
        return RelayError(
            "relay_wrong_chip",
            f'{self.name}: what answers has no registers, as a PCF8574 has none; is driver = "pcf8574" meant?',
        )

    def _read(self, register: Register) -> int:
        return self._settled(lambda: register.read(self._bus, self._address))

    def _write(self, register: Register, value: int) -> None:
        self._attempt(lambda: register.write(self._bus, self._address, value))
