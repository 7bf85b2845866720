"""Whether the supply of an outlet is there, as far as its meter can see it."""

from __future__ import annotations

from wattline.device.meters.reading import MIN_VOLTAGE_MV, Reading

NO_VOLTAGE_RETRY_MS = 60_000
"""After a session without voltage the outlet is not sold for so long, where an open relay hides the supply."""


class SupplyWatch:
    """Of one outlet; asked by its loop only."""

    def __init__(self, min_voltage_mv: int = MIN_VOLTAGE_MV, *, is_before_relay: bool = False) -> None:
        """Below ``min_voltage_mv`` the supply is gone. ``is_before_relay``: the meter sees it through an open relay."""
        self._min_voltage_mv = min_voltage_mv
        self._is_before_relay = is_before_relay
        self._dark_until_ms = 0

    def is_there(self, reading: Reading, *, relay_closed: bool) -> bool:
        """True also where the meter cannot see it."""
        return reading.voltage_mv >= self._min_voltage_mv or not (relay_closed or self._is_before_relay)

    def ended_dark(self, now_ms: int) -> None:
        """A session has ended for want of voltage."""
        self._dark_until_ms = now_ms + NO_VOLTAGE_RETRY_MS

    def what_is_wrong(self, reading: Reading, now_ms: int) -> str:
        """Of a free outlet, whose relay is open; empty when nothing is, or nothing can be seen of it."""
        voltage = f"{reading.voltage_mv / 1000:.1f} V"
        if not self.is_there(reading, relay_closed=False):
            return f"no_voltage: the supply is gone ({voltage})"
        if now_ms >= self._dark_until_ms or reading.voltage_mv >= self._min_voltage_mv:
            self._dark_until_ms = 0
            return ""
        return (
            f"no_voltage: the last session had none ({voltage} now); tried again after {NO_VOLTAGE_RETRY_MS // 1000} s"
        )
