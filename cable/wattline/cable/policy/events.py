"""The values that reach the deciding thread, and those that leave it.

What the socket says (see charging.proto for each field), what the workers that pay tell of single payments and of the
transaction on the chain, and what is decided: a payment to begin, a stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from wattline.core.aggregate import OnchainRules
from wattline.core.tariff import Tariff

MethodName = Literal["keysend", "onchain"]
"""How one payment is made."""
METHODS: tuple[MethodName, ...] = get_args(MethodName)


@dataclass(frozen=True, slots=True)
class Arrived:
    """The socket's node has it."""

    sequence: int
    amount_msat: int
    amount_sent_msat: int
    duration_ms: int | None
    """None when it was in doubt for a while."""
    signed_sat: int | None = None
    """On-chain: the largest value that was handed over by now."""
    accepted_sat: int | None = None
    """On-chain: the value of the version that the socket holds by its own word, now that this one is resolved."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It came back, or was never sent."""

    sequence: int
    amount_msat: int
    code: str
    message: str
    at_destination: bool = False
    final: bool = False
    """Trying again is useless."""
    fee_msat: int | None = None
    """The fee that was too high."""
    least_msat: int | None = None
    """The amount was too small; this much would pass."""
    signed_sat: int | None = None
    """On-chain: the largest value that was handed over by now, this one included unless it never left."""
    accepted_sat: int | None = None
    """As above."""


@dataclass(frozen=True, slots=True)
class InDoubt:
    """It may arrive yet; it stays in flight until the node knows."""

    sequence: int
    amount_msat: int
    message: str
    signed_sat: int | None = None
    """On-chain: the largest value that was handed over by now."""


@dataclass(frozen=True, slots=True)
class DoubtsChecked:
    """An attempt to resolve doubts has ended; those resolved were told before."""

    error: str = ""
    method: MethodName = "keysend"


PaymentEvent = Arrived | Failed | InDoubt | DoubtsChecked


@dataclass(frozen=True, slots=True)
class OnchainTerms:
    """Within what a session is paid on-chain, in satoshi."""

    floor_sat: int
    """The smallest value of any version."""
    most_sat: int
    """The largest: what the socket takes, and what the inputs hold."""
    credit_cap_sat: int
    """The most unused credit that the socket takes."""
    fee_sat: int


@dataclass(frozen=True, slots=True)
class OnchainReady:
    """Versions can be made; also said when it was asked what the socket holds."""

    terms: OnchainTerms
    signed_sat: int
    """The largest value that was ever handed over."""
    accepted_sat: int
    """What the socket has credited of it."""
    number: int
    """In how many versions."""


@dataclass(frozen=True, slots=True)
class OnchainFailed:
    """No version can be made."""

    code: str
    message: str
    passing: bool
    """Asking again may help."""


@dataclass(frozen=True, slots=True)
class FinalSigned:
    """The final version is handed over."""

    value_sat: int


@dataclass(frozen=True, slots=True)
class FinalFailed:
    """It could not be made (now)."""

    message: str


OnchainEvent = OnchainReady | OnchainFailed | FinalSigned | FinalFailed


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
    """The final account as it was signed; see :mod:`wattline.cable.link.transport`."""

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
class RefusedVersion:
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


OnchainMessage = OnchainInvitation | VersionAccepted | RefusedVersion | FinalDue


Message = Opened | Statement | TariffChange | PaymentRefused | Refusal | SignedReceipt | OnchainMessage


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt whose signature has been checked; see ``Receipt`` in charging.proto for each field."""

    session_id: str
    node_id: str
    outlet_id: str
    stop_reason: str
    tariff: Tariff
    energy_uwh: int
    delivered_ms: int
    credited_msat: int
    charged_msat: int
    refunded_msat: int
    balance_msat: int
    payments: int
    refund_status: str
    """``none``, ``sent``, ``owed`` or ``kept``."""
    refund_fee_msat: int
    refund_payment_hash: str
    signed: SignedReceipt
    onchain_credited_msat: int = 0
    returned_msat: int = 0
    onchain_txid: str = ""
    onchain_value_sat: int = 0
    from_restored_ledger: bool = False

    @property
    def refunded_by_payment_msat(self) -> int:
        """The part of the refund that goes over Lightning; the rest was never taken."""
        return self.refunded_msat - self.returned_msat

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
class Claim:
    """What a statement or a receipt says, cumulative since the open."""

    energy_uwh: int
    delivered_ms: int
    credited_msat: int
    charged_msat: int
    refunded_msat: int
    balance_msat: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the session ends; ``reason`` is the stable code that the socket is told."""

    reason: str
    message: str
    distrust: bool = False
    """The socket's account is wrong."""
    at_once: bool = False
    """Close without waiting for what is under way."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment to begin now; it is counted already."""

    sequence: int
    amount_msat: int
    maxfee_msat: int
    method: MethodName = "keysend"
    version: WantedVersion | None = None
    """On-chain: the one that makes it."""


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A version that is to be signed, by what it pays in all: whatever the socket says of earlier ones does
    not change that."""

    value_sat: int
    most_sat: int
    """The largest value that the cable's own caps allow any version now; whoever signs holds the value against it."""
