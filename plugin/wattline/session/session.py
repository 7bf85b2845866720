"""The value that a session is at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from wattline.errors import StopError
from wattline.session.account import Account
from wattline.session.identity import decode_session_id
from wattline.session.state import Method, RefundStatus, State, StopReason
from wattline.session.terms import Terms
from wattline.tariff import left_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session. Made by :func:`opened`, changed by :func:`wattline.session.step` alone.

    The fields whose name ends in ``at_ms``, ``since_ms`` or ``until_ms`` are in the shell's monotonic time. They mean
    nothing after a restart; :func:`wattline.session.restored` sets them anew. All others are worth keeping.
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
    def relay_held(self) -> bool:
        """Whether the relay is to be closed."""
        return self.state is State.DELIVERING

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
