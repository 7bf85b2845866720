"""The driver of the TI INA219, a power monitor for DC up to 26 V (data sheet SBOS448). It does not count energy.

The chip has no identity register. What can be checked is checked: that a reset brings the power-on value of the
configuration, and that the lowest bit of the calibration stays 0. A chip that carries our configuration and our
calibration has passed that before and is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, Literal

from wattline.core.clock import since_boot_ns
from wattline.device.i2c.bus import I2CBus
from wattline.device.meters import ina219_registers as ina219
from wattline.device.meters.chip import ChipLink, ShuntSettings
from wattline.device.meters.reading import MeterError, refuse_full
from wattline.device.meters.sampling import Sample, SampledMeter

CONVERSION_MS = 19
"""8.51 ms each for 16 samples of both voltages, 10 % longer at the most."""
VSHUNT_NV = 10_000
VBUS_UV = 4000
HIGHEST_BUS_UV = 26_000_000
"""Data sheet 7.3: the register goes on to 32 V, the chip does not."""
AMPLIFIER_UV = (40_000, 80_000, 160_000, 320_000)
"""Ranges of the shunt voltage by PG."""
AMPLIFIER_OFFSET_UV = (100, 125, 150, 200)
"""Data sheet 7.5, INA219A: the highest offset by PG."""
HIGHEST_CALIBRATION = 0xFFFE


class Ina219Settings(ShuntSettings):
    """A TI INA219 (up to 26 V) and its shunt."""

    CHIP: ClassVar[str] = "INA219"
    RANGE_UV: ClassVar[int] = AMPLIFIER_UV[-1]
    # Its offset is at most 100 uV: a percent of this.
    LEAST_RANGE_UV: ClassVar[int] = 10_000
    OFFSET_UV: ClassVar[int] = 100
    MOST_MV: ClassVar[int] = 26_000

    driver: Literal["ina219"]

    @property
    def amplifier(self) -> int:
        """PG: the finest range that covers ``max_current_a``."""
        microvolts = self.max_current_ua * self.shunt_nohm / 10**9
        return next(pg for pg, highest in enumerate(AMPLIFIER_UV) if microvolts <= highest)

    @property
    def offset_uv(self) -> int:
        return AMPLIFIER_OFFSET_UV[self.amplifier]

    @property
    def config(self) -> int:
        """CONFIG, never its power-on value."""
        return (
            ina219.BRNG_32_V
            | self.amplifier << ina219.PG_SHIFT
            | ina219.BADC_16_SAMPLES
            | ina219.SADC_16_SAMPLES
            | ina219.MODE_CONTINUOUS_SHUNT_AND_BUS
        )

    @property
    def calibration(self) -> int:
        """CALIBRATION for a CURRENT that is full at ``max_current_a``: 0.04096 x 2**15 / (max_current x R_SHUNT)
        (data sheet 8.5.1), rounded down to an even number. The driver needs it only to know its chip again, and for
        OVF. Below 20.5 mV the register is too short for that: at 10 mV OVF would come at twice the current only, so
        the driver looks at the shunt voltage, too."""
        exact = 4096 * (1 << 15) * 10**10 // (self.max_current_ua * self.shunt_nohm)
        return min(HIGHEST_CALIBRATION, exact & ~1)


class Ina219Chip:
    """An INA219 as :class:`wattline.device.meters.sampling.SamplingChip`."""

    def __init__(self, link: ChipLink, settings: Ina219Settings) -> None:
        """Check the chip and configure it when needed. Raises MeterError."""
        self.name = settings.chip_name
        self.conversion_ms = CONVERSION_MS
        self._link = link
        self._config = settings.config
        self._calibration = settings.calibration
        self._full_nv = AMPLIFIER_UV[settings.amplifier] * 1000
        self._most_nv = settings.max_current_ua * settings.shunt_nohm // 10**6
        if not self._is_configured():
            self._check_identity()
            link.write(ina219.CALIBRATION, self._calibration)
            link.write(ina219.CONFIG, self._config)

    def look(self) -> Sample | None:
        bus = self._link.read_steady(ina219.VBUS)
        if not bus & ina219.CNVR:
            return None
        bus = self._link.confirmed(ina219.VBUS, bus, ina219.OVF)
        shunt_nv = self._link.read_steady(ina219.VSHUNT) * VSHUNT_NV
        # Only this clears CNVR.
        self._link.read(ina219.POWER)
        # After the values: had the chip lost its configuration before they were read, it shows here.
        self.check_configuration()
        bus_uv = (bus >> ina219.VBUS_SHIFT) * VBUS_UV
        self._check_range(bus & ina219.OVF, shunt_nv, bus_uv)
        return Sample(shunt_nv, bus_uv)

    def check_configuration(self) -> None:
        if not self._is_configured():
            raise MeterError("meter_reset", f"{self.name}: has lost its configuration (was its supply interrupted?)")

    def close(self) -> None:
        self._link.close()

    def _check_identity(self) -> None:
        found = self._link.read(ina219.CONFIG)
        if found & ina219.NEVER_SET:
            # Whatever it is: nothing has been written to it yet.
            raise self._wrong_chip(f"its configuration is {found:#06x}, where an INA219 has the bits 14 and 15 clear")
        self._link.write(ina219.CONFIG, ina219.RST)
        found = self._link.read(ina219.CONFIG)
        if found != ina219.POWER_ON_CONFIG:
            raise self._wrong_chip(
                f"after a reset its configuration is {found:#06x}, that of an INA219 {ina219.POWER_ON_CONFIG:#06x}"
            )
        self._link.write(ina219.CALIBRATION, 0xFFFF)
        found = self._link.read(ina219.CALIBRATION)
        if found != HIGHEST_CALIBRATION:
            raise self._wrong_chip(f"of a calibration 0xffff it keeps {found:#06x}, an INA219 0xfffe")

    def _wrong_chip(self, why: str) -> MeterError:
        return MeterError("meter_wrong_chip", f"{self.name}: {why}")

    def _is_configured(self) -> bool:
        return self._link.has({ina219.CONFIG: self._config, ina219.CALIBRATION: self._calibration})

    def _check_range(self, overflow: int, shunt_nv: int, bus_uv: int) -> None:
        full = {
            "shunt voltage": abs(shunt_nv) >= self._full_nv,
            "bus voltage": bus_uv > HIGHEST_BUS_UV,
            "current": bool(overflow) or abs(shunt_nv) > self._most_nv,
        }
        refuse_full(self.name, full)


def open_ina219(
    bus: I2CBus,
    settings: Ina219Settings,
    clock_ns: Callable[[], int] = since_boot_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> SampledMeter:
    """The meter behind an INA219, counting from 0. Raises MeterError."""
    chip = Ina219Chip(ChipLink(bus, settings.address, settings.chip_name, sleep), settings)
    return SampledMeter(chip, settings.shunt_nohm, clock_ns, sleep)
