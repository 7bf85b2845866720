"""From the settings of an INA228 to its calibration, and from its raw integers to units, exactly.

With the integer SHUNT_CAL that is really in the chip (data sheet 8.1.2, equation 2, f = 4 with ADCRANGE = 1, else 1):
CURRENT_LSB = SHUNT_CAL / (13107.2e6 x R_SHUNT x f) amperes. All scaling below is that fraction in whole numbers, so
the rounding of SHUNT_CAL costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from wattline.device.meters import ina228_registers as ina228
from wattline.device.meters.chip import ShuntSettings

WIDE_RANGE_UV = 163_840
NARROW_RANGE_UV = 40_960
NARROW_FACTOR = 4


class Ina228Settings(ShuntSettings):
    """A TI INA228 (up to 85 V) and its shunt."""

    CHIP: ClassVar[str] = "INA228"
    RANGE_UV: ClassVar[int] = WIDE_RANGE_UV
    # Its offset is at most 1 uV: a tenth of a percent of this.
    LEAST_RANGE_UV: ClassVar[int] = 1000
    OFFSET_UV: ClassVar[int] = 1
    MOST_MV: ClassVar[int] = 85_000

    driver: Literal["ina228"]


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
