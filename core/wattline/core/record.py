"""What a wattline payment carries, and what Core Lightning's keysend plugin makes of it.

The record is TLV type 1463899221 of the final hop, its value the text ``wattline:1:<session_id>:<sequence>``. The
keysend plugin of the receiving node writes the longest text of a payment into the description of the invoice that it
makes, so lightningd's own database says what the payment was for.

TLV streams as BOLT #1 defines them: increasing types, minimally encoded BigSize numbers, nothing left over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from wattline.core.errors import StopError
from wattline.core.ids import decode_session_id

U64_MAX = (1 << 64) - 1


class PayloadError(StopError):
    """Bytes that are not the TLV stream they should be; always this class, whatever is wrong with them."""

    def __init__(self, message: str) -> None:
        super().__init__("malformed_payload", message)


def encode_bigsize(number: int) -> bytes:
    """``number`` (0 to 2^64 - 1) as a minimal BigSize (BOLT #1). Raises ValueError beyond that range."""
    if not 0 <= number <= U64_MAX:
        raise ValueError(f"a BigSize holds 0 to 2^64 - 1, not {number}")
    if number < 0xFD:
        return bytes([number])
    if number <= 0xFFFF:
        return b"\xfd" + number.to_bytes(2, "big")
    if number <= 0xFFFFFFFF:
        return b"\xfe" + number.to_bytes(4, "big")
    return b"\xff" + number.to_bytes(8, "big")


def decode_bigsize(data: bytes, offset: int) -> tuple[int, int]:
    """The BigSize at ``offset`` and the offset behind it. Raises PayloadError when cut off or not minimal."""
    if offset >= len(data):
        raise PayloadError(f"the data ends at offset {offset}, where a number should begin")
    first = data[offset]
    size = {0xFD: 2, 0xFE: 4, 0xFF: 8}.get(first)
    if size is None:
        return first, offset + 1
    end = offset + 1 + size
    if end > len(data):
        raise PayloadError(f"the data ends inside the number at offset {offset}")
    number = int.from_bytes(data[offset + 1 : end], "big")
    if len(encode_bigsize(number)) != size + 1:
        raise PayloadError(f"the number at offset {offset} is not minimally encoded")
    return number, end


def encode_truncated(number: int) -> bytes:
    """``number`` as a truncated big-endian integer (``tu64``, BOLT #1): no leading zero bytes, zero is empty."""
    if not 0 <= number <= U64_MAX:
        raise ValueError(f"a tu64 holds 0 to 2^64 - 1, not {number}")
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def encode_tlv_stream(fields: Mapping[int, bytes]) -> bytes:
    """``fields`` by type, in increasing order of type (BOLT #1)."""
    return b"".join(
        encode_bigsize(number) + encode_bigsize(len(value)) + value for number, value in sorted(fields.items())
    )


def parse_tlv_stream(data: bytes) -> dict[int, bytes]:
    """The fields of a TLV stream by type, in their order. For any other bytes raises PayloadError and nothing else."""
    fields: dict[int, bytes] = {}
    offset, newest = 0, -1
    while offset < len(data):
        start = offset
        number, offset = decode_bigsize(data, offset)
        if number <= newest:
            raise PayloadError(f"type {number} at offset {start} follows type {newest}; types must increase")
        length, offset = decode_bigsize(data, offset)
        if length > len(data) - offset:
            raise PayloadError(f"type {number} claims {length} bytes, {len(data) - offset} are left")
        fields[number] = data[offset : offset + length]
        offset += length
        newest = number
    return fields


RECORD_TLV_TYPE = 1463899221
"""0x57415454 ('WATT') + 1: odd, so that nodes which do not know it ignore it (BOLT #1)."""
PREIMAGE_TLV_TYPE = 5482373484
"""The sender's preimage: what makes a payment a keysend."""
SEQUENCE_MAX = 2**63 - 1
DESCRIPTION_PREFIX = "keysend: "

_RECORD = re.compile(r"wattline:1:([^:]*):([^:]*)")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_AMOUNT_TYPE = 2
_QUICK_MARKS = (RECORD_TLV_TYPE.to_bytes(4, "big").hex(), b"wattline".hex())
# Bytes that json_escape() writes as \uXXXX, which the `invoice` command refuses ("should be a string (without \u)").
_REFUSED_BY_INVOICE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")

__all__ = [
    "DESCRIPTION_PREFIX",
    "PREIMAGE_TLV_TYPE",
    "RECORD_TLV_TYPE",
    "SEQUENCE_MAX",
    "PayloadError",
    "Record",
    "RecordError",
    "format_record",
    "invoice_description",
    "parse_payload",
    "parse_record",
    "quick_test",
]


class RecordError(StopError):
    """A text that is not a wattline record in its one canonical form."""

    def __init__(self, message: str) -> None:
        super().__init__("malformed_record", message)


@dataclass(frozen=True, slots=True)
class Record:
    """Which payment of which session. Raises RecordError where a value could not stand in a record."""

    session_id: str
    """26 characters of Crockford base32 (16 bytes), upper case."""
    sequence: int
    """0 to 2^63 - 1; each payment of a session has its own."""

    def __post_init__(self) -> None:
        try:
            decode_session_id(self.session_id)
        except StopError as error:
            raise RecordError(error.message) from error
        if not 0 <= self.sequence <= SEQUENCE_MAX:
            raise RecordError(f"the sequence must be 0 to 2^63 - 1, not {self.sequence}")


def format_record(session_id: str, sequence: int) -> str:
    """The text of a record. Raises RecordError."""
    record = Record(session_id, sequence)
    return f"wattline:1:{record.session_id}:{record.sequence}"


def parse_record(text: str) -> Record:
    """The record in ``text``, which must be exactly what format_record writes. Raises RecordError."""
    match = _RECORD.fullmatch(text)
    if match is None:
        raise RecordError(f"a record is wattline:1:<session_id>:<sequence>, not {text[:80]!r}")
    session_id, sequence = match.groups()
    if not _DECIMAL.fullmatch(sequence):
        raise RecordError(f"the sequence must be a decimal number without sign or leading zeros, not {sequence[:40]!r}")
    return Record(session_id, int(sequence))


def quick_test(payload_hex: str) -> bool:
    """Whether a payload can hold our TLV type or the text ``wattline``. May be True by accident, is never False when
    one of them is there; costs two searches, so that all other payments of a busy node pass at once."""
    text = payload_hex.lower()
    return any(mark in text for mark in _QUICK_MARKS)


def parse_payload(payload: bytes) -> dict[int, bytes]:
    """The fields of a per-hop payload as the ``htlc_accepted`` hook gives it: a BigSize length, then the TLV stream
    (BOLT #4). Raises PayloadError."""
    length, offset = decode_bigsize(payload, 0)
    if length != len(payload) - offset:
        raise PayloadError(f"the payload claims {length} bytes and has {len(payload) - offset}")
    return parse_tlv_stream(payload[offset:])


def invoice_description(payload: bytes) -> str | None:
    """The description of the invoice that lightningd's keysend plugin will make for a payment with this final payload
    (length prefix included), or None when it will make none and lightningd fails the payment.

    The unknown field that is valid UTF-8 and the longest, ties to the lower type, behind ``keysend: ``; ``keysend``
    alone when there is no text. Source: plugins/keysend.c, htlc_accepted_call. That the preimage belongs to the
    payment_hash is not checked here.
    """
    try:
        fields = parse_payload(payload)
    except PayloadError:
        return None
    if not all(_known_field_is_well_formed(number, value) for number, value in fields.items()):
        return None
    if len(fields.get(PREIMAGE_TLV_TYPE, b"")) != 32 or _AMOUNT_TYPE not in fields:
        return None
    longest: str | None = None
    length = -1
    for number, value in fields.items():
        text = None if number == PREIMAGE_TLV_TYPE or number in _KNOWN_TYPES else _utf8(value)
        if text is not None and len(value) > length:
            longest, length = text, len(value)
    if longest is None:
        return DESCRIPTION_PREFIX.removesuffix(": ")
    return None if _REFUSED_BY_INVOICE.search(longest) else DESCRIPTION_PREFIX + longest


# The fields that lightningd knows in a payment's payload (wire/onion_wire.csv, tlv_payload).
_KNOWN_TYPES = frozenset({2, 4, 6, 8, 10, 12, 16, 18})


def _known_field_is_well_formed(number: int, value: bytes) -> bool:
    """Whether lightningd can decode a field that it knows; where it cannot, no invoice is made."""
    match number:
        case 2 | 18:  # amt_to_forward, total_amount_msat: tu64
            return _is_truncated(value, 8)
        case 4:  # outgoing_cltv_value: tu32
            return _is_truncated(value, 4)
        case 6:  # short_channel_id
            return len(value) == 8
        case 8:  # payment_data: payment_secret and total_msat (tu64)
            return len(value) >= 32 and _is_truncated(value[32:], 8)
        case (
            12
        ):  # current_path_key; whether it is a point of the curve is left to lightningd, which then fails the payment
            return len(value) == 33
        case _:
            return True


def _is_truncated(value: bytes, size: int) -> bool:
    return len(value) <= size and not value.startswith(b"\0")


def _utf8(value: bytes) -> str | None:
    """``value`` as text by lightningd's rules (ccan/utf8): strict UTF-8 without NUL."""
    if b"\0" in value:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None
