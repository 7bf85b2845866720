"""What a session was opened under; it keeps its terms whatever the socket's settings become."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.errors import UsageError
from wattline.tariff import Tariff, worth_msat

MAX_LEASE_MS = 1000
"""No hold of a relay is longer: after that time without a word every relay opens."""
START_INTERVALS = 5
"""Credit must last so many meter intervals before the relay closes. More than PAUSE_INTERVALS, so that a trickle of
payments does not make the relay chatter."""
PAUSE_INTERVALS = 2
"""With less credit than for so many meter intervals the relay opens."""
STALE_INTERVALS = 5
"""A meter value older than so many intervals is missing (but see Terms.stale_ms)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The tariff and the rules of one session. Raises UsageError ``terms_invalid`` naming the impossible value."""

    tariff: Tariff
    rated_power_mw: int
    """What the outlet may deliver at most; more than 5 % above it stops delivery."""
    meter_interval_ms: int
    """How often the outlet's meter is read."""
    pause_max_s: int
    """How long a session stays PAUSED."""
    open_timeout_s: int
    """How long a session stays OPEN."""
    cable_lost_s: int
    """How long a session outlives its stream."""
    credit_cap_msat: int
    """The most unused credit, payments in flight included; the payment hook enforces it, not the state machine."""
    min_refund_msat: int
    """Unused credit below this is kept at the end."""

    def __post_init__(self) -> None:
        _check("rated_power_mw", self.rated_power_mw, 1, 1_000_000_000)
        _check("meter_interval_ms", self.meter_interval_ms, 1, MAX_LEASE_MS)
        for name in ("pause_max_s", "open_timeout_s", "cable_lost_s"):
            _check(name, getattr(self, name), 0, 31_536_000)
        _check("credit_cap_msat", self.credit_cap_msat, 1, 10**18)
        _check("min_refund_msat", self.min_refund_msat, 1, 10**18)
        if self.credit_cap_msat < self.start_msat:
            raise UsageError(
                "terms_invalid",
                f"credit_cap_msat: no session could begin: {self.start_msat} msat or more are needed for"
                f" {self.start_ms} ms at the rated power of {self.rated_power_mw} mW and the session fee, not"
                f" {self.credit_cap_msat}",
            )

    @property
    def start_ms(self) -> int:
        """How long the credit must last at rated power before the relay closes."""
        return START_INTERVALS * self.meter_interval_ms

    @property
    def start_msat(self) -> int:
        """The credit with which a new session begins to deliver: session fee and start_ms at rated power."""
        return self.tariff.session_fee_msat + worth_msat(self.tariff, self.rated_power_mw, self.start_ms)

    @property
    def pause_ms(self) -> int:
        """With less credit than for this time the relay opens."""
        return PAUSE_INTERVALS * self.meter_interval_ms

    @property
    def stale_ms(self) -> int:
        """A meter value older than this is missing. A stall of the process that the lease has already ended leaves
        room for two readings, so that it is not mistaken for a broken meter."""
        return max(STALE_INTERVALS * self.meter_interval_ms, MAX_LEASE_MS + 2 * self.meter_interval_ms)


def _check(name: str, value: object, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise UsageError("terms_invalid", f"{name}: a whole number from {lowest} to {highest}, not {value!r}")
