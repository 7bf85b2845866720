"""What a field of a message may hold.

The codes by which a socket says no, as charging.proto lists them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number (or an enum's), both ends included. Of an enum any number will do: later versions have more."""

    lowest: int
    highest: int

    @property
    def allowed(self) -> str:
        return f"{self.lowest} to {self.highest}"

    def takes(self, value: int) -> bool:
        return self.lowest <= value <= self.highest


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    allowed = "true or false"

    def takes(self, value: bool) -> bool:
        return value in (True, False)


@dataclass(frozen=True, slots=True)
class Octets:
    """Bytes; both lengths included."""

    shortest: int
    longest: int

    @property
    def allowed(self) -> str:
        return f"{self.shortest} to {self.longest} bytes" if self.shortest != self.longest else f"{self.longest} bytes"

    def takes(self, value: bytes) -> bool:
        return self.shortest <= len(value) <= self.longest


@dataclass(frozen=True, slots=True)
class Shape:
    """Text of an exact form: an id, a code, hex. It is printable ASCII without blanks by that form."""

    pattern: re.Pattern[str]
    allowed: str
    may_be_empty: bool = False

    def takes(self, value: str) -> bool:
        return (not value and self.may_be_empty) or self.pattern.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Prose:
    """Text for people. It is never refused: what it must not hold is escaped, what is too long is cut."""

    longest: int


@dataclass(frozen=True, slots=True)
class Part:
    """A message of its own, with bounds of its own."""

    required: bool = True


@dataclass(frozen=True, slots=True)
class Many:
    """A repeated field: each is an ``item``."""

    item: Whole | Part
    most: int


Kind = Whole | Flag | Octets | Shape | Prose | Part | Many


REFUSALS = frozenset(
    {
        "bad_request",
        "cable_refused",
        "ledger_failed",
        "method_not_supported",
        "not_allowed",
        "not_closed",
        "outlet_busy",
        "outlet_faulted",
        "replaced",
        "shutting_down",
        "starting",
        "tariff_changed",
        "too_many_offers",
        "too_many_opens",
        "unknown_outlet",
        "unknown_session",
        "wrong_token",
    }
)
VERSION_REFUSALS = frozenset(
    {
        "bad_input",
        "bad_locktime",
        "bad_sequence",
        "bad_version",
        "below_min_increment",
        "credit_cap",
        "dust_output",
        "exposure_cap",
        "fee_too_high",
        "fee_too_low",
        "input_refused",
        "input_spent",
        "input_unconfirmed",
        "not_invited",
        "not_signed",
        "onchain_unavailable",
        "other_inputs",
        "policy",
        "session_closed",
        "too_many_attempts",
        "value_not_larger",
        "wrong_output",
    }
)
SOCKET_CODES = REFUSALS | VERSION_REFUSALS
UNKNOWN = "socket_refuses"


def socket_code(code: str) -> str:
    """``code`` as the reason why a session ends: one that a socket may give, else UNKNOWN. A socket must not speak for
    the cable: a refusal called ``done`` would be a good end."""
    return code if code in SOCKET_CODES else UNKNOWN
