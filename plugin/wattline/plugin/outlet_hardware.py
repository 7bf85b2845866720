"""What an outlet consists of: its relay, held through the guard, its meter, and the supply as far as the meter sees
it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wattline.core.clock import Clock
from wattline.device.controller.client import GuardClient, RelayState
from wattline.device.meters.reading import MIN_VOLTAGE_MV, Meter, MeterError, Reading
from wattline.device.relays.relay import RelayError

log = logging.getLogger(__name__)

REOPEN_METER_MS = 1000
"""How long to wait before a meter that failed is opened again."""


class RelayControl(Protocol):
    """Closes relays for a while and opens them."""

    def hold(self, outlet_id: str, lease_ms: int) -> RelayState:
        """Relay closed for ``lease_ms`` from now at the most. Raises RelayError: then it is open or opens by itself."""

    def open(self, outlet_id: str) -> RelayState:
        """Relay open now. Raises RelayError when that could not be confirmed."""


class GuardedRelays:
    """Holds relays through the guard; starts a new guard when the old one is gone (which opens every relay first)."""

    def __init__(self, start_guard: Callable[[], GuardClient]) -> None:
        self._start_guard = start_guard
        self._lock = threading.Lock()
        self._client: GuardClient | None = None

    def start(self) -> None:
        """Connect to the guard, starting it when needed. Raises RelayError."""
        with self._lock:
            if self._client is None:
                self._client = self._start_guard()

    @property
    def running(self) -> bool:
        return self._client is not None

    def hold(self, outlet_id: str, lease_ms: int) -> RelayState:
        """Relay closed for ``lease_ms`` from now at the most. Raises RelayError: then it is open or opens by itself."""
        return self._ask(lambda client: client.hold(outlet_id, lease_ms))

    def open(self, outlet_id: str) -> RelayState:
        """Relay open now. Raises RelayError when that could not be confirmed; the guard goes on trying."""
        return self._ask(lambda client: client.open(outlet_id))

    def bye(self) -> None:
        """Every relay opens and the guard ends; it will not start the plugin again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            try:
                client.bye()
            except RelayError as error:
                log.warning("the guard did not take leave: %s", error)
            finally:
                client.close()

    def _ask(self, call: Callable[[GuardClient], RelayState]) -> RelayState:
        client = self._client
        if client is None:
            raise RelayError("guard_lost", "the guard is not running")
        try:
            return call(client)
        except RelayError as error:
            if error.code == "guard_lost":
                self._replace(client)
            raise

    def _replace(self, lost: GuardClient) -> None:
        with self._lock:
            if self._client is not lost:
                return
            log.error("the guard is gone; starting a new one, which opens every relay")
            lost.close()
            self._client = None
            try:
                self._client = self._start_guard()
            except RelayError as error:
                log.error("no new guard: %s", error)
        if self._client is None:
            threading.Timer(1.0, self._retry).start()

    def _retry(self) -> None:
        try:
            self.start()
        except RelayError:
            threading.Timer(1.0, self._retry).start()


class RemovedRelay:
    """The relay of an outlet that is no longer configured: nobody may close it, and the guard does not know it."""

    def hold(self, outlet_id: str, lease_ms: int) -> RelayState:
        raise RelayError("relay_fault", f"outlet {outlet_id} is no longer in the configuration")

    def open(self, outlet_id: str) -> RelayState:
        return RelayState(outlet_id, closed=False, confirmed=True, at_ms=0, lease_ends_ms=None, fault="")


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


class OutletMeter:
    """The meter of one outlet; one that failed is opened again after a while. For one thread."""

    def __init__(self, open_meter: Callable[[], Meter], clock: Clock) -> None:
        self._open_meter = open_meter
        self._clock = clock
        self._meter: Meter | None = None
        self._retry_ms = 0
        self.is_count_new = True
        """The meter was opened, or the session taken up, since the last reading that counted for it."""

    def read(self) -> Reading | None:
        """None while one that failed rests. Raises MeterError."""
        if self._meter is None and self._clock.monotonic_ms() < self._retry_ms:
            return None
        try:
            if self._meter is None:
                self._meter = self._open_meter()
                self.is_count_new = True
            return self._meter.read()
        except MeterError:
            self.close()
            self._retry_ms = self._clock.monotonic_ms() + REOPEN_METER_MS
            raise

    def close(self) -> None:
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.close()


@dataclass(frozen=True, slots=True)
class OutletParts:
    """The hardware of one outlet."""

    open_meter: Callable[[], Meter]
    relay: RelayControl
    min_voltage_mv: int = MIN_VOLTAGE_MV
    """Below it the supply is gone."""
    is_meter_before_relay: bool = False
    """The meter sees the supply through an open relay."""

    def supply(self) -> SupplyWatch:
        return SupplyWatch(self.min_voltage_mv, is_before_relay=self.is_meter_before_relay)


def removed_outlet(outlet_id: str) -> OutletParts:
    """Of one that is no longer configured: it ends the session that it had."""

    def no_meter() -> Meter:
        raise MeterError("outlet_removed", f"outlet {outlet_id} is no longer in the configuration")

    return OutletParts(no_meter, RemovedRelay())
