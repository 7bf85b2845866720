"""Meter and relay of one outlet in memory, and the load behind them."""

from __future__ import annotations

import threading
import time

from wattline.device.controller.client import RelayState
from wattline.device.meters.reading import Reading

POWER_MW = 1_000_000
"""What the load takes while the relay is closed: 1 kW."""
VOLTAGE_MV = 48_000
_MW_MS_PER_UWH = 3600


class OutletHardware:
    """A meter (:class:`wattline.device.meters.Meter`) and a holder of a relay at once. Thread-safe; times are
    monotonic."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed_ms: int | None = None
        """Since when the relay is closed."""
        self._energy_mw_ms = 0
        self.opened_ms = 0
        """When the relay opened the last time."""

    @property
    def is_closed(self) -> bool:
        return self._closed_ms is not None

    def read(self) -> Reading:
        with self._lock:
            energy_uwh, power_mw = self._so_far() // _MW_MS_PER_UWH, POWER_MW if self.is_closed else 0
        return Reading(energy_uwh, power_mw, VOLTAGE_MV, power_mw // VOLTAGE_MV * 1000, now_ms())

    def close(self) -> None:
        """The meter's bus."""

    def hold(self, outlet_id: str, lease_ms: int) -> RelayState:
        with self._lock:
            if self._closed_ms is None:
                self._closed_ms = now_ms()
        return self._state(outlet_id)

    def open(self, outlet_id: str) -> RelayState:
        with self._lock:
            if self._closed_ms is not None:
                self._energy_mw_ms, self._closed_ms, self.opened_ms = self._so_far(), None, now_ms()
        return self._state(outlet_id)

    def _so_far(self) -> int:
        flowing_ms = now_ms() - self._closed_ms if self._closed_ms is not None else 0
        return self._energy_mw_ms + POWER_MW * flowing_ms

    def _state(self, outlet_id: str) -> RelayState:
        return RelayState(outlet_id, self.is_closed, confirmed=True, at_ms=now_ms(), lease_ends_ms=None, fault="")


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
