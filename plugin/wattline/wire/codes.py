"""The codes by which a socket says no, as charging.proto lists them."""

from __future__ import annotations

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
