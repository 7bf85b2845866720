"""TLV streams (BOLT #1): what is written is read back, and any other bytes end in one class of error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.record import (
    U64_MAX,
    PayloadError,
    decode_bigsize,
    encode_bigsize,
    encode_tlv_stream,
    encode_truncated,
    parse_tlv_stream,
)

numbers = st.one_of(
    st.integers(0, U64_MAX),
    st.sampled_from([0, 0xFC, 0xFD, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000, U64_MAX]),
)
streams = st.dictionaries(numbers, st.binary(max_size=300), max_size=8)


@given(numbers)
def test_a_bigsize_is_read_back_as_it_was_written(number: int) -> None:
    data = encode_bigsize(number)
    assert decode_bigsize(data, 0) == (number, len(data))


# Vectors of BOLT #1, appendix A.
@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("00", 0),
        ("fc", 252),
        ("fd00fd", 253),
        ("fdffff", 65535),
        ("fe00010000", 65536),
        ("feffffffff", 4294967295),
        ("ff0000000100000000", 4294967296),
        ("ffffffffffffffffff", U64_MAX),
    ],
)
def test_the_bigsize_vectors_of_bolt_1_are_met(text: str, number: int) -> None:
    assert encode_bigsize(number).hex() == text
    assert decode_bigsize(bytes.fromhex(text), 0)[0] == number


@pytest.mark.parametrize(
    "text", ["", "fd00fc", "fe0000ffff", "ff00000000ffffffff", "fd00", "feffff", "ffffffffff", "fd"]
)
def test_a_cut_or_wasteful_bigsize_is_refused(text: str) -> None:
    with pytest.raises(PayloadError):
        decode_bigsize(bytes.fromhex(text), 0)


@given(streams)
def test_a_stream_is_read_back_as_it_was_written(fields: dict[int, bytes]) -> None:
    parsed = parse_tlv_stream(encode_tlv_stream(fields))
    assert parsed == fields
    assert list(parsed) == sorted(fields)


@given(st.binary(max_size=80))
def test_any_bytes_are_either_a_stream_or_a_payload_error(data: bytes) -> None:
    try:
        fields = parse_tlv_stream(data)
    except PayloadError:
        return
    assert encode_tlv_stream(fields) == data


@given(streams.filter(bool), st.data())
def test_a_stream_that_was_cut_inside_a_field_is_refused_or_shorter(
    fields: dict[int, bytes], data: st.DataObject
) -> None:
    whole = encode_tlv_stream(fields)
    cut = data.draw(st.integers(0, len(whole) - 1))
    try:
        kept = parse_tlv_stream(whole[:cut])
    except PayloadError:
        return
    assert len(kept) < len(fields)


def test_types_that_do_not_increase_are_refused() -> None:
    with pytest.raises(PayloadError, match="must increase"):
        parse_tlv_stream(bytes.fromhex("0400" + "0200"))
    with pytest.raises(PayloadError, match="must increase"):
        parse_tlv_stream(bytes.fromhex("0200" + "0200"))


@given(numbers)
def test_a_truncated_integer_has_no_leading_zero_byte(number: int) -> None:
    data = encode_truncated(number)
    assert not data.startswith(b"\0")
    assert int.from_bytes(data, "big") == number
    assert len(data) <= 8


@pytest.mark.parametrize("number", [-1, U64_MAX + 1])
def test_numbers_outside_64_bits_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="2\\^64"):
        encode_bigsize(number)
    with pytest.raises(ValueError, match="2\\^64"):
        encode_truncated(number)
