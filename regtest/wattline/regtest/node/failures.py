"""Why an htlc failed, as BOLT #4 writes it and as lightningd names it."""

from __future__ import annotations

from typing import Any

from wattline.core.record import encode_bigsize

Json = dict[str, Any]

_NAMES = {
    0x2002: "TEMPORARY_NODE_FAILURE",
    0x6002: "PERMANENT_NODE_FAILURE",
    0x6003: "REQUIRED_NODE_FEATURE_MISSING",
    0xC004: "INVALID_ONION_VERSION",
    0xC005: "INVALID_ONION_HMAC",
    0xC006: "INVALID_ONION_KEY",
    0x1007: "TEMPORARY_CHANNEL_FAILURE",
    0x4008: "PERMANENT_CHANNEL_FAILURE",
    0x4009: "REQUIRED_CHANNEL_FEATURE_MISSING",
    0x400A: "UNKNOWN_NEXT_PEER",
    0x100B: "AMOUNT_BELOW_MINIMUM",
    0x100C: "FEE_INSUFFICIENT",
    0x100D: "INCORRECT_CLTV_EXPIRY",
    0x100E: "EXPIRY_TOO_SOON",
    0x400F: "INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS",
    0x0012: "FINAL_INCORRECT_CLTV_EXPIRY",
    0x0013: "FINAL_INCORRECT_HTLC_AMOUNT",
    0x1014: "CHANNEL_DISABLED",
    0x0015: "EXPIRY_TOO_FAR",
    0x4016: "INVALID_ONION_PAYLOAD",
    0x0017: "MPP_TIMEOUT",
}
DESTINATION_FAILED_FOR_GOOD = 203
TRY_OTHER_ROUTE = 204

TEMPORARY_CHANNEL_FAILURE = bytes.fromhex("1007") + (0).to_bytes(2, "big")
UNKNOWN_NEXT_PEER = bytes.fromhex("400a")
INVALID_ONION_HMAC = bytes.fromhex("c005") + bytes(32)


def failcode(message: bytes) -> int:
    return int.from_bytes(message[:2], "big")


def failcode_name(code: int) -> str:
    return "WIRE_" + _NAMES.get(code, f"INVALID_{code}")


def unknown_payment(amount_msat: int, height: int) -> bytes:
    """incorrect_or_unknown_payment_details."""
    return bytes.fromhex("400f") + amount_msat.to_bytes(8, "big") + height.to_bytes(4, "big")


def invalid_payload(field: int, offset: int) -> bytes:
    """invalid_onion_payload: the type that is wrong, and where it stands."""
    return bytes.fromhex("4016") + encode_bigsize(field) + offset.to_bytes(2, "big")


def fee_insufficient(amount_msat: int) -> bytes:
    return bytes.fromhex("100c") + amount_msat.to_bytes(8, "big") + (0).to_bytes(2, "big")


def incorrect_expiry(cltv_expiry: int) -> bytes:
    return bytes.fromhex("100d") + cltv_expiry.to_bytes(4, "big") + (0).to_bytes(2, "big")


def final_incorrect_expiry(cltv_expiry: int) -> bytes:
    return bytes.fromhex("0012") + cltv_expiry.to_bytes(4, "big")


def final_incorrect_amount(amount_msat: int) -> bytes:
    return bytes.fromhex("0013") + amount_msat.to_bytes(8, "big")


def failure_data(message: bytes, erring_index: int) -> Json:
    """The fields of a failed payment's error."""
    return {
        "erring_index": erring_index,
        "failcode": failcode(message),
        "failcodename": failcode_name(failcode(message)),
        "raw_message": message.hex(),
    }
