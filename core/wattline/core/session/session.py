"""The value that a session is at one moment.

What a session was opened under; it keeps its terms whatever the socket's settings become.

The money of a session.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from wattline.core.checks import check_whole
from wattline.core.errors import StopError, UsageError
from wattline.core.ids import decode_session_id
from wattline.core.session.event import RefundTooLargeError
from wattline.core.session.state import Method, RefundStatus, State, StopReason
from wattline.core.tariff import Tariff, left_ms, worth_msat

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
        check_whole("terms_invalid", "rated_power_mw", self.rated_power_mw, 1, 1_000_000_000, UsageError)
        check_whole("terms_invalid", "meter_interval_ms", self.meter_interval_ms, 1, MAX_LEASE_MS, UsageError)
        for name in ("pause_max_s", "open_timeout_s", "cable_lost_s"):
            check_whole("terms_invalid", name, getattr(self, name), 0, 31_536_000, UsageError)
        check_whole("terms_invalid", "credit_cap_msat", self.credit_cap_msat, 1, 10**18, UsageError)
        check_whole("terms_invalid", "min_refund_msat", self.min_refund_msat, 1, 10**18, UsageError)
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


@dataclass(frozen=True, slots=True)
class Account:
    """What was received, earned and given back, in msat. Changes only by its methods, which keep the rules."""

    credited_msat: int = 0
    """Received for this session."""
    charged_msat: int = 0
    """Owed for what was delivered. May exceed the credit by the energy of less than a meter interval."""
    refunded_msat: int = 0
    """Given back, without the routing fee."""
    payments: int = 0
    """How many payments the credit came in."""
    onchain_msat: int = 0
    """The part of the credit that was handed over on the chain."""

    def __post_init__(self) -> None:
        for name in ("credited_msat", "charged_msat", "refunded_msat", "payments", "onchain_msat"):
            check_whole("amount_invalid", name, getattr(self, name), 0)
        if self.onchain_msat > self.credited_msat:
            raise StopError(
                "account_invalid", f"{self.onchain_msat} msat from the chain of {self.credited_msat} msat credited"
            )
        if self.refunded_msat and self.refunded_msat > self.credited_msat - self.charged_msat:
            raise StopError(
                "account_invalid",
                f"{self.refunded_msat} msat refunded of {self.credited_msat - self.charged_msat} msat unused credit",
            )

    @property
    def balance_msat(self) -> int:
        """credited - charged - refunded. Negative when more was delivered than was paid for."""
        return self.credited_msat - self.charged_msat - self.refunded_msat

    def credit(self, amount_msat: int) -> Account:
        """One more payment. Raises StopError ``amount_invalid`` unless it is positive."""
        check_whole("amount_invalid", "amount_msat", amount_msat, 1)
        return replace(self, credited_msat=self.credited_msat + amount_msat, payments=self.payments + 1)

    def credit_onchain(self, total_msat: int) -> Account:
        """One more payment, which makes the credit from the chain ``total_msat`` altogether. Raises StopError
        ``amount_invalid`` unless that is more than before."""
        return replace(self.credit(total_msat - self.onchain_msat), onchain_msat=total_msat)

    def charge_to(self, total_msat: int) -> Account:
        """The charge is now ``total_msat`` altogether. Raises StopError ``charge_fell`` when it was more before: what
        was delivered stays delivered."""
        if total_msat < self.charged_msat:
            raise StopError("charge_fell", f"the charge cannot fall from {self.charged_msat} to {total_msat} msat")
        return replace(self, charged_msat=total_msat)

    def refund(self, amount_msat: int, fee_msat: int) -> Account:
        """``amount_msat`` went back and ``fee_msat`` were paid for its way, both out of the unused credit. Raises
        RefundTooLargeError when that is less, StopError ``amount_invalid`` for impossible amounts."""
        check_whole("amount_invalid", "amount_msat", amount_msat, 1)
        check_whole("amount_invalid", "fee_msat", fee_msat, 0)
        if amount_msat + fee_msat > self.balance_msat:
            raise RefundTooLargeError(amount_msat, fee_msat, self.balance_msat)
        return replace(self, refunded_msat=self.refunded_msat + amount_msat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session. Made by :func:`opened`, changed by :func:`wattline.core.session.step` alone.

    The fields whose name ends in ``at_ms``, ``since_ms`` or ``until_ms`` are in the shell's monotonic time. They mean
    nothing after a restart; :func:`wattline.core.session.restored` sets them anew. All others are worth keeping.
    Raises StopError ``session_invalid`` where the values contradict each other.
    """

    session_id: str
    outlet_id: str
    method: Method
    terms: Terms
    state: State = State.OPEN
    account: Account = field(default_factory=Account)
    energy_uwh: int = 0
    """By the outlet's meter, since the open."""
    delivered_ms: int = 0
    """Time in DELIVERING in which the relay was held."""
    started: bool = False
    """Delivery has begun: the meter was read with the relay held and the supply there. The session fee is due."""
    stop_reason: StopReason | None = None
    """Set exactly in SETTLING and CLOSED."""
    refund_status: RefundStatus = RefundStatus.NONE
    refund_budget_msat: int = 0
    """What a refund and its fee may take together; above 0 from the Refund effect on, when the books are closed."""
    refund_fee_msat: int = 0
    returned_msat: int = 0
    """The part of the refund that needed no payment, because it was handed over and never taken."""
    power_mw: int = 0
    """Of the latest meter value; negative when power flows back."""
    metered_ms: int = 0
    """delivered_ms at the latest meter value: what was delivered since then is not in energy_uwh."""
    at_ms: int = 0
    """Of the latest event."""
    state_since_ms: int = 0
    dark_since_ms: int | None = None
    """Of the first of an unbroken row of meter values without the supply's voltage; None while it is there."""
    metered_at_ms: int | None = None
    """Of the latest meter value; None before the first, and after a restart."""
    held_until_ms: int = 0
    """When the latest lease of the relay ends or ended; later time is not delivered time."""
    is_withheld: bool = False
    """After a restart: its credit is not used before somebody has looked whether it still stands."""
    cable_lost_since_ms: int | None = None
    """None while the cable's stream is up."""

    def __post_init__(self) -> None:
        decode_session_id(self.session_id)
        for name in ("energy_uwh", "delivered_ms", "refund_budget_msat", "refund_fee_msat", "returned_msat"):
            value = getattr(self, name)
            if value < 0:
                raise self._invalid(f"{name} is {value}")
        if not 0 <= self.metered_ms <= self.delivered_ms:
            raise self._invalid(f"metered_ms {self.metered_ms} is outside delivered_ms {self.delivered_ms}")
        if (self.stop_reason is None) is not self.state.is_live:
            raise self._invalid(f"state {self.state} with stop_reason {self.stop_reason}")
        if self.refund_status is not RefundStatus.NONE and self.state is not State.CLOSED:
            raise self._invalid(f"state {self.state} with refund status {self.refund_status}")

    @property
    def takes_credit(self) -> bool:
        """Whether CreditArrived is welcome: until the refund was issued or the session is CLOSED. (New payments are
        better refused as soon as the state is not live.)"""
        return self.state is not State.CLOSED and not self.refund_issued

    @property
    def refund_issued(self) -> bool:
        """The Refund effect has been given: the account is final but for the refund itself."""
        return self.refund_budget_msat > 0

    @property
    def was_paid(self) -> bool:
        """Something was paid for it: what is written of it is kept for ever."""
        return self.account.payments > 0 or self.started or self.refund_status is not RefundStatus.NONE

    @property
    def left_ms(self) -> int:
        """How much longer the credit lasts at max(rated, measured) power, as if everything since the latest meter value
        had been delivered at that power too. In ms of delivery, floor."""
        power_mw = max(self.terms.rated_power_mw, abs(self.power_mw))
        credited_msat = self.account.credited_msat - self.account.refunded_msat
        lasting_ms = left_ms(self.terms.tariff, credited_msat, self.energy_uwh, self.metered_ms, power_mw)
        return max(0, lasting_ms - (self.delivered_ms - self.metered_ms))

    def _invalid(self, reason: str) -> StopError:
        return StopError("session_invalid", f"session {self.session_id}: {reason}")


def opened(session_id: str, outlet_id: str, method: Method, terms: Terms, now_ms: int) -> Session:
    """A new session, OPEN, with the cable's stream up."""
    return Session(
        session_id=session_id,
        outlet_id=outlet_id,
        method=method,
        terms=terms,
        at_ms=now_ms,
        state_since_ms=now_ms,
    )
