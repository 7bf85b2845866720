"""The wattline record, and the invoice description that lightningd's keysend plugin makes of a payment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.record import (
    PREIMAGE_TLV_TYPE,
    RECORD_TLV_TYPE,
    SEQUENCE_MAX,
    PayloadError,
    Record,
    RecordError,
    encode_bigsize,
    encode_tlv_stream,
    format_record,
    invoice_description,
    parse_payload,
    parse_record,
    quick_test,
)

SESSION = "0123456789ABCDEFGHJKMNPQRS"
PREIMAGE = bytes(range(32))

session_ids = st.builds(
    lambda first, rest: first + rest,
    st.sampled_from("01234567"),
    st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=25, max_size=25),
)
sequences = st.integers(0, SEQUENCE_MAX)


def payload(extra: dict[int, bytes], preimage: bytes | None = PREIMAGE, amount: bytes | None = b"\x01") -> bytes:
    fields = {4: b"\x70", **extra}
    if amount is not None:
        fields[2] = amount
    if preimage is not None:
        fields[PREIMAGE_TLV_TYPE] = preimage
    stream = encode_tlv_stream(fields)
    return encode_bigsize(len(stream)) + stream


def test_the_type_is_watt_plus_one_and_odd() -> None:
    assert int.from_bytes(b"WATT", "big") + 1 == RECORD_TLV_TYPE
    assert RECORD_TLV_TYPE % 2 == 1


@given(session_ids, sequences)
def test_a_record_is_read_back_as_it_was_written(session_id: str, sequence: int) -> None:
    assert parse_record(format_record(session_id, sequence)) == Record(session_id, sequence)


@given(st.text(max_size=60))
def test_any_text_is_either_a_canonical_record_or_a_record_error(text: str) -> None:
    try:
        record = parse_record(text)
    except RecordError:
        return
    assert format_record(record.session_id, record.sequence) == text


@given(session_ids, sequences, st.data())
def test_a_record_with_one_character_changed_is_another_record_or_none(
    session_id: str, sequence: int, data: st.DataObject
) -> None:
    text = format_record(session_id, sequence)
    at = data.draw(st.integers(0, len(text) - 1))
    other = text[:at] + data.draw(st.characters().filter(lambda c: c != text[at])) + text[at + 1 :]
    try:
        record = parse_record(other)
    except RecordError:
        return
    assert record != Record(session_id, sequence)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "wattline",
        f"wattline:1:{SESSION}",
        f"wattline:1:{SESSION}:",
        f"wattline:1:{SESSION}:01",
        f"wattline:1:{SESSION}:+1",
        f"wattline:1:{SESSION}:-1",
        f"wattline:1:{SESSION}:1 ",
        f"wattline:1:{SESSION}:1\n",
        f"wattline:1:{SESSION}:1_0",
        f"wattline:1:{SESSION}:١",
        f"wattline:1:{SESSION}:{SEQUENCE_MAX + 1}",
        f"wattline:1:{SESSION}:{'9' * 5000}",
        f"wattline:2:{SESSION}:1",
        f"wattline:1:{SESSION.lower()}:1",
        f"wattline:1:{SESSION[:-1]}:1",
        f"wattline:1:{SESSION}0:1",
        f"wattline:1:{SESSION[:-1]}U:1",
        f"wattline:1:8{SESSION[1:]}:1",
        f" wattline:1:{SESSION}:1",
        f"keysend: wattline:1:{SESSION}:1",
    ],
)
def test_anything_but_the_canonical_form_is_refused(text: str) -> None:
    with pytest.raises(RecordError):
        parse_record(text)


@pytest.mark.parametrize(("session_id", "sequence"), [(SESSION, -1), (SESSION, SEQUENCE_MAX + 1), ("x", 1), ("", 0)])
def test_a_record_that_could_not_be_read_back_is_not_written(session_id: str, sequence: int) -> None:
    with pytest.raises(RecordError):
        format_record(session_id, sequence)


def test_a_payload_needs_its_exact_length_in_front() -> None:
    good = payload({})
    assert parse_payload(good)[PREIMAGE_TLV_TYPE] == PREIMAGE
    for bad in (good[1:], good + b"\0", good[:-1], b""):
        with pytest.raises(PayloadError):
            parse_payload(bad)


def test_the_description_is_the_record_behind_keysend() -> None:
    text = format_record(SESSION, 7)
    assert invoice_description(payload({RECORD_TLV_TYPE: text.encode()})) == f"keysend: {text}"


def test_the_longest_text_wins_over_our_record() -> None:
    longer = b"x" * 200
    assert invoice_description(payload({RECORD_TLV_TYPE: b"short", 70001: longer})) == "keysend: " + "x" * 200


def test_of_two_texts_of_the_same_length_the_lower_type_wins() -> None:
    assert invoice_description(payload({70001: b"lower", 70003: b"upper"})) == "keysend: lower"


def test_length_counts_bytes_and_not_characters() -> None:
    assert invoice_description(payload({70001: b"abc", 70003: "éé".encode()})) == "keysend: éé"


def test_fields_that_are_not_text_do_not_count() -> None:
    for binary in (
        b"\xff" * 50,
        b"ab\0" + b"c" * 50,
        b"\xed\xa0\x80" * 20,
        b"\xc0\x80" * 20,
        b"\xf4\x90\x80\x80" * 9,
        b"\xe2\x82" * 1,
    ):
        assert invoice_description(payload({70001: binary, 70003: b"t"})) == "keysend: t"


def test_fields_that_lightningd_knows_do_not_count_however_long() -> None:
    assert invoice_description(payload({16: b"metadata that is long", 70001: b"t"})) == "keysend: t"


def test_even_unknown_fields_count_too() -> None:
    assert invoice_description(payload({70000: b"even", 70001: b"odd"})) == "keysend: even"


def test_an_empty_field_is_a_text_and_none_is_plain_keysend() -> None:
    assert invoice_description(payload({70001: b""})) == "keysend: "
    assert invoice_description(payload({})) == "keysend"


def test_quotes_and_line_breaks_pass_unchanged() -> None:
    assert invoice_description(payload({70001: b'a"b\\n\n\t\r\b\f/'})) == 'keysend: a"b\\n\n\t\r\b\f/'


@pytest.mark.parametrize("control", [b"\x01", b"\x0b", b"\x1f", b"\x7f"])
def test_a_control_character_makes_the_invoice_fail(control: bytes) -> None:
    assert invoice_description(payload({70001: b"a" + control})) is None


@pytest.mark.parametrize(
    "bad",
    [
        payload({}, preimage=None),
        payload({}, preimage=PREIMAGE[:31]),
        payload({}, preimage=PREIMAGE + b"\0"),
        payload({}, amount=None),
        payload({}, amount=b"\0\x01"),
        payload({}, amount=b"\x01" * 9),
        payload({4: b"\x01" * 5}),
        payload({6: b"\x01" * 7}),
        payload({8: b"\x01" * 31}),
        payload({8: b"\x01" * 32 + b"\0"}),
        payload({12: b"\x02" * 32}),
        payload({18: b"\0"}),
        payload({})[:-1],
        b"",
    ],
)
def test_no_invoice_is_made_where_lightningd_cannot_take_the_payment(bad: bytes) -> None:
    assert invoice_description(bad) is None


@given(st.binary(max_size=120))
def test_the_description_of_any_bytes_is_a_text_or_none(data: bytes) -> None:
    description = invoice_description(data)
    assert description is None or description.startswith("keysend")


@given(st.dictionaries(st.integers(65536, 2**40), st.binary(max_size=40), max_size=5), session_ids, sequences)
def test_the_quick_test_never_misses_our_record(extra: dict[int, bytes], session_id: str, sequence: int) -> None:
    text = format_record(session_id, sequence).encode()
    assert quick_test(payload({**extra, RECORD_TLV_TYPE: b""}).hex())
    assert quick_test(payload({**extra, 70001: b"see " + text}).hex().upper())


@given(st.dictionaries(st.integers(65536, 2**40), st.binary(max_size=40), max_size=5))
def test_the_quick_test_passes_every_payment_that_speaks_of_wattline(extra: dict[int, bytes]) -> None:
    data = payload(extra)
    if "wattline" in (invoice_description(data) or "") or RECORD_TLV_TYPE in parse_payload(data):
        assert quick_test(data.hex())


def test_a_strangers_payment_does_not_pass_the_quick_test() -> None:
    assert not quick_test(payload({70001: b"thank you"}).hex())
