"""What can happen to a session. The shell makes these; :func:`wattline.core.session.step` answers them.

What the shell has to do after a step, in the order given.

The money errors: what :func:`wattline.core.session.step` raises instead of going on.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.core.checks import check_whole
from wattline.core.errors import StopError
from wattline.core.session.state import DISPLACEMENTS, FAULTS, StopReason


@dataclass(frozen=True, slots=True)
class CreditArrived:
    """A payment was received for this session. Raises StopError ``amount_invalid`` unless it is positive."""

    amount_msat: int

    def __post_init__(self) -> None:
        check_whole("amount_invalid", "amount_msat", self.amount_msat, 1)


@dataclass(frozen=True, slots=True)
class OnchainCredited:
    """So much was handed over on the chain for this session by now, altogether: what of it is not credited yet, is. May
    be told again. Raises StopError ``amount_invalid`` unless it is positive."""

    total_msat: int

    def __post_init__(self) -> None:
        check_whole("amount_invalid", "total_msat", self.total_msat, 1)


@dataclass(frozen=True, slots=True)
class CreditChecked:
    """What was withheld after a restart is worth what it was: it may be used."""


@dataclass(frozen=True, slots=True)
class MeterValue:
    """A reading of the outlet's meter that the driver trusts, taken just now. To be fed in every state: a relay closes
    only on a meter that has just been read."""

    energy_uwh: int
    """Cumulative since the open of the session. Any value below an earlier one (or below 0) stops delivery."""
    power_mw: int
    """Momentary; negative when power flows back."""
    has_voltage: bool = True
    """The supply is there; also where the meter could not see it, because the relay between them is open."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. To be fed at least once per meter interval, and more often than the longest lease."""


@dataclass(frozen=True, slots=True)
class CableSeen:
    """The cable's stream is up (again)."""


@dataclass(frozen=True, slots=True)
class CableClosed:
    """The cable ends the session."""


@dataclass(frozen=True, slots=True)
class CableLost:
    """The cable's stream was cut. The session goes on for cable_lost_s, unless CableSeen comes before."""


@dataclass(frozen=True, slots=True)
class OperatorStopped:
    """The socket's operator ends the session."""


@dataclass(frozen=True, slots=True)
class DeliveryFault:
    """Delivery cannot be trusted any more. Raises StopError ``not_a_fault`` for a reason that is none."""

    stop_reason: StopReason

    def __post_init__(self) -> None:
        if self.stop_reason not in FAULTS:
            raise StopError("not_a_fault", f"{self.stop_reason} is not a fault; allowed: {', '.join(sorted(FAULTS))}")


@dataclass(frozen=True, slots=True)
class Displaced:
    """Somebody else has the outlet. Ignored by a session that has begun to deliver. Raises StopError ``not_a_fault``
    for a reason that is none of DISPLACEMENTS."""

    stop_reason: StopReason

    def __post_init__(self) -> None:
        if self.stop_reason not in DISPLACEMENTS:
            allowed = ", ".join(sorted(DISPLACEMENTS))
            raise StopError("not_a_fault", f"{self.stop_reason} displaces nobody; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class BooksClosed:
    """While SETTLING: the relay is confirmed open, no payment is in flight, the journal was read to its end and the
    final meter value was taken. Nothing will be added to the account any more."""


@dataclass(frozen=True, slots=True)
class CreditReturned:
    """After the Refund effect: this much of the unused credit, altogether, went back without a payment, because it was
    handed over and never taken. What is left is still to be refunded. Telling it again changes nothing. Raises
    StopError ``amount_invalid`` unless it is positive."""

    total_msat: int

    def __post_init__(self) -> None:
        check_whole("amount_invalid", "total_msat", self.total_msat, 1)


@dataclass(frozen=True, slots=True)
class RefundSent:
    """The refund arrived. Raises StopError ``amount_invalid`` for impossible amounts."""

    amount_msat: int
    fee_msat: int
    """Routing fee that left the socket's wallet on top."""

    def __post_init__(self) -> None:
        check_whole("amount_invalid", "amount_msat", self.amount_msat, 1)
        check_whole("amount_invalid", "fee_msat", self.fee_msat, 0)


@dataclass(frozen=True, slots=True)
class RefundOwed:
    """The refund cannot be sent now (no route, nothing above the reserve); it will be tried again."""


@dataclass(frozen=True, slots=True)
class RefundKept:
    """The refund is not worth sending: its fee would exceed it, or it is too small, what was lost on the chain taken
    off."""


Event = (
    CreditArrived
    | OnchainCredited
    | CreditChecked
    | MeterValue
    | Tick
    | CableSeen
    | CableClosed
    | CableLost
    | OperatorStopped
    | DeliveryFault
    | Displaced
    | BooksClosed
    | CreditReturned
    | RefundSent
    | RefundOwed
    | RefundKept
)


@dataclass(frozen=True, slots=True)
class HoldRelay:
    """Keep the relay closed for ``lease_ms`` from the ``now_ms`` of the step, no longer unless told again. Carry it out
    at once: what it is late delivers unpaid energy."""

    lease_ms: int
    """1 to MAX_LEASE_MS; never longer than the credit lasts at rated power."""


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Open the relay now. Also sent when it should be open already."""


@dataclass(frozen=True, slots=True)
class SendStatement:
    """Tell the cable now, beside the shell's own periodic statements."""


@dataclass(frozen=True, slots=True)
class Settle:
    """SETTLING began: wait until the relay is confirmed open and nothing is in flight, read the journal to its end,
    take a last meter value, then say BooksClosed."""


@dataclass(frozen=True, slots=True)
class Refund:
    """Send unused credit back, then say RefundSent, RefundOwed or RefundKept (it is not worth it); before that, say
    CreditReturned for what need never be taken. May come again for the same refund after
    a restart: the sender's durable intents see to it that it is paid once."""

    budget_msat: int
    """Amount and routing fee together must not exceed this."""


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """The session is CLOSED, or its refund has changed since: write, sign and send a (new) receipt."""


Effect = HoldRelay | OpenRelay | SendStatement | Settle | Refund | WriteReceipt


class CreditTooLateError(StopError):
    """A credit for a session that can no longer use it. Code ``session_closed``; book the payment as an orphan."""

    def __init__(self, session_id: str, amount_msat: int) -> None:
        super().__init__(
            "session_closed",
            f"session {session_id} can take no more credit: {amount_msat} msat are an orphan, to be refunded",
        )


class RefundTooLargeError(StopError):
    """A refund whose amount and fee are more than the unused credit. Code ``refund_too_large``."""

    def __init__(self, amount_msat: int, fee_msat: int, unused_msat: int) -> None:
        super().__init__(
            "refund_too_large",
            f"a refund of {amount_msat} msat with {fee_msat} msat of fee is more than the unused {unused_msat} msat",
        )


class RefundNotDueError(StopError):
    """Money was sent as a refund that this session did not ask for. Code ``refund_not_due``; somebody must look."""

    def __init__(self, session_id: str, amount_msat: int) -> None:
        super().__init__(
            "refund_not_due", f"session {session_id} owes no refund, yet {amount_msat} msat were sent as one"
        )
