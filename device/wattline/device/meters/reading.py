"""What a meter says, and the ways in which it can fail to."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wattline.core.errors import StopError

MIN_VOLTAGE_MV = 3_000
"""Below this there is no supply, unless a configuration says otherwise: what leaks through an open contact is less, and
5 V is the lowest voltage that is commonly sold."""


class MeterError(StopError):
    """A reading that cannot be trusted: delivery stops. A meter never says zero when it does not know.

    Codes: ``meter_bus_error`` (no answer after some tries, or not asked for so long that what flowed meanwhile is not
    known), ``meter_wrong_chip`` (another chip at the address, or a damaged one), ``meter_saturated`` (beyond its
    range), ``meter_frozen`` (no new values), ``meter_backwards`` (cumulative energy got smaller), ``meter_reset`` (the
    chip has lost its configuration or its count: more energy than the outlet can deliver in that time), ``backflow``
    (current goes on flowing from the load into the supply).
    """


def refuse_full(chip: str, full: Mapping[str, bool]) -> None:
    """What of ``chip`` is at the end of its range tells no truth any more. Raises MeterError ``meter_saturated``."""
    what = ", ".join(name for name, is_full in full.items() if is_full)
    if what:
        raise MeterError("meter_saturated", f"{chip}: beyond its range ({what})")


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a meter."""

    energy_uwh: int
    """What has flowed forward, cumulative: since the chip's accumulator was last reset, or, for a chip without one,
    since it was opened. What flows back is neither added nor taken off."""
    power_mw: int
    """Negative when current flows back."""
    voltage_mv: int
    current_ma: int
    """Negative when current flows back."""
    at_ms: int
    """Monotonic clock of the machine when the energy was read (or its last conversion, where that is our own sum)."""
    backflow_uwh: int = 0
    """What the chip has counted beyond ``energy_uwh`` since it was opened, because its accumulator knows no sign."""
    counts_alone: bool = True
    """The chip goes on counting while nobody reads it; False: the count is our own, and ends with the process."""

    def __post_init__(self) -> None:
        if self.energy_uwh < 0:
            raise ValueError(f"cumulative energy is not negative: {self.energy_uwh}")

    @property
    def chip_uwh(self) -> int:
        """The count as the chip has it: what a later process finds again (see ``counts_alone``)."""
        return self.energy_uwh + self.backflow_uwh


def next_look_ms(reading: Reading | None, interval_ms: int) -> int:
    """How long after ``reading`` the meter is looked at again: ``interval_ms`` at the most.

    Between the looks at a chip that does not count alone nobody knows what flows. So nobody is to know when they are,
    either: a load that draws nothing just then would have everything else for nothing, and a supply that is there only
    then would be paid for all the time.
    """
    if reading is None or reading.counts_alone:
        return interval_ms
    return interval_ms - secrets.randbelow(interval_ms // 2 + 1)


class Meter(Protocol):
    """An energy meter. Not to be shared by threads."""

    def read(self) -> Reading:
        """The present values. Raises MeterError."""

    def close(self) -> None:
        """Let go of the hardware; it goes on counting."""
