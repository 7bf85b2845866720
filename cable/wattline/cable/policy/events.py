"""What the workers that pay tell the thread that decides: what became of single payments, by either way, and what else
happens to a payment on the chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MethodName = Literal["keysend", "onchain"]
"""How one payment is made; the names of :data:`wattline.cable.link.offer.METHODS`."""


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
