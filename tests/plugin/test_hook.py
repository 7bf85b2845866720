"""The hook must never fail a stranger's payment, whatever we do wrong."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import pytest

from wattline.core.record import PREIMAGE_TLV_TYPE, RECORD_TLV_TYPE, encode_bigsize, encode_tlv_stream, parse_tlv_stream
from wattline.plugin.crediting import Crediting
from wattline.plugin.hook import CONTINUE, Htlc, KeysendGate, Pass, PaymentHook, Refuse, paid_keysend
from wattline.plugin.reservations import Reservations

OURS = encode_tlv_stream({2: b"\x64", 4: b"\x10", RECORD_TLV_TYPE: b"wattline:1:x:1", PREIMAGE_TLV_TYPE: bytes(32)})
STRANGERS = encode_tlv_stream({2: b"\x64", 4: b"\x10", PREIMAGE_TLV_TYPE: bytes(32)})


class Place:
    """No session is open."""

    def __init__(self, told: list[str]) -> None:
        self.told = told
        self.reservations = Reservations()

    def payment_refused(self, payment_hash: str, amount_msat: int, code: str, message: str, session_id: str) -> None:
        self.told.append(code)

    def refusal(self, session_id: str, amount_msat: int, in_flight_msat: int) -> tuple[str, str] | None:
        return "unknown_session", "no such session"

    def outlet_id_of(self, session_id: str) -> str:
        return "A1"

    def was_received(self, payment_hash: str) -> bool:
        return False


class RaisingGate(KeysendGate):
    """A bug of ours."""

    def judge(self, htlc: Htlc) -> Pass | Refuse:
        raise RuntimeError("a bug")


class RaisingQuickTest(KeysendGate):
    def speaks_of_wattline(self, payload: str) -> bool:
        raise RuntimeError("a bug")


def call(hook: PaymentHook, payload: bytes, **onion: Any) -> dict[str, Any]:
    return hook(
        onion={"payload": (encode_bigsize(len(payload)) + payload).hex(), **onion},
        htlc={"payment_hash": "00" * 32, "amount_msat": 100, "cltv_expiry": 800_042},
        peer_id="02" + "00" * 32,
    )


def hook_of(kind: type[KeysendGate], told: list[str] | None = None) -> PaymentHook:
    place = cast("Crediting", Place([] if told is None else told))
    return PaymentHook(lambda: place, kind(lambda: place))


def failing_fields(answer: dict[str, Any]) -> dict[int, bytes]:
    """The payload that goes on in place of ours."""
    assert answer["result"] == "continue", "lightningd never again counts the hook as free after `fail`"
    return parse_tlv_stream(bytes.fromhex(answer["payload"]))


def test_what_no_session_can_use_goes_on_as_a_payment_of_no_invoice() -> None:
    told: list[str] = []
    hook = hook_of(KeysendGate, told)
    fields = failing_fields(call(hook, OURS))
    assert set(fields) == {2, 4, 8}, "neither preimage nor record: keysend leaves it alone"
    assert (int.from_bytes(fields[2], "big"), int.from_bytes(fields[4], "big")) == (100, 800_042)
    assert int.from_bytes(fields[8][32:], "big") == 100, "in one part, so that it is not waited for"
    assert fields[8][:32] != failing_fields(call(hook, OURS))[8][:32], "nobody can know the secret"
    assert told == ["malformed_record"] * 2


def test_a_socket_that_is_starting_fails_what_names_a_session_and_lets_all_else_go_on() -> None:
    hook = PaymentHook(lambda: None)
    assert PREIMAGE_TLV_TYPE not in failing_fields(call(hook, OURS))
    assert call(hook, STRANGERS) == CONTINUE


def test_an_htlc_without_an_expiry_is_failed_all_the_same() -> None:
    payload = (encode_bigsize(len(OURS)) + OURS).hex()
    answer = hook_of(KeysendGate)(onion={"payload": payload}, htlc={"payment_hash": "00" * 32, "amount_msat": 100})
    assert answer["result"] == "fail"
    assert answer["failure_message"].startswith("400f")  # PERM|15, incorrect_or_unknown_payment_details


@pytest.mark.parametrize("kind", [KeysendGate, RaisingGate, RaisingQuickTest])
def test_a_strangers_payment_goes_on_also_when_our_code_raises(kind: type[KeysendGate]) -> None:
    assert call(hook_of(kind), STRANGERS) == CONTINUE


def test_our_payment_is_failed_when_our_code_raises() -> None:
    assert PREIMAGE_TLV_TYPE not in failing_fields(call(hook_of(RaisingGate), OURS))


def test_a_forward_goes_on_whatever_it_carries() -> None:
    hook = hook_of(KeysendGate)
    assert call(hook, OURS, short_channel_id="1x1x1") == CONTINUE
    assert call(hook, OURS, next_node_id="02" + "11" * 32) == CONTINUE


def test_an_onion_without_a_payload_goes_on() -> None:
    assert hook_of(KeysendGate)(onion={}, htlc={}) == CONTINUE


def test_a_paid_keysend_is_told_by_the_hash_of_its_preimage() -> None:
    preimage = bytes(range(32))
    note = {"label": "keysend-1700000000.000000001", "preimage": preimage.hex(), "msat": 250}
    assert paid_keysend(note) == (hashlib.sha256(preimage).hexdigest(), 250)
    assert paid_keysend({**note, "msat": "250msat"}) == (hashlib.sha256(preimage).hexdigest(), 250)


def test_other_paid_invoices_are_no_keysends() -> None:
    assert paid_keysend({"label": "coffee", "preimage": "00" * 32, "msat": 1}) is None
