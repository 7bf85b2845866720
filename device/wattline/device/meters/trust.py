"""What makes a reading trustworthy whatever the chip: it goes forward, it goes on, and it is possible.

What is remembered here are seconds: a new process looks anew. What a session has counted is kept with the session.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.device.meters.reading import Meter, MeterError, Reading

UJ_PER_UWH = 3600
FROZEN_AFTER_MS = 1000
FROZEN_UWH = 2000
"""Energy that must have shown up when the power says so; far above the resolution of any chip used here."""
IMPLAUSIBLE_FACTOR = 2
BACKFLOW_DIVISOR = 50
"""More than 1/50 of the rated power flowing back in two readings is enough: the shunt may be the wrong way round."""
BACKFLOW_MS = 1000
"""Less, but more than the meter's offset, must flow back for this long: a load that is switched off gives some back."""
MOST_BACK_LATELY = 2
"""So many readings with much backflow, none after another, may stand within BACKFLOW_MS before one more ends it."""


@dataclass(frozen=True, slots=True)
class _Standstill:
    """Energy has not advanced since ``since_ms`` though the power was never below ``lowest_mw``."""

    since_ms: int
    lowest_mw: int


class TrustedMeter:
    """A meter whose readings are held against each other; passes on those that agree, raises MeterError otherwise.

    ``max_power_mw`` is the rated power of the outlet (None: unknown, then possible is whatever the chip can measure).
    Current of up to ``zero_ma`` may show where there is none.
    """

    def __init__(self, meter: Meter, max_power_mw: int | None = None, zero_ma: int = 1) -> None:
        if max_power_mw is not None and max_power_mw <= 0:
            raise ValueError(f"a rated power is positive: {max_power_mw}")
        if zero_ma < 0:
            raise ValueError(f"zero_ma is not negative: {zero_ma}")
        self._meter = meter
        self._max_power_mw = max_power_mw
        self._zero_ma = zero_ma
        self._last: Reading | None = None
        self._standstill: _Standstill | None = None
        self._back_since: Reading | None = None
        """The first of an unbroken row of readings in which current flows back."""
        self._much_back_ms: list[int] = []
        """When more flowed back than any offset shows, lately."""

    def read(self) -> Reading:
        reading = self._meter.read()
        if self._last is not None:
            self._check_forward(self._last, reading)
            self._check_advance(self._last, reading)
        self._check_direction(reading)
        self._check_possible(self._last, reading)
        self._last = reading
        return reading

    def close(self) -> None:
        self._meter.close()

    def _check_forward(self, last: Reading, reading: Reading) -> None:
        if reading.energy_uwh < last.energy_uwh:
            raise MeterError(
                "meter_backwards",
                f"cumulative energy went back from {last.energy_uwh} to {reading.energy_uwh} uWh",
            )
        if reading.at_ms < last.at_ms:
            raise MeterError("meter_backwards", f"time went back from {last.at_ms} to {reading.at_ms} ms")

    def _check_advance(self, last: Reading, reading: Reading) -> None:
        """Under forward power the energy must grow, within a time in which it would have become visible."""
        lowest_mw = max(0, min(last.power_mw, reading.power_mw))
        if reading.energy_uwh > last.energy_uwh or lowest_mw == 0:
            self._standstill = None
            return
        before = self._standstill or _Standstill(last.at_ms, lowest_mw)
        self._standstill = _Standstill(before.since_ms, min(before.lowest_mw, lowest_mw))
        duration_ms = reading.at_ms - before.since_ms
        missing_uwh = self._standstill.lowest_mw * duration_ms // UJ_PER_UWH
        if duration_ms >= FROZEN_AFTER_MS and missing_uwh >= FROZEN_UWH:
            raise MeterError(
                "meter_frozen",
                f"energy stands still at {reading.energy_uwh} uWh for {duration_ms} ms under {reading.power_mw} mW",
            )

    def _check_direction(self, reading: Reading) -> None:
        """Backflow costs nothing, and ends what it belongs to when it lasts."""
        if reading.current_ma >= -self._zero_ma:
            self._back_since = None
            return
        first = self._back_since or reading
        lasted_ms = reading.at_ms - first.at_ms
        is_repeated = False
        if self._max_power_mw is not None and reading.power_mw < -self._max_power_mw // BACKFLOW_DIVISOR:
            # Also when it flows forward in between: a load must not hide behind moments of backflow.
            lately = [at_ms for at_ms in self._much_back_ms if reading.at_ms - at_ms <= BACKFLOW_MS]
            self._much_back_ms = [*lately, reading.at_ms]
            is_in_a_row = self._last is not None and self._last.at_ms in lately
            is_repeated = is_in_a_row or len(lately) >= MOST_BACK_LATELY
        if is_repeated or lasted_ms >= BACKFLOW_MS:
            raise MeterError(
                "backflow",
                f"{reading.power_mw} mW: current flows back from the load for {lasted_ms} ms"
                " (is the shunt the wrong way round, or is the load a source?)",
            )
        self._back_since = first

    def _check_possible(self, last: Reading | None, reading: Reading) -> None:
        """Power above the rating may be true and is the session's business; energy that cannot have flowed is not."""
        if self._max_power_mw is None or last is None:
            return
        # A reading may hold energy of a conversion that began before the last one: allow a tenth of a second more.
        possible_mw = IMPLAUSIBLE_FACTOR * self._max_power_mw
        possible_uwh = possible_mw * (reading.at_ms - last.at_ms + 100) // UJ_PER_UWH
        if reading.energy_uwh - last.energy_uwh > possible_uwh:
            raise MeterError(
                "meter_reset",
                f"{reading.energy_uwh - last.energy_uwh} uWh in {reading.at_ms - last.at_ms} ms"
                f" where the outlet is rated {self._max_power_mw} mW",
            )
