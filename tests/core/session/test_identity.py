"""Session ids as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.errors import StopError
from wattline.core.ids import decode_session_id, encode_session_id


@given(st.binary(min_size=16, max_size=16))
def test_every_id_comes_back_from_its_26_characters(raw: bytes) -> None:
    text = encode_session_id(raw)
    assert len(text) == 26
    assert decode_session_id(text) == raw


def test_the_lowest_and_the_highest_id_are_written_as_crockford_says() -> None:
    assert encode_session_id(bytes(16)) == "0" * 26
    assert encode_session_id(b"\xff" * 16) == "7" + "Z" * 25
    assert encode_session_id((32).to_bytes(16, "big")) == "0" * 24 + "10"


@given(st.text(min_size=24, max_size=28) | st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=26, max_size=26))
def test_no_two_texts_name_the_same_session(text: str) -> None:
    try:
        raw = decode_session_id(text)
    except StopError:
        return
    assert encode_session_id(raw) == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "26 characters, not 0"),
        ("0" * 27, "26 characters, not 27"),
        ("0" * 25 + "a", "character 26 is 'a'"),
        ("0" * 25 + "I", "character 26 is 'I'"),
        ("0" * 5 + "-" + "0" * 20, "character 6 is '-'"),
        ("8" + "0" * 25, "first character is '8'"),
    ],
)
def test_a_malformed_id_is_refused_with_the_fault_named(text: str, complaint: str) -> None:
    with pytest.raises(StopError, match=complaint) as caught:
        decode_session_id(text)
    assert caught.value.code == "session_id_invalid"


def test_an_id_of_another_length_cannot_be_written() -> None:
    with pytest.raises(StopError, match="16 bytes, not 15"):
        encode_session_id(bytes(15))
