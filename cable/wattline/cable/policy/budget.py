"""The caps on a cable's money: what may still be paid, and which cap says so.

Pure. "Prepaid" is what the socket has received or may yet receive, less what was delivered for it. What was delivered
is taken from the caller as the *lower* of the cable's own reckoning and the socket's, so no statement, however false,
can raise the room. Session and day budgets count what left or may leave the wallet, routing fees included.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PPM = 1_000_000


class Bound(StrEnum):
    """The cap that binds."""

    PREPAID = "prepaid_limit"
    SESSION = "session_budget"
    DAY = "day_budget"
    EXPOSURE = "exposure_cap"


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits in msat; ``max_fee_ppm`` is the highest routing fee in millionths of what the socket receives."""

    max_prepaid_msat: int
    max_session_msat: int
    max_day_msat: int
    max_fee_ppm: int

    def __post_init__(self) -> None:
        for name in ("max_prepaid_msat", "max_session_msat", "max_day_msat", "max_fee_ppm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")

    def maxfee_msat(self, amount_msat: int) -> int:
        """The highest routing fee that a payment of ``amount_msat`` may cost, rounded down."""
        return amount_msat * self.max_fee_ppm // PPM


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent so far, all in msat and never negative."""

    settled_msat: int
    """Received by the socket for this session."""
    in_flight_msat: int
    """Sent and not yet resolved, in doubt included (what the socket would receive)."""
    charged_msat: int
    """The lower of the cable's own reckoning and the socket's charge."""
    session_sent_msat: int
    """Left or may leave the wallet for this session, routing fees (for what is in flight: their limit) included."""
    day_sent_msat: int
    """The same for all sessions of the last 24 hours, this one included."""

    def __post_init__(self) -> None:
        for name in ("settled_msat", "in_flight_msat", "charged_msat", "session_sent_msat", "day_sent_msat"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")

    @property
    def prepaid_msat(self) -> int:
        """Handed over or on its way, and not yet worked off. Negative when the socket delivered on trust."""
        return self.settled_msat + self.in_flight_msat - self.charged_msat


@dataclass(frozen=True, slots=True)
class Room:
    """The largest payment that all caps allow now (0 when none), and the cap that sets it."""

    amount_msat: int
    bound: Bound


def room(caps: Caps, spending: Spending) -> Room:
    """What may be paid now in one payment whose fee is at most ``caps.maxfee_msat``."""
    rooms = (
        Room(caps.max_prepaid_msat - spending.prepaid_msat, Bound.PREPAID),
        Room(_largest_with_fee(caps, caps.max_session_msat - spending.session_sent_msat), Bound.SESSION),
        Room(_largest_with_fee(caps, caps.max_day_msat - spending.day_sent_msat), Bound.DAY),
    )
    smallest = min(rooms, key=lambda item: item.amount_msat)
    # What is in flight can be burnt by a force-close, so one payment never exceeds the prepaid cap, arrears or not.
    return Room(max(0, min(smallest.amount_msat, caps.max_prepaid_msat)), smallest.bound)


def _largest_with_fee(caps: Caps, left_msat: int) -> int:
    """The largest amount which together with its own fee limit fits into ``left_msat``."""
    if left_msat <= 0:
        return 0
    amount = left_msat * PPM // (PPM + caps.max_fee_ppm)
    while amount + 1 + caps.maxfee_msat(amount + 1) <= left_msat:
        amount += 1
    return amount
