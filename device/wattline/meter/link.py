"""The registers of one meter's chip, over a bus that may be disturbed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from wattline.bus import BusError, I2CBus, Register
from wattline.meter.reading import MeterError

T = TypeVar("T")

TRIES = 3
TRY_AGAIN_S = 0.002
LEAP_DIVISOR = 8
"""A change by more than this part of the larger value is a leap."""


class ChipLink:
    """One chip at its address. Every transfer is tried a few times: a disturbed bus is back in milliseconds, a broken
    one is not."""

    def __init__(self, bus: I2CBus, address: int, name: str, sleep: Callable[[float], None] = time.sleep) -> None:
        """``name`` is what errors call the chip."""
        self.name = name
        self._bus = bus
        self._address = address
        self._sleep = sleep
        self._before: dict[Register, int] = {}

    def read(self, register: Register) -> int:
        """The raw value. Raises MeterError ``meter_bus_error``."""
        return self._attempt(lambda: register.read(self._bus, self._address))

    def read_steady(self, register: Register) -> int:
        """As ``read``; but what has leapt since the last time is read once more, and the second word counts: the bus
        has no check sum, so a disturbed transfer looks like any other. A load that was switched says the same twice."""
        value, before = self.read(register), self._before.get(register)
        if before is not None and abs(value - before) * LEAP_DIVISOR > max(abs(value), abs(before)):
            value = self.read(register)
        self._before[register] = value
        return value

    def confirmed(self, register: Register, value: int, flag: int) -> int:
        """``value`` without ``flag``, unless ``register``, read once more, still has it."""
        return value & ~flag | self.read(register) & flag if value & flag else value

    def has(self, wanted: Mapping[Register, int]) -> bool:
        """Whether these registers hold these values. What does not is read once more before that is believed. Raises
        MeterError ``meter_bus_error``."""
        return all(self.read(register) == value or self.read(register) == value for register, value in wanted.items())

    def write(self, register: Register, value: int) -> None:
        """Set a 16-bit register. Raises MeterError ``meter_bus_error``."""
        self._attempt(lambda: register.write(self._bus, self._address, value))

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
            raise MeterError("meter_bus_error", f"{self.name}: {error}") from error
