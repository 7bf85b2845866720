"""The registers of one meter's chip, over a bus that may be disturbed.

What the settings of all meters have in common that measure the voltage over a shunt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import ClassVar, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from wattline.core.settings import Settings
from wattline.device.i2c.bus import BusError, I2CBus, Register
from wattline.device.i2c.linux import check_bus_spec
from wattline.device.meters.reading import MeterError

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


class ShuntSettings(Settings):
    """A chip on an I2C bus, and its shunt."""

    CHIP: ClassVar[str]
    RANGE_UV: ClassVar[int]
    """The highest voltage over the shunt that the chip measures, microvolts."""
    LEAST_RANGE_UV: ClassVar[int]
    """The smallest that is worth it: below, the offset of the chip would be too much of it."""
    OFFSET_UV: ClassVar[int]
    """The highest offset of the shunt voltage by the data sheet, microvolts: so much may show without any current."""
    MOST_MV: ClassVar[int]
    """The highest supply voltage that the chip may have by the data sheet, mV."""

    driver: str
    bus: int | str = Field(description="Number N of /dev/i2c-N, or 'sim:PROFILE[/INSTANCE]' for a simulated bus.")
    address: int = Field(ge=0x40, le=0x4F, description="I2C address, 0x40 to 0x4F by the pins A0 and A1.")
    shunt_ohms: float = Field(gt=0, le=10, description="Resistance of the shunt, ohms.")
    max_current_a: float = Field(gt=0, le=10_000, description="The highest current to be measured, A.")

    @field_validator("bus")
    @classmethod
    def _is_a_bus(cls, value: int | str) -> int | str:
        return check_bus_spec(value)

    def check_voltage(self, min_voltage_mv: int) -> None:
        """Raises ValueError when the chip can never see so much: nothing could be delivered."""
        if min_voltage_mv > self.MOST_MV:
            raise ValueError(f"must not exceed {self.MOST_MV} mV, the most that an {self.CHIP} may see")

    @model_validator(mode="after")
    def _fits_the_adc(self) -> Self:
        microvolts = self.shunt_nohm * self.max_current_ua / 10**9
        if self.shunt_nohm < 1 or not self.LEAST_RANGE_UV <= microvolts <= self.RANGE_UV:
            raise ValueError(
                f"max_current_a x shunt_ohms is {microvolts / 1000:g} mV; an {self.CHIP} measures up to"
                f" {self.RANGE_UV / 1000} mV and needs at least {self.LEAST_RANGE_UV / 1000:g} mV to be exact"
            )
        return self

    @property
    def shunt_nohm(self) -> int:
        """Resistance of the shunt in nano-ohms."""
        return round(Decimal(str(self.shunt_ohms)) * 10**9)

    @property
    def max_current_ua(self) -> int:
        return round(Decimal(str(self.max_current_a)) * 10**6)

    @property
    def offset_uv(self) -> int:
        """OFFSET_UV in the range that is used."""
        return self.OFFSET_UV

    @property
    def zero_ma(self) -> int:
        """Current that is told from none with certainty: the offset, and not less than 1/1000 of ``max_current_a``."""
        return max(self.offset_uv * 10**6 // self.shunt_nohm, self.max_current_ua // 10**6, 1)

    @property
    def chip_name(self) -> str:
        """The chip in errors."""
        return f"{self.CHIP} at {self.address:#04x} on bus {self.bus}"
