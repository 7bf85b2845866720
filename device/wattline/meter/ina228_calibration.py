"""From the settings of an INA228 to its calibration, and from its raw integers to units, exactly.

With the integer SHUNT_CAL that is really in the chip (data sheet 8.1.2, equation 2, f = 4 with ADCRANGE = 1, else 1):
CURRENT_LSB = SHUNT_CAL / (13107.2e6 x R_SHUNT x f) amperes. All scaling below is that fraction in whole numbers, so
the rounding of SHUNT_CAL costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from wattline.bus import check_bus_spec
from wattline.meter import ina228_registers as ina228
from wattline.settings import Settings

WIDE_RANGE_UV = 163_840
NARROW_RANGE_UV = 40_960
LEAST_RANGE_UV = 1000
"""Below, the offset of the chip (1 uV) would be a tenth of a percent of full scale."""
NARROW_FACTOR = 4


class Ina228Settings(Settings):
    """A TI INA228 and its shunt."""

    driver: Literal["ina228"]
    bus: int | str = Field(description="Number N of /dev/i2c-N, or 'sim:PROFILE[/INSTANCE]' for a simulated bus.")
    address: int = Field(ge=0x40, le=0x4F, description="I2C address, 0x40 to 0x4F by the pins A0 and A1.")
    shunt_ohms: float = Field(gt=0, le=10, description="Resistance of the shunt, ohms.")
    max_current_a: float = Field(gt=0, le=10_000, description="The highest current to be measured, A.")

    @field_validator("bus")
    @classmethod
    def _is_a_bus(cls, value: int | str) -> int | str:
        return check_bus_spec(value)

    @model_validator(mode="after")
    def _fits_the_adc(self) -> Self:
        microvolts = self.shunt_nohm * self.max_current_ua / 10**9
        if self.shunt_nohm < 1 or not LEAST_RANGE_UV <= microvolts <= WIDE_RANGE_UV:
            raise ValueError(
                f"max_current_a x shunt_ohms is {microvolts / 1000:g} mV; an INA228 measures up to"
                f" {WIDE_RANGE_UV / 1000} mV and needs at least {LEAST_RANGE_UV / 1000:g} mV to be exact"
            )
        return self

    @property
    def shunt_nohm(self) -> int:
        """Resistance of the shunt in nano-ohms."""
        return round(Decimal(str(self.shunt_ohms)) * 10**9)

    @property
    def max_current_ua(self) -> int:
        return round(Decimal(str(self.max_current_a)) * 10**6)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is written into the chip, and what its raw values mean then."""

    shunt_nohm: int
    shunt_cal: int
    narrow: bool
    """ADCRANGE = 1: +-40.96 mV instead of +-163.84 mV, four times finer."""

    def __post_init__(self) -> None:
        if self.shunt_nohm <= 0 or not 0 < self.shunt_cal < 1 << 15:
            raise ValueError(f"no calibration: SHUNT_CAL {self.shunt_cal}, shunt {self.shunt_nohm} nano-ohms")

    @staticmethod
    def of(settings: Ina228Settings) -> Calibration:
        """The finest calibration that covers ``max_current_a``.

        SHUNT_CAL = 13107.2e6 x max_current / 2**19 x R_SHUNT x f = 25000 x max_current x R_SHUNT x f, rounded up.
        """
        product = settings.max_current_ua * settings.shunt_nohm
        narrow = product <= NARROW_RANGE_UV * 10**9
        exact = 25_000 * product * (NARROW_FACTOR if narrow else 1)
        return Calibration(settings.shunt_nohm, -(-exact // 10**15), narrow)

    @property
    def config(self) -> int:
        """The CONFIG register."""
        return ina228.ADCRANGE if self.narrow else 0

    @property
    def _ohms(self) -> int:
        return self.shunt_nohm * (NARROW_FACTOR if self.narrow else 1)

    def current_ma(self, raw: int) -> int:
        return _nearest(raw * self.shunt_cal * 10**7, 131_072 * self._ohms)

    def power_mw(self, raw: int) -> int:
        """3.2 x CURRENT_LSB watts per LSB."""
        return _nearest(raw * self.shunt_cal * 10**7, 40_960 * self._ohms)

    def energy_uwh(self, raw: int) -> int:
        """51.2 x CURRENT_LSB joules per LSB, rounded down: what is billed has certainly flowed."""
        return raw * self.shunt_cal * 10**9 // (921_600 * self._ohms)


def voltage_mv(raw: int) -> int:
    """195.3125 uV per LSB."""
    return _nearest(raw * 25, 128)


def _nearest(numerator: int, denominator: int) -> int:
    """The nearest integer to a fraction, halves away from zero."""
    magnitude = (2 * abs(numerator) + denominator) // (2 * denominator)
    return magnitude if numerator >= 0 else -magnitude
