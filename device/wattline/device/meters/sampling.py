"""Meters whose chip measures but does not count: energy is integrated here, exactly, from fresh conversions only.

Power between two conversions is taken as the mean of both (the trapezoid rule): exact for a load that changes slowly,
right on average for one that does not. What has been counted lives in this object only, and a restarted process counts
from 0: its readings say so (``counts_alone``), and whoever goes on with a session goes on from what the ledger has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wattline.core.clock import since_boot_ns
from wattline.device.meters.reading import MeterError, Reading

MS_NS = 1_000_000
OVERDUE_LOOKS = 4
LONGEST_GAP_MS = 1000
"""As long as the longest lease of a relay: in a longer gap the relay has opened, and nobody knows when. The time
that the machine slept is a gap, too."""
UW_NS_PER_UWH = 3_600_000_000_000
"""Microwatts times nanoseconds in a microwatt-hour: both are 1e-6 of something, and an hour has that many ns."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of one conversion."""

    shunt_nv: int
    """Over the shunt, nanovolts; negative when current flows back."""
    bus_uv: int
    """At the load's side of the shunt, microvolts."""


class SamplingChip(Protocol):
    """A chip that measures voltages over and behind a shunt."""

    @property
    def name(self) -> str:
        """The chip in errors."""

    @property
    def conversion_ms(self) -> int:
        """How long a conversion takes at the most; there is always one under way."""

    def look(self) -> Sample | None:
        """The newest conversion, once; None when it has been looked at already. Raises MeterError."""

    def check_configuration(self) -> None:
        """Raises MeterError ``meter_reset`` when the chip is no longer configured as it was."""

    def close(self) -> None: ...


class EnergySum:
    """Energy through a shunt of ``shunt_nohm`` nano-ohms, as an exact integer sum."""

    def __init__(self, shunt_nohm: int) -> None:
        if shunt_nohm <= 0:
            raise ValueError(f"the resistance of a shunt is positive: {shunt_nohm}")
        self._shunt_nohm = shunt_nohm
        self._twice = 0
        """Twice the sum of shunt_nv x bus_uv x ns: whole numbers, so nothing is rounded on the way."""

    def add(self, before: Sample, after: Sample, ns: int) -> None:
        """``ns`` nanoseconds have passed between two samples, each of which stands for a half of them. What flows back
        is not taken off, of the other half neither."""
        self._twice += sum(max(0, each.shunt_nv * each.bus_uv) for each in (before, after)) * ns

    @property
    def energy_uwh(self) -> int:
        """Rounded down: what is billed has certainly flowed."""
        # nV x uV / nano-ohm = uW.
        return self._twice // (2 * self._shunt_nohm * UW_NS_PER_UWH)


class SampledMeter:
    """A sampling chip as :class:`wattline.device.meters.Meter`, counting from 0."""

    def __init__(
        self,
        chip: SamplingChip,
        shunt_nohm: int,
        clock_ns: Callable[[], int] = since_boot_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wait for a first conversion. Raises MeterError."""
        self._chip = chip
        self._shunt_nohm = shunt_nohm
        self._clock_ns = clock_ns
        self._sleep = sleep
        self._overdue_ns = 3 * chip.conversion_ms * MS_NS
        self._energy = EnergySum(shunt_nohm)
        self._lost: MeterError | None = None
        """Why the count is no longer what has flowed; only a new object counts again."""
        self._at_ns = clock_ns() - self._overdue_ns
        self._sample, self._at_ns = self._next()

    def read(self) -> Reading:
        """The newest conversion, that of the last call again when there is none yet. Raises MeterError."""
        if self._lost is not None:
            raise MeterError(self._lost.code, self._lost.message)
        try:
            sample, at_ns = self._next()
        except MeterError as error:
            if error.code == "meter_saturated":
                self._lost = error
            raise
        gap_ms = (at_ns - self._at_ns) // MS_NS
        if gap_ms > LONGEST_GAP_MS:
            self._lost = MeterError(
                "meter_bus_error",
                f"{self._chip.name}: not read for {gap_ms} ms (at most {LONGEST_GAP_MS}); this chip does not count by"
                " itself, so what flowed meanwhile is not known",
            )
            raise self._lost
        self._energy.add(self._sample, sample, at_ns - self._at_ns)
        self._sample, self._at_ns = sample, at_ns
        return self._reading()

    def close(self) -> None:
        self._chip.close()

    def _reading(self) -> Reading:
        shunt_nv, bus_uv = self._sample.shunt_nv, self._sample.bus_uv
        return Reading(
            energy_uwh=self._energy.energy_uwh,
            power_mw=_nearest(shunt_nv * bus_uv, self._shunt_nohm * 1000),
            voltage_mv=_nearest(bus_uv, 1000),
            current_ma=_nearest(shunt_nv * 1000, self._shunt_nohm),
            at_ms=self._at_ns // MS_NS,
            counts_alone=False,
        )

    def _next(self) -> tuple[Sample, int]:
        """A new sample and its time; the last one when no new one is due. Raises MeterError.

        Another process that looks at the same chip takes conversions away from us now and then, so a missing one is
        believed only after some more looks.
        """
        for look in range(OVERDUE_LOOKS + 1):
            if look:
                self._sleep(1.5 * self._chip.conversion_ms / 1000)
            sample = self._chip.look()
            now_ns = self._clock_ns()
            if sample is not None:
                return sample, now_ns
            if now_ns - self._at_ns < self._overdue_ns:
                return self._sample, self._at_ns
        self._chip.check_configuration()
        overdue_ms = (self._clock_ns() - self._at_ns) // MS_NS
        raise MeterError("meter_frozen", f"{self._chip.name}: no conversion for {overdue_ms} ms")


def _nearest(numerator: int, denominator: int) -> int:
    """The nearest integer to a fraction, halves away from zero."""
    magnitude = (2 * abs(numerator) + denominator) // (2 * denominator)
    return magnitude if numerator >= 0 else -magnitude
