"""What failed payments teach: how long to wait, how large the next one must or may be, and when to give up."""

from __future__ import annotations

from wattline.cable.budget import PPM
from wattline.cable.purse import Failed

FLOOR_LASTS_MS = 60_000
"""After this long a fee that was too high is asked for again."""
FIRST_BACKOFF_MS = 200
MAX_BACKOFF_MS = 5_000
TOO_SMALL = "route_too_expensive"
BELOW_MINIMUM = frozenset({"channel_minimum", "amount_below_minimum"})
"""Ours, and BOLT #4's of a node on the way."""
TOO_LARGE = frozenset({"no_route", "temporary_channel_failure"})


class Setbacks:
    """Times are of one monotonic clock, amounts in msat."""

    def __init__(
        self, min_increment_msat: int, max_increment_msat: int, max_fee_ppm: int, max_failures_in_a_row: int
    ) -> None:
        self._min_increment_msat = min_increment_msat
        self._max_increment_msat = max_increment_msat
        self._max_fee_ppm = max_fee_ppm
        self._max_failures = max_failures_in_a_row
        self.in_a_row = 0
        """Failures since the last payment that arrived; those that were under way together count as one."""
        self.next_try_ms = 0
        """Nothing is begun before."""
        self.route_ceiling_msat: int | None = None
        """Above this, no single route was found; grows again with every payment that arrives."""
        self._last_failure_ms: int | None = None
        self._fee_floor_msat = 0
        self._fee_floor_until_ms = 0
        self._route_floor_msat = 0
        self._route_floor_until_ms = 0

    @property
    def is_too_many(self) -> bool:
        return self.in_a_row >= self._max_failures

    def fee_floor_msat(self, now_ms: int) -> int:
        """Below this, fees were found to exceed their ratio; 0 when nothing is known."""
        if now_ms >= self._fee_floor_until_ms:
            self._fee_floor_msat = 0
        return self._fee_floor_msat

    def route_floor_msat(self, now_ms: int) -> int:
        """Less than this a channel on the way was found not to carry; 0 when nothing is known."""
        if now_ms >= self._route_floor_until_ms:
            self._route_floor_msat = 0
        return self._route_floor_msat

    def on_arrival(self, amount_msat: int) -> None:
        self.in_a_row = 0
        self.next_try_ms = 0
        ceiling = self.route_ceiling_msat
        if ceiling is not None and amount_msat * 2 > ceiling:
            self.route_ceiling_msat = ceiling * 2 if ceiling * 2 < self._max_increment_msat else None

    def on_failure(self, failed: Failed, begun_ms: int, at_ms: int) -> None:
        """``begun_ms`` is when the payment was begun."""
        if failed.least_msat is not None or failed.code in BELOW_MINIMUM:
            floor_msat = failed.least_msat or failed.amount_msat * 2
            self._route_floor_msat = max(self._route_floor_msat, floor_msat)
            self._route_floor_until_ms = at_ms + FLOOR_LASTS_MS
            if self.route_ceiling_msat is not None and self.route_ceiling_msat < floor_msat:
                self.route_ceiling_msat = None  # it was halved for what was too small
            return
        if failed.fee_msat is not None or failed.code == TOO_SMALL:
            self._raise_fee_floor(failed, at_ms)
            return
        if failed.code in TOO_LARGE:
            self.route_ceiling_msat = max(self._min_increment_msat, failed.amount_msat // 2)
        if self._last_failure_ms is not None and begun_ms < self._last_failure_ms:
            return
        self._last_failure_ms = at_ms
        self.in_a_row += 1
        self.next_try_ms = at_ms + min(MAX_BACKOFF_MS, FIRST_BACKOFF_MS << min(self.in_a_row - 1, 10))

    def _raise_fee_floor(self, failed: Failed, at_ms: int) -> None:
        """Fees have a fixed part, so a larger payment pays relatively less."""
        if self._max_fee_ppm == 0:
            floor = self._max_increment_msat + 1
        elif failed.fee_msat is not None:
            by_fee = -(-failed.fee_msat * PPM // self._max_fee_ppm)
            floor = max(failed.amount_msat + failed.amount_msat // 4 + 1, by_fee)
        else:
            floor = failed.amount_msat * 2
        self._fee_floor_msat = max(self._fee_floor_msat, floor)
        self._fee_floor_until_ms = at_ms + FLOOR_LASTS_MS
