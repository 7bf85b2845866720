from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.wire.messages import EVIL, class_of, fit, wild
from wattline.core.wire.reading import OutOfRange, admitted
from wattline.v1 import charging_pb2 as pb

KINDS = [class_of(message) for message in pb.DESCRIPTOR.message_types_by_name.values()]


def why_not(message: Message) -> str | None:
    try:
        admitted(message)
    except OutOfRange as error:
        return error.message
    return None


def texts(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        for each in value if field.is_repeated else [value]:
            if isinstance(each, str):
                yield each
            elif isinstance(each, Message):
                yield from texts(each)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(KINDS).flatmap(wild))
def test_any_message_is_admitted_with_harmless_text_or_refused_in_one_line(message: Any) -> None:
    refused = why_not(message)
    if refused is not None:
        assert refused.isprintable()
        assert len(refused) < 400
        return
    assert all(text.isprintable() for text in texts(message))
    before = message.SerializeToString(deterministic=True)
    assert admitted(message).SerializeToString(deterministic=True) == before


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(KINDS).flatmap(fit))
def test_a_message_within_its_bounds_is_admitted_and_no_number_of_it_changes(message: Any) -> None:
    before = type(message).FromString(message.SerializeToString())
    admitted(message)
    for field, value in before.ListFields():
        if field.message_type is None and not isinstance(value, str):
            assert getattr(message, field.name) == value


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(KINDS), st.binary(max_size=80))
def test_bytes_that_are_a_message_by_chance_are_admitted_or_refused(kind: Any, raw: bytes) -> None:
    try:
        admitted(kind.FromString(raw))
    except (DecodeError, OutOfRange):
        return


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (pb.Statement(session_id="x"), "Statement.session_id is 'x'; allowed: 26 characters of Crockford base32"),
        (pb.VersionAccepted(number=10**9 + 1), "VersionAccepted.number is 1000000001; allowed: 0 to 1000000000"),
        (pb.GetOfferRequest(nonce=b"12"), "GetOfferRequest.nonce is 2 bytes; allowed: 16 to 32 bytes"),
        (pb.TariffChange(), "TariffChange.tariff is missing; allowed: it has to be there"),
        (pb.Refusal(code=EVIL), "Refusal.code is '\\\\x1b[2J"),
    ],
)
def test_a_refusal_names_field_value_and_what_is_allowed(message: Message, told: str) -> None:
    with pytest.raises(OutOfRange) as caught:
        admitted(message)
    assert caught.value.message.startswith(told)
    assert caught.value.code == "message_invalid"


def test_a_signed_message_stays_what_was_signed() -> None:
    """Text for people is escaped in place; nothing that is signed over its fields holds any."""
    opening = pb.Open(
        token=bytes(32), outlet_id="A1", tariff_id="T", method=pb.METHOD_ONCHAIN, cable_node_id="02" + "51" * 32
    )
    raw = opening.SerializeToString() + b"\x7a\x02ok"  # and a field that this version does not know
    read = pb.Open.FromString(raw)
    assert admitted(read).SerializeToString(deterministic=True) == raw
