"""The driver of the TI INA226, a power monitor for DC up to 36 V (data sheet SBOS547). It does not count energy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, Literal

from wattline.core.clock import since_boot_ns
from wattline.device.i2c.bus import I2CBus
from wattline.device.meters import ina226_registers as ina226
from wattline.device.meters.chip import ChipLink, ShuntSettings
from wattline.device.meters.reading import MeterError, refuse_full
from wattline.device.meters.sampling import Sample, SampledMeter

CONFIG = (
    ina226.ALWAYS_SET
    | ina226.AVG_4
    | ina226.VBUSCT_2116_US
    | ina226.VSHCT_2116_US
    | ina226.MODE_CONTINUOUS_SHUNT_AND_BUS
)
CONVERSION_MS = 19
"""(2116 + 2116) us x 4 averages, 10 % longer at the most: as long as can be within the shortest meter interval."""
VSHUNT_NV = 2500
VBUS_UV = 1250
HIGHEST_BUS_UV = 36_000_000
"""Data sheet 6.3: beyond, the chip shows values up to 40.96 V that it does not vouch for."""


class Ina226Settings(ShuntSettings):
    """A TI INA226 (up to 36 V) and its shunt."""

    CHIP: ClassVar[str] = "INA226"
    RANGE_UV: ClassVar[int] = 81_920
    # Its offset is at most 10 uV: a tenth of a percent of this.
    LEAST_RANGE_UV: ClassVar[int] = 10_000
    OFFSET_UV: ClassVar[int] = 10
    MOST_MV: ClassVar[int] = 36_000

    driver: Literal["ina226"]

    @property
    def calibration(self) -> int:
        """CALIBRATION for a CURRENT that is full at ``max_current_a``: 0.00512 x 2**15 / (max_current x R_SHUNT)
        (data sheet 7.5.1), rounded down. The driver itself needs it only to know its chip again, and for OVF."""
        return 512 * (1 << 15) * 10**10 // (self.max_current_ua * self.shunt_nohm)


class Ina226Chip:
    """An INA226 as :class:`wattline.device.meters.sampling.SamplingChip`. A chip that has our configuration is left
    alone."""

    def __init__(self, link: ChipLink, settings: Ina226Settings) -> None:
        """Check the chip and configure it when needed. Raises MeterError."""
        self.name = settings.chip_name
        self.conversion_ms = CONVERSION_MS
        self._link = link
        self._calibration = settings.calibration
        self._check_identity()
        if not self._is_configured():
            link.write(ina226.CALIBRATION, self._calibration)
            link.write(ina226.CONFIG, CONFIG)

    def look(self) -> Sample | None:
        flags = self._link.read(ina226.MASK_ENABLE)
        if not flags & ina226.CVRF:
            return None
        shunt = self._link.read_steady(ina226.VSHUNT)
        bus = self._link.read_steady(ina226.VBUS)
        flags = self._link.confirmed(ina226.MASK_ENABLE, flags, ina226.OVF)
        # After the values: had the chip lost its configuration before they were read, it shows here.
        self.check_configuration()
        self._check_range(flags, shunt, bus)
        return Sample(shunt * VSHUNT_NV, bus * VBUS_UV)

    def check_configuration(self) -> None:
        if not self._is_configured():
            raise MeterError("meter_reset", f"{self.name}: has lost its configuration (was its supply interrupted?)")

    def close(self) -> None:
        self._link.close()

    def _check_identity(self) -> None:
        wanted = {ina226.MANUFACTURER_ID: ina226.TEXAS_INSTRUMENTS, ina226.DIE_ID: ina226.INA226}
        if not self._link.has(wanted):
            manufacturer, die = (self._link.read(register) for register in wanted)
            raise MeterError(
                "meter_wrong_chip",
                f"{self.name}: found manufacturer {manufacturer:#06x} device {die:#05x},"
                f" an INA226 has {ina226.TEXAS_INSTRUMENTS:#06x} and {ina226.INA226:#05x}",
            )

    def _is_configured(self) -> bool:
        return self._link.has({ina226.CONFIG: CONFIG, ina226.CALIBRATION: self._calibration})

    def _check_range(self, flags: int, shunt: int, bus: int) -> None:
        full = {
            "shunt voltage": shunt in (ina226.VSHUNT.lowest, ina226.VSHUNT.highest),
            "bus voltage": bus * VBUS_UV > HIGHEST_BUS_UV,
            "current": bool(flags & ina226.OVF),
        }
        refuse_full(self.name, full)


def open_ina226(
    bus: I2CBus,
    settings: Ina226Settings,
    clock_ns: Callable[[], int] = since_boot_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> SampledMeter:
    """The meter behind an INA226, counting from 0. Raises MeterError."""
    chip = Ina226Chip(ChipLink(bus, settings.address, settings.chip_name, sleep), settings)
    return SampledMeter(chip, settings.shunt_nohm, clock_ns, sleep)
