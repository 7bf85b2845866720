"""What failed payments teach: how long to wait, how large the next one must or may be, and when to give up.

When a session that is paid over Lightning goes over to on-chain (``method = "auto"``). Pure.

The rule. Only failures of the *way* count (no route, too dear a route, a hop's failure), in a row: a payment that
arrives ends the row, and what the socket itself or a node that is just restarting does is no reason. The first one
makes the cable prepare: it asks for the address and reserves inputs, which costs nothing when Lightning recovers. From
then on Lightning is tried for as long as the credit allows, so that passing trouble leads to nothing. It goes over

- at once, when not even the smallest payment has a way, or no allowed one is large enough for its fee;
- while energy flows, when the credit is running short (less than SHORT_MS at the present power are left above the
  socket's own reserve) and two attempts in a row have failed, or when only that reserve is left and payments had to be
  made smaller or failed: then some three seconds remain, ten times what the first version takes, and the relay stays
  closed;
- while no energy flows, after three failures in a row: there is no credit that time could be measured by.

To have that time, LEAD_MS of credit more than otherwise are kept while this may happen. It never goes back: the floor
is paid then, and the transaction costs the same however little goes over Lightning.

When a session that does not move is given up.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.cable.policy.budget import PPM
from wattline.cable.policy.events import (
    Failed,
    MethodName,
)
from wattline.cable.policy.rhythm import (
    MAX_BOOST,
    Hold,
)
from wattline.core.increments import BELOW_MIN_INCREMENT

FLOOR_LASTS_MS = 60_000
"""After this long a fee that was too high is asked for again."""


FIRST_BACKOFF_MS = 200


MAX_BACKOFF_MS = 5_000


TOO_SMALL = "route_too_expensive"


BELOW_MINIMUM = frozenset({"channel_minimum", "amount_below_minimum"})
"""Ours, and BOLT #4's of a node on the way."""


TOO_LARGE = frozenset({"no_route", "temporary_channel_failure"})


class FailurePolicy:
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


LEAD_MS = 3_000
"""So much more credit is kept at the present power."""


SHORT_MS = 1_500


FAILURES_WHEN_SHORT = 2


FAILURES_AT_REST = 3


NO_WAY = frozenset({Hold.NO_ROUTE, Hold.FEE, Hold.BELOW_MINIMUM})


_OF_THE_WAY = frozenset(
    {
        # The payer's own, before anything was sent.
        *("no_route", "route_too_expensive", "fee_too_high"),
        # BOLT #4, "Failure Messages", as a node on the way sends them.
        *("temporary_channel_failure", "permanent_channel_failure", "required_channel_feature_missing"),
        *("unknown_next_peer", "amount_below_minimum", "fee_insufficient", "incorrect_cltv_expiry"),
        *("expiry_too_soon", "expiry_too_far", "channel_disabled", "temporary_node_failure", "permanent_node_failure"),
    }
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How the session stands."""

    is_delivering: bool
    is_short: bool
    """Credit that has arrived lasts for less than SHORT_MS above the reserve."""
    is_at_reserve: bool
    """Only the reserve is left."""
    hold: Hold | None
    is_narrow: bool
    """Payments are made smaller than they would be, for want of a way."""


class Fallback:
    """Kept by the deciding thread."""

    def __init__(self) -> None:
        self.is_possible = True
        """False once it has turned out that the session cannot be paid on-chain either."""
        self.is_near = False
        """Prepare."""
        self.is_due = False
        """Go over as soon as all is prepared."""
        self._failures = 0
        self._last_failure_ms: int | None = None

    def on_arrival(self) -> None:
        """A payment has arrived over Lightning."""
        self._failures = 0

    def on_failure(self, failed: Failed, begun_ms: int, at_ms: int) -> bool:
        """A payment has failed that was begun at ``begun_ms``; those that were under way together count as one. Whether
        the way has failed, and there is another."""
        if failed.at_destination or (failed.code not in _OF_THE_WAY and failed.fee_msat is None):
            return False
        if self._last_failure_ms is None or begun_ms >= self._last_failure_ms:
            self._last_failure_ms = at_ms
            self._failures += 1
        return self.is_possible

    def look(self, standing: Standing) -> None:
        """Judge by how the session stands now. What was found to be due stays so."""
        no_way = standing.hold in NO_WAY
        if self._failures or no_way or standing.is_narrow:
            self.is_near = True
        if no_way:
            self.is_due = True
        elif standing.is_delivering:
            is_failing = standing.is_short and self._failures >= FAILURES_WHEN_SHORT
            is_starving = standing.is_at_reserve and (self._failures > 0 or standing.is_narrow)
            self.is_due = self.is_due or is_failing or is_starving
        else:
            self.is_due = self.is_due or self._failures >= FAILURES_AT_REST

    @property
    def is_awaited(self) -> bool:
        """Due, and not known to be impossible: no reason to give the session up."""
        return self.is_possible and self.is_due


STARVED_MS = 2_000
"""The session stands still for want of a payment that may not be made: after this long it is given up."""


UNSTARTED_MS = 1_500
"""Enough is paid, yet the socket does not begin: after this long it is offered more."""


_STOP_OF_HOLD = {
    Hold.PREPAID: ("prepaid_limit", "what the socket wants in advance exceeds max_prepaid_msat"),
    Hold.SESSION: ("budget_spent", "max_session_msat is used up"),
    Hold.DAY: ("budget_spent", "max_day_msat is used up"),
    Hold.FEE: ("fee_too_high", "no allowed payment is large enough to keep its routing fee within max_fee_ratio"),
    Hold.MINIMUM: (
        "channel_minimum",
        "a channel on the way carries nothing as small as max_increment_msat and max_prepaid_msat allow",
    ),
    Hold.NO_ROUTE: ("payment_failed", "no single route carries even the smallest payment"),
    Hold.BELOW_MINIMUM: (BELOW_MIN_INCREMENT, "the socket takes no payment as small as payment.max_increment_msat"),
    Hold.EXPOSURE: ("onchain_limit", "the socket's exposure cap or the value of the cable's inputs is used up"),
}


_ONCHAIN_STOP_OF_HOLD = _STOP_OF_HOLD | {
    Hold.PREPAID: ("prepaid_limit", "what the socket wants in advance exceeds onchain.max_prepaid_sat or its own cap"),
    Hold.BELOW_MINIMUM: (
        BELOW_MIN_INCREMENT,
        "the socket takes no version that pays only onchain.max_increment_sat more",
    ),
}


def gives_up(hold: Hold) -> bool:
    """Whether a session that stands still for this ends."""
    return hold in _STOP_OF_HOLD


def stop_of(hold: Hold, method: MethodName) -> tuple[str, str]:
    """The stop reason, and a message, of a session given up for that."""
    return (_STOP_OF_HOLD if method == "keysend" else _ONCHAIN_STOP_OF_HOLD)[hold]


class Standstill:
    """Of a session that does not move although nothing is under way: it is helped on, or given up."""

    def __init__(self) -> None:
        self.boost = 0
        """How often the socket did not begin though enough was paid."""
        self._starved_since_ms: int | None = None
        self._unstarted_since_ms: int | None = None

    def ends(self) -> None:
        """It moves."""
        self._starved_since_ms = self._unstarted_since_ms = None

    def is_starved(self, hold: Hold, now_ms: int) -> bool:
        """It still stands, and for ``hold`` nothing is paid. True when it is to be given up."""
        if gives_up(hold):
            if self._starved_since_ms is None:
                self._starved_since_ms = now_ms
            return now_ms - self._starved_since_ms >= STARVED_MS
        self._starved_since_ms = None
        if hold is Hold.ENOUGH:
            if self._unstarted_since_ms is None:
                self._unstarted_since_ms = now_ms
            elif now_ms - self._unstarted_since_ms >= UNSTARTED_MS and self.boost < MAX_BOOST:
                self.boost += 1
                self._unstarted_since_ms = None
        return False


OWN_LEDGER = frozenset({"ledger_busy", "ledger_full", "ledger_not_writable", "ledger_damaged", "ledger_failed"})
"""Failures before anything was sent, for want of a record."""
