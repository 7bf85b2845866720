"""The driver of the TI INA228, an energy meter for DC up to 85 V (data sheet SLYS021)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from wattline.core.clock import since_boot_ns
from wattline.device.i2c.bus import I2CBus
from wattline.device.meters import ina228_registers as ina228
from wattline.device.meters.chip import ChipLink
from wattline.device.meters.ina228_calibration import Calibration, Ina228Settings, voltage_mv
from wattline.device.meters.reading import MeterError, Reading, refuse_full

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
FINE = 1 << 20
"""Parts of an LSB of ENERGY in which a half of VBUS x CHARGE is whole, with charge doubled: VBUS is 1/5120 V and ENERGY
51.2 CURRENT_LSB joules per LSB, so VBUS x CHARGE / 2**18 has the unit of ENERGY."""
CHARGES = 2 << ina228.CHARGE.bits
"""How many there are, doubled."""
APART_MS = 5
"""From a charge to the energy beside it: a cycle of the ADC (2.1 ms) and the transfers."""
APART_CHARGE = 2 * ina228.CURRENT.highest * APART_MS // 1000
MOST_DRIFT = 4 * APART_CHARGE
"""Between two looks at CHARGE around one at ENERGY; more is a disturbed transfer, or a process that was held up."""


class Ina228:
    """An INA228 as :class:`wattline.device.meters.Meter`.

    A chip that carries our configuration already goes on counting (a restarted process resumes from its cumulative
    energy); any other, one with power-on values above all, is configured and counts from 0. The 40-bit accumulator is
    extended in software while this object lives.

    ENERGY adds up the magnitude of the power of every cycle of the ADC (data sheet 7.3.2 and 7.6.1: POWER and ENERGY
    are unsigned, CURRENT and CHARGE have a sign). Between two readings of which one shows current flowing back, what
    flowed back is taken to be ``(ENERGY - VBUS x CHARGE) / 2``, at least 0 and at most ENERGY; it is left out of the
    energy, and told as ``backflow_uwh``. All else counts as forward. So ``energy_uwh`` grows

    - by no more than ENERGY does;
    - by no less than what flowed forward, as the chip sees it, but for APART_MS of the power at a reading (once,
      however many there are), and for half of the part by which VBUS was higher between the readings than at both of
      them. A supply that gives way under load is highest where current flows back, and a reading shows that;
    - by no more than what flowed forward, but for as much, for half of the part by which VBUS varied, and for what came
      back and was over between two readings that show nothing of it.
    """

    def __init__(
        self,
        bus: I2CBus,
        settings: Ina228Settings,
        clock_ns: Callable[[], int] = since_boot_ns,
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
        self._counted: int | None = None
        """The extended accumulator at the last good reading."""
        self._charge: int | None = None
        """Double the charge at that reading; None when it is not known."""
        self._bus = 0
        """VBUS at that reading."""
        self._flowed_back = False
        """That reading showed current flowing back."""
        self._backflow = 0
        """What the accumulator took of it, in its own units."""
        self._rest = 0
        """What has flowed back and was not taken off yet, in parts of FINE; below 0 when too much was. The energy and
        the charge of a reading are some ms apart; what is missing in one interval is in the next."""
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
        energy, charge = self._accumulators()
        shunt = self._link.read_steady(ina228.VSHUNT)
        bus = self._link.read_steady(ina228.VBUS)
        current = self._link.read_steady(ina228.CURRENT)
        power = self._link.read_steady(ina228.POWER)
        flags = self._link.confirmed(ina228.DIAG_ALRT, flags, ina228.MATHOF)
        # After the values: had the chip lost its configuration before they were read, it shows here.
        self._check_configuration()
        self._check_range(flags, shunt, bus, current)
        power_mw = self._calibration.power_mw(power)
        counted, flows_back = self._extended(energy, flags), current < 0
        if self._counted is not None and (flows_back or self._flowed_back):
            self._backflow += self._part_back(counted - self._counted, charge, bus)
        self._counted, self._charge, self._bus, self._flowed_back = counted, charge, bus, flows_back
        energy_uwh = self._calibration.energy_uwh(counted - self._backflow)
        return Reading(
            energy_uwh=energy_uwh,
            power_mw=-power_mw if flows_back else power_mw,
            voltage_mv=voltage_mv(bus),
            current_ma=self._calibration.current_ma(current),
            at_ms=at_ms,
            backflow_uwh=self._calibration.energy_uwh(counted) - energy_uwh,
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

    def _accumulators(self) -> tuple[int, int | None]:
        """ENERGY, and double the charge at that moment, as the mean of before and after; None when that is not known.

        Both grow with every cycle of the ADC, so no two looks find the same. A disturbed transfer looks like any other,
        but energy goes on, and charge goes nowhere in a millisecond; what has happened says the same twice.
        """
        for _ in range(2):
            before = self._link.read(ina228.CHARGE)
            energy, later = self._link.read(ina228.ENERGY), self._link.read(ina228.ENERGY)
            drift = 2 * (self._link.read(ina228.CHARGE) - before)
            if (self._last_energy or 0) <= energy <= later and abs(drift) <= MOST_DRIFT:
                break
        return energy, 2 * before + drift // 2 if abs(drift) <= MOST_DRIFT else None

    def _part_back(self, grown: int, charge: int | None, bus: int) -> int:
        """How much of what ENERGY has ``grown`` by since the last reading flowed back, in its units.

        ENERGY grew by what flowed forward and what flowed back, CHARGE by their difference. Of the two voltages the one
        with which less flowed back stands for the interval.
        """
        if charge is None or self._charge is None:
            return 0
        # The data sheet does not say whether CHARGE goes on from the other end or from 0 (7.6.1, CHARGEOF).
        net = (charge - self._charge + CHARGES // 2) % CHARGES - CHARGES // 2
        apart = APART_CHARGE * max(bus, self._bus)
        if -net * min(bus, self._bus) > grown * FINE + apart:
            return 0
        self._rest += grown * FINE // 2 - max(net * bus, net * self._bus)
        part = max(0, min(grown, self._rest // FINE))
        self._rest = max(-apart, min(apart, self._rest - part * FINE))
        return part

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
