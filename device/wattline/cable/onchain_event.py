"""What the worker that pays on-chain tells besides what becomes of single payments."""

from __future__ import annotations

from dataclasses import dataclass


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
