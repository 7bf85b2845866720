"""TLV streams as BOLT #1 defines them: increasing types, minimally encoded BigSize numbers, nothing left over."""

from __future__ import annotations

from collections.abc import Mapping

from wattline.errors import StopError

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
