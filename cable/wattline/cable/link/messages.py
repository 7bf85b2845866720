"""What the socket says, in the cable's own words: the wire's messages turned into values, each within its bounds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wattline.cable.link.offer import tariff_from
from wattline.cable.policy.onchain_limits import rules_from
from wattline.cable.policy.reconciliation import Claim
from wattline.core.aggregate import OnchainRules
from wattline.core.tariff import Tariff
from wattline.core.wire.reading import admitted
from wattline.v1 import charging_pb2 as pb


class SocketState(StrEnum):
    """The state of a session as the socket tells it."""

    OPEN = "open"
    DELIVERING = "delivering"
    PAUSED = "paused"
    SETTLING = "settling"
    CLOSED = "closed"
    UNKNOWN = "unknown"

    @property
    def is_live(self) -> bool:
        """The session can be paid for."""
        return self in (SocketState.OPEN, SocketState.DELIVERING, SocketState.PAUSED)


_STATES = {
    pb.SESSION_STATE_OPEN: SocketState.OPEN,
    pb.SESSION_STATE_DELIVERING: SocketState.DELIVERING,
    pb.SESSION_STATE_PAUSED: SocketState.PAUSED,
    pb.SESSION_STATE_SETTLING: SocketState.SETTLING,
    pb.SESSION_STATE_CLOSED: SocketState.CLOSED,
}


@dataclass(frozen=True, slots=True)
class Statement:
    """The socket's running account; see ``Statement`` in charging.proto for each field."""

    session_id: str
    sequence: int
    state: SocketState
    relay_closed: bool
    energy_uwh: int
    delivered_ms: int
    power_mw: int
    voltage_mv: int
    current_ma: int
    credited_msat: int
    charged_msat: int
    refunded_msat: int
    balance_msat: int
    in_flight_msat: int
    payments: int
    min_increment_msat: int
    stop_reason: str
    onchain_credited_msat: int = 0

    @property
    def claim(self) -> Claim:
        return Claim(
            self.energy_uwh,
            self.delivered_ms,
            self.credited_msat,
            self.charged_msat,
            self.refunded_msat,
            self.balance_msat,
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """The socket has opened or resumed the session."""

    session_id: str
    tariff: Tariff
    statement: Statement
    resumed: bool


@dataclass(frozen=True, slots=True)
class TariffChange:
    """New prices for sessions opened from ``effective_at`` on; this one keeps its own."""

    tariff: Tariff
    effective_at: int


@dataclass(frozen=True, slots=True)
class PaymentRefused:
    """A payment that the socket failed at the htlc."""

    payment_hash: str
    amount_msat: int
    code: str
    message: str
    min_increment_msat: int = 0
    """The smallest that is taken now; 0 when the socket does not say."""
    more: int = 0
    """So many others came since the last that was looked at."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The socket will not do what was asked; the stream is over."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """The final account as it was signed; see :mod:`wattline.cable.link.receipt`."""

    receipt: bytes
    signature: str


@dataclass(frozen=True, slots=True)
class OnchainInvitation:
    """Where the session's aggregate pays to, under which rules, and what the socket holds of it already."""

    address: str
    script: str
    """scriptPubKey, hex."""
    rules: OnchainRules
    newest_number: int
    newest_value_sat: int


@dataclass(frozen=True, slots=True)
class VersionAccepted:
    """The version is stored and credited (a final one credits nothing)."""

    number: int
    value_sat: int
    is_final: bool


@dataclass(frozen=True, slots=True)
class VersionRefused:
    """The version is not credited; or, with number 0, the request for an address is refused."""

    number: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class FinalDue:
    """The session settles, and a version of exactly this value is wanted."""

    value_sat: int
    charged_msat: int
    keysend_msat: int


OnchainMessage = OnchainInvitation | VersionAccepted | VersionRefused | FinalDue
Message = Opened | Statement | TariffChange | PaymentRefused | Refusal | SignedReceipt | OnchainMessage


def message_from(response: pb.ChargeResponse) -> Message | None:
    """The message in ``response``; None for a kind that this version does not know. Raises OutOfRange."""
    admitted(response)
    match response.WhichOneof("message"):
        case "opened":
            opened = response.opened
            return Opened(
                opened.session_id, tariff_from(opened.tariff), statement_from(opened.statement), opened.resumed
            )
        case "statement":
            return statement_from(response.statement)
        case "tariff_change":
            return TariffChange(tariff_from(response.tariff_change.tariff), response.tariff_change.effective_at)
        case "payment_refused":
            refused = response.payment_refused
            return PaymentRefused(
                refused.payment_hash, refused.amount_msat, refused.code, refused.message, refused.min_increment_msat
            )
        case "refusal":
            return Refusal(response.refusal.code, response.refusal.message)
        case "receipt":
            return SignedReceipt(response.receipt.receipt, response.receipt.signature)
        case _:
            return _onchain_message_from(response)


def _onchain_message_from(response: pb.ChargeResponse) -> OnchainMessage | None:
    match response.WhichOneof("message"):
        case "onchain_invitation":
            invitation = response.onchain_invitation
            return OnchainInvitation(
                invitation.address,
                invitation.script,
                rules_from(invitation.rules),
                invitation.newest_number,
                invitation.newest_value_sat,
            )
        case "version_accepted":
            accepted = response.version_accepted
            return VersionAccepted(accepted.number, accepted.value_sat, accepted.is_final)
        case "version_refused":
            refused = response.version_refused
            return VersionRefused(refused.number, refused.code, refused.message)
        case "final_due":
            due = response.final_due
            return FinalDue(due.value_sat, due.charged_msat, due.keysend_msat)
        case _:
            return None


def statement_from(message: pb.Statement) -> Statement:
    """The values of a statement off the wire."""
    return Statement(
        session_id=message.session_id,
        sequence=message.sequence,
        state=_STATES.get(message.state, SocketState.UNKNOWN),
        relay_closed=message.relay_closed,
        energy_uwh=message.energy_uwh,
        delivered_ms=message.delivered_ms,
        power_mw=message.power_mw,
        voltage_mv=message.voltage_mv,
        current_ma=message.current_ma,
        credited_msat=message.credited_msat,
        charged_msat=message.charged_msat,
        refunded_msat=message.refunded_msat,
        balance_msat=message.balance_msat,
        in_flight_msat=message.in_flight_msat,
        payments=message.payments,
        min_increment_msat=message.min_increment_msat,
        stop_reason=message.stop_reason,
        onchain_credited_msat=message.onchain_credited_msat,
    )
