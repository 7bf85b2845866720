"""The cable's money: what was begun, has arrived or came back, and what its caps still allow.

Pure. "Prepaid" is what the socket has received or may yet receive, less what was delivered for it. What was delivered
is taken from the caller as the *lower* of the cable's own reckoning and the socket's, so no statement, however false,
can raise the room. Session and day budgets count what left or may leave the wallet, routing fees included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from wattline.cable.policy.events import MethodName
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.errors import RetryError

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

    def within(self, credit_cap_msat: int) -> Caps:
        """The same for a socket that refuses more unused credit than this (0: it names no cap), so nothing beyond it is
        sent."""
        if credit_cap_msat <= 0 or credit_cap_msat >= self.max_prepaid_msat:
            return self
        return replace(self, max_prepaid_msat=credit_cap_msat)

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


@dataclass(frozen=True, slots=True)
class Underway:
    """A payment that is begun and not resolved."""

    amount_msat: int
    """What the socket would receive."""
    most_msat: int
    """What may leave the wallet: the amount and its fee limit."""
    method: MethodName = "keysend"


class PaymentAccount:
    """Amounts that were begun, arrived or came back. Every payment is counted from the moment it is decided on."""

    def __init__(self, settled_msat: int = 0, sent_msat: int = 0, payments: int = 0) -> None:
        """Begin with what the ledger knows of earlier runs of the same session (all of it resolved)."""
        self.settled_msat = settled_msat
        """Arrived at the socket."""
        self.settled_sent_msat = sent_msat
        """Left the wallet for it, fees included."""
        self.payments = payments
        """How many arrived."""
        self.failed_payments = 0
        self.durations_ms: deque[int] = deque(maxlen=10_000)
        """Of the payments that arrived."""
        self._underway: dict[int, Underway] = {}
        self._arrivals: deque[tuple[int, int]] = deque()
        self._old_settled_msat = settled_msat
        self.increments = 0
        """How many of the arrived ones were versions of the aggregate."""
        self.onchain_settled_msat = 0
        """The part of settled_msat that was handed over on-chain: the value of the newest version that the socket
        has credited."""
        self.onchain_signed_msat = 0
        """The largest value of any version that was handed over, credited or not: so much the socket could take."""
        self.miner_fee_msat = 0
        """Of the aggregate, once its inputs are chosen; the same for every version."""

    @property
    def fees_msat(self) -> int:
        """Routing fees paid, and the miner's fee once a version was handed over."""
        routing_msat = self.settled_sent_msat - self.settled_msat
        return routing_msat + (self.miner_fee_msat if self.onchain_signed_msat or self.onchain_settled_msat else 0)

    @property
    def way_msat(self) -> int:
        """What a payment over Lightning has cost in routing fees, on average."""
        return (self.settled_sent_msat - self.settled_msat) // max(1, self.payments - self.increments)

    @property
    def in_flight(self) -> int:
        """How many payments are not resolved."""
        return len(self._underway)

    @property
    def in_flight_msat(self) -> int:
        return sum(item.amount_msat for item in self._underway.values())

    @property
    def sent_msat(self) -> int:
        """Left or may leave the wallet."""
        underway_msat = sum(item.most_msat for item in self._underway.values())
        return self.settled_sent_msat + underway_msat + self.miner_fee_msat + self.onchain_excess_msat

    @property
    def handed_over_msat(self) -> int:
        """Arrived or on the way: what counts as credit."""
        return self.settled_msat + self.in_flight_msat

    @property
    def exposed_msat(self) -> int:
        """What the socket could have of it, versions that it refused included."""
        return self.handed_over_msat + self.onchain_excess_msat

    @property
    def keysend_handed_over_msat(self) -> int:
        """The part of handed_over_msat that goes over Lightning."""
        return self.handed_over_msat - self.onchain_handed_over_msat

    @property
    def keysend_settled_msat(self) -> int:
        """The part of settled_msat that came over Lightning."""
        return self.settled_msat - self.onchain_settled_msat

    @property
    def onchain_excess_msat(self) -> int:
        """By how much a refused version pays more than what is handed over now. The next version needs no more room
        up to that value, since only one version can ever be mined."""
        return max(0, self.onchain_signed_msat - self.onchain_handed_over_msat)

    @property
    def onchain_handed_over_msat(self) -> int:
        """The value of the newest version, credited or under way."""
        return self.onchain_settled_msat + self.in_flight_by("onchain")[1]

    @property
    def onchain_exposed_msat(self) -> int:
        """The largest value that the socket could take, versions that it refused included."""
        return self.onchain_handed_over_msat + self.onchain_excess_msat

    def in_flight_by(self, method: MethodName) -> tuple[int, int]:
        """How many payments of that method are not resolved, and their sum in msat."""
        items = [item.amount_msat for item in self._underway.values() if item.method == method]
        return len(items), sum(items)

    def underway_by(self, method: MethodName) -> frozenset[int]:
        """The payments of that method that are not resolved."""
        return frozenset(number for number, item in self._underway.items() if item.method == method)

    def begin(self, sequence: int, amount_msat: int, maxfee_msat: int, method: MethodName = "keysend") -> None:
        if sequence in self._underway:
            raise ValueError(f"payment {sequence} is under way already")
        self._underway[sequence] = Underway(amount_msat, amount_msat + maxfee_msat, method)

    def is_underway(self, sequence: int) -> bool:
        return sequence in self._underway

    def method_of(self, sequence: int) -> MethodName | None:
        """By which method a payment is under way; None when it is not."""
        item = self._underway.get(sequence)
        return None if item is None else item.method

    def onchain_signed(self, signed_sat: int) -> None:
        """So much, at the most, was handed over by now."""
        self.onchain_signed_msat = max(self.onchain_signed_msat, signed_sat * MSAT_PER_SAT)

    def onchain_stands(self, accepted_sat: int, at_ms: int) -> None:
        """What the socket has credited, by the ledger of an earlier run or by the socket's own word."""
        accepted_msat = accepted_sat * MSAT_PER_SAT
        more_msat = accepted_msat - self.onchain_settled_msat
        if not more_msat:
            return
        self.onchain_settled_msat = accepted_msat
        self.settled_msat += more_msat
        self.settled_sent_msat += more_msat
        self._arrivals.append((at_ms, more_msat))

    def increments_stand(self, number: int) -> None:
        """So many versions the socket has credited: those of earlier runs are not in the ledger one by one."""
        more = max(0, number - self.increments)
        self.increments += more
        self.payments += more

    def arrived(self, sequence: int, amount_sent_msat: int, at_ms: int, duration_ms: int | None = None) -> bool:
        """It has arrived. False (and nothing changes) when it is not under way: one payment counts once."""
        item = self._underway.pop(sequence, None)
        if item is None:
            return False
        self.settled_msat += item.amount_msat
        self.settled_sent_msat += amount_sent_msat
        self.payments += 1
        if item.method == "onchain":
            self.increments += 1
            self.onchain_settled_msat += item.amount_msat
        self._arrivals.append((at_ms, item.amount_msat))
        if duration_ms is not None:
            self.durations_ms.append(duration_ms)
        return True

    def came_back(self, sequence: int) -> bool:
        """It failed for good; the money is back. False when it is not under way."""
        if self._underway.pop(sequence, None) is None:
            return False
        self.failed_payments += 1
        return True

    def settled_before(self, at_ms: int) -> int:
        """What had arrived by then. Asked for with growing times only (older arrivals are folded together)."""
        while self._arrivals and self._arrivals[0][0] <= at_ms:
            self._old_settled_msat += self._arrivals.popleft()[1]
        return self._old_settled_msat

    def spending(self, charged_msat: int, day_sent_msat: int) -> Spending:
        """For :func:`wattline.cable.policy.budget.room`; ``charged_msat`` is the lower of own and socket's charge."""
        return Spending(
            settled_msat=self.settled_msat,
            in_flight_msat=self.in_flight_msat,
            charged_msat=charged_msat,
            session_sent_msat=self.sent_msat,
            day_sent_msat=day_sent_msat,
        )


REFRESH_S = 60.0


class DaySpending:
    """What left or may leave the wallet within 24 hours, in msat.

    The ledger is asked once a minute; in between the session's own account tells what was added. A payment that is
    begun but not yet on record counts already."""

    def __init__(
        self,
        session_sent_msat: Callable[[], int],
        day_sent_msat: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        """What the ledger says has left or may leave the wallet: of this session ever, and of all within the last 24
        hours; ``clock``: monotonic, in s."""
        self._session_sent_msat = session_sent_msat
        self._day_sent_msat = day_sent_msat
        self._clock = clock
        self._asked_at: float | None = None
        self._day_msat = 0
        self._session_then_msat = 0

    def __call__(self, account: PaymentAccount) -> int:
        if self._asked_at is None or self._clock() - self._asked_at >= REFRESH_S:
            try:
                self._ask(account)
            except RetryError:
                # Busy: what was asked last is still right for payments of this session, which are counted here.
                if self._asked_at is None:
                    raise
        return max(0, self._day_msat + account.sent_msat - self._session_then_msat)

    def _ask(self, account: PaymentAccount) -> None:
        recorded, day = self._session_sent_msat(), self._day_sent_msat()
        self._session_then_msat = account.sent_msat
        self._day_msat = day + max(0, account.sent_msat - recorded)
        self._asked_at = self._clock()
