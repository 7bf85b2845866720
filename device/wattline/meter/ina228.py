"""The driver of the TI INA228, an energy meter for DC up to 85 V (data sheet SLYS021)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from wattline.bus import I2CBus
from wattline.meter import ina228_registers as ina228
from wattline.meter.ina228_calibration import Calibration, Ina228Settings, voltage_mv
from wattline.meter.link import ChipLink
from wattline.meter.reading import MeterError, Reading, refuse_full

log = logging.getLogger(__name__)

ADC_CONFIG = (
    ina228.MODE_CONTINUOUS_BUS_AND_SHUNT
    | ina228.VBUSCT_1052_US
    | ina228.VSHCT_1052_US
    | ina228.VTCT_1052_US
    | ina228.AVG_4
)
CONVERSION_MS = 9
"""(1052 + 1052) us x 4 averages, and the tolerance of the chip's clock."""
OVERDUE_MS = 3 * CONVERSION_MS
OVERDUE_LOOKS = 4
QUARTER = 1 << 38
MS_NS = 1_000_000
UJ_PER_UWH = 3600
LEAST_SEEN_MW = 10
"""Beside an eighth of the power that was seen flowing back: what the average of an interval may differ from it."""


class Ina228:
    """An INA228 as :class:`wattline.meter.Meter`.

    A chip that carries our configuration already goes on counting (a restarted process resumes from its cumulative
    energy); any other, one with power-on values above all, is configured and counts from 0. The 40-bit accumulator is
    extended in software while this object lives.

    The accumulator adds up the magnitude of the power (data sheet 7.3.2: POWER and ENERGY are unsigned, only CURRENT
    has a sign). What it took between two readings of which one shows current flowing back is therefore left out of the
    energy, and told as ``backflow_uwh``.
    """

    def __init__(
        self,
        bus: I2CBus,
        settings: Ina228Settings,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Check the chip and configure it when needed. Raises MeterError."""
        self._name = settings.chip_name
        self._link = ChipLink(bus, settings.address, self._name, sleep)
        self._calibration = Calibration.of(settings)
        self._clock_ns = clock_ns
        self._sleep = sleep
        self._wraps = 0
        self._last_energy: int | None = None
        self._last_at_ms = 0
        self._counted: int | None = None
        """The extended accumulator at the last good reading."""
        self._back_mw = 0
        """The power that flowed back at that reading; 0 when it flowed forward."""
        self._backflow_uwh = 0
        """What the accumulator, which knows no sign, took of it."""
        self._check_identity()
        if not self._is_ours():
            self._configure()
        self._converted_ns = self._clock_ns() - OVERDUE_MS * MS_NS
        """When a finished conversion was last seen; long ago, so that the first look waits for one."""
        self._conversion()

    def read(self) -> Reading:
        """The present values. Raises MeterError."""
        flags = self._conversion()
        at_ms = self._clock_ns() // MS_NS
        energy = self._link.read(ina228.ENERGY)
        if not self._may_follow(energy, at_ms):
            # A disturbed transfer looks like any other; what has happened says the same twice.
            energy = self._link.read(ina228.ENERGY)
        shunt = self._link.read_steady(ina228.VSHUNT)
        bus = self._link.read_steady(ina228.VBUS)
        current = self._link.read_steady(ina228.CURRENT)
        power = self._link.read_steady(ina228.POWER)
        flags = self._link.confirmed(ina228.DIAG_ALRT, flags, ina228.MATHOF)
        # After the values: had the chip lost its configuration before they were read, it shows here.
        self._check_configuration()
        self._check_range(flags, shunt, bus, current)
        power_mw = self._calibration.power_mw(power)
        counted = self._extended(energy, flags)
        back_mw = power_mw if current < 0 else 0
        counted_uwh = self._calibration.energy_uwh(counted)
        if self._counted is not None:
            # No more than the power that was seen flowing back: what flowed forward in between counts.
            seen_mw = max(back_mw, self._back_mw)
            most_mw = seen_mw + seen_mw // 8 + LEAST_SEEN_MW if seen_mw else 0
            most_uwh = -(-most_mw * (at_ms - self._last_at_ms) // UJ_PER_UWH)
            self._backflow_uwh += min(most_uwh, counted_uwh - self._calibration.energy_uwh(self._counted))
        self._counted, self._back_mw, self._last_at_ms = counted, back_mw, at_ms
        energy_uwh = counted_uwh - self._backflow_uwh
        return Reading(
            energy_uwh=energy_uwh,
            power_mw=-back_mw if back_mw else power_mw,
            voltage_mv=voltage_mv(bus),
            current_ma=self._calibration.current_ma(current),
            at_ms=at_ms,
            backflow_uwh=self._backflow_uwh,
        )

    def close(self) -> None:
        self._link.close()

    def _check_identity(self) -> None:
        wanted = {ina228.MANUFACTURER_ID: ina228.TEXAS_INSTRUMENTS, ina228.DEVICE_ID: ina228.INA228}
        if not self._link.has(wanted):
            manufacturer, device = (self._link.read(register) for register in wanted)
            raise MeterError(
                "meter_wrong_chip",
                f"{self._name}: found manufacturer {manufacturer:#06x} device {device:#05x},"
                f" an INA228 has {ina228.TEXAS_INSTRUMENTS:#06x} and {ina228.INA228:#05x}",
            )
        if not self._link.read(ina228.DIAG_ALRT) & ina228.MEMSTAT:
            raise MeterError("meter_wrong_chip", f"{self._name}: the chip is damaged (its trim memory, MEMSTAT = 0)")

    def _is_ours(self) -> bool:
        """Whether the chip's accumulator counts in our units and can be believed."""
        alert = self._link.read(ina228.DIAG_ALRT)
        if not self._is_configured() or alert & ina228.ALERT_CONTROL != ina228.ALATCH:
            return False
        if alert & ina228.MATHOF:
            # Only clearing the accumulators takes this flag back, and what they hold is wrong anyway.
            log.warning("%s: has overflowed; its energy counts from 0 again", self._name)
            return False
        return True

    def _configure(self) -> None:
        """Set up the chip and clear its accumulators.

        ALATCH comes last: a chip without it was left half configured and is done again. It is needed because without
        it CNVRF is not held until it is read.
        """
        self._link.write(ina228.ADC_CONFIG, ADC_CONFIG)
        self._link.write(ina228.SHUNT_CAL, self._calibration.shunt_cal)
        self._link.write(ina228.CONFIG, self._calibration.config | ina228.RSTACC)
        self._link.write(ina228.DIAG_ALRT, ina228.ALATCH)

    def _is_configured(self) -> bool:
        calibration = self._calibration
        return self._link.has(
            {ina228.CONFIG: calibration.config, ina228.ADC_CONFIG: ADC_CONFIG, ina228.SHUNT_CAL: calibration.shunt_cal}
        )

    def _check_configuration(self) -> None:
        if not self._is_configured():
            raise MeterError("meter_reset", f"{self._name}: has lost its configuration (was its supply interrupted?)")

    def _conversion(self) -> int:
        """The flags, once there has been a conversion not long ago. Raises MeterError ``meter_frozen``.

        Another process that looks at the same chip takes the flag away from us now and then, so a missing one is
        believed only after some more looks.
        """
        flags = self._link.read(ina228.DIAG_ALRT)
        for _ in range(OVERDUE_LOOKS):
            now_ns = self._clock_ns()
            if flags & ina228.CNVRF:
                self._converted_ns = now_ns
                return flags
            if now_ns - self._converted_ns < OVERDUE_MS * MS_NS:
                return flags
            self._sleep(1.5 * CONVERSION_MS / 1000)
            flags |= self._link.read(ina228.DIAG_ALRT)
        if flags & ina228.CNVRF:
            self._converted_ns = self._clock_ns()
            return flags
        self._check_configuration()
        overdue_ms = (self._clock_ns() - self._converted_ns) // MS_NS
        raise MeterError("meter_frozen", f"{self._name}: no conversion for {overdue_ms} ms")

    def _check_range(self, flags: int, shunt: int, bus: int, current: int) -> None:
        full = {
            "shunt voltage": shunt in (ina228.VSHUNT.lowest, ina228.VSHUNT.highest),
            "bus voltage": bus == ina228.VBUS.highest,
            "current": current in (ina228.CURRENT.lowest, ina228.CURRENT.highest),
            "arithmetic": bool(flags & ina228.MATHOF),
        }
        refuse_full(self._name, full)

    def _may_follow(self, energy: int, at_ms: int) -> bool:
        """Whether the accumulator can have come so far since the last reading: on, and no faster than the chip can
        measure power (a tenth of a second more, for a conversion that began before)."""
        if self._last_energy is None:
            return True
        most_uwh = self._calibration.power_mw(ina228.POWER.highest) * (at_ms - self._last_at_ms + 100) // UJ_PER_UWH
        grown = energy - self._last_energy
        return grown >= 0 and self._calibration.energy_uwh(grown) <= most_uwh

    def _extended(self, raw: int, flags: int) -> int:
        """The accumulator without its end at 40 bits. Raises MeterError ``meter_backwards``."""
        last, self._last_energy = self._last_energy, raw
        if last is not None and raw < last:
            wrapped = flags & ina228.ENERGYOF or (last >= 3 * QUARTER and raw < QUARTER)
            if not wrapped:
                self._last_energy = last
                raise MeterError("meter_backwards", f"{self._name}: its energy went back from {last} to {raw} (raw)")
            self._wraps += 1
        return (self._wraps << ina228.ENERGY.bits) + raw
