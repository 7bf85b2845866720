"""The refusing side of the hook: what passes, what is failed, and that the cap counts what is in flight."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.record import (
    PREIMAGE_TLV_TYPE,
    RECORD_TLV_TYPE,
    encode_bigsize,
    encode_tlv_stream,
    encode_truncated,
    format_record,
)
from wattline.plugin.crediting import Crediting
from wattline.plugin.hook import Htlc, KeysendGate, Pass, Refuse
from wattline.plugin.reservations import CLAIM_REST_S, CLAIM_S, LIFETIME_S, Reservations

SESSION = "0123456789ABCDEFGHJKMNPQRS"
OTHER = "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
CAP_MSAT = 1000


def preimage(number: int) -> bytes:
    return number.to_bytes(32, "big")


def payment_hash(number: int) -> str:
    return hashlib.sha256(preimage(number)).hexdigest()


def proof(number: int) -> dict[str, bytes]:
    """The preimage field of payment ``number``; ``payload`` has that of the first."""
    return {f"t{PREIMAGE_TLV_TYPE}": preimage(number)}


class Place:
    """One outlet; the ledger is empty."""

    reservations: Reservations

    def outlet_id_of(self, session_id: str) -> str:
        return "A1"

    def was_received(self, payment_hash: str) -> bool:
        return False


class Desk(Place):
    """One session with a cap and nothing credited yet."""

    def refusal(self, session_id: str, amount_msat: int, in_flight_msat: int) -> tuple[str, str] | None:
        if session_id != SESSION:
            return "unknown_session", "no such session"
        if in_flight_msat + amount_msat > CAP_MSAT:
            return "over_credit_cap", "too much"
        return None


def gate_of(place: Place, reservations: Reservations) -> KeysendGate:
    place.reservations = reservations
    return KeysendGate(lambda: cast("Crediting", place))


def payload(**others: bytes) -> str:
    """A keysend's final payload; ``others`` are fields by their type, as ``t123``."""
    fields = {2: encode_truncated(100), 4: encode_truncated(500), PREIMAGE_TLV_TYPE: preimage(1)}
    fields |= {int(key[1:]): value for key, value in others.items()}
    stream = encode_tlv_stream({k: v for k, v in fields.items() if v != b"none"})
    return (encode_bigsize(len(stream)) + stream).hex()


def htlc(payload_hex: str, amount_msat: int = 100, number: int = 1, is_forward: bool = False) -> Htlc:
    return Htlc(payment_hash(number), amount_msat, payload_hex, is_forward)


def record(session_id: str = SESSION, sequence: int = 1) -> dict[str, bytes]:
    return {f"t{RECORD_TLV_TYPE}": format_record(session_id, sequence).encode()}


@pytest.fixture
def gate() -> KeysendGate:
    return gate_of(Desk(), Reservations())


def test_a_payment_for_an_open_session_passes_and_is_reserved() -> None:
    reservations = Reservations()
    gate = gate_of(Desk(), reservations)
    assert gate.judge(htlc(payload(**record()))) == Pass()
    assert reservations.in_flight_msat(SESSION) == 100
    reservations.release(payment_hash(1))
    assert reservations.in_flight_msat(SESSION) == 0


@pytest.mark.parametrize(
    "strange",
    [
        pytest.param(payload(), id="a plain keysend"),
        pytest.param(payload(t133773310=b"hello"), id="a keysend with a text"),
        pytest.param(payload(t133773310=b"I use wattline"), id="a text that mentions us"),
        pytest.param(payload(t133773310=b"wattline is nice"), id="a text that begins with us"),
        pytest.param(payload(t5482373485=RECORD_TLV_TYPE.to_bytes(4, "big")), id="our type's bytes inside a value"),
        pytest.param("00", id="an empty payload"),
        pytest.param("zz", id="not even hex"),
    ],
)
def test_payments_of_others_pass(gate: KeysendGate, strange: str) -> None:
    assert gate.judge(htlc(strange)) == Pass()


def test_a_forward_passes_whatever_it_carries(gate: KeysendGate) -> None:
    assert gate.judge(htlc(payload(**record(OTHER)), is_forward=True)) == Pass()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        pytest.param(payload(**record(OTHER)), "unknown_session", id="unknown session"),
        pytest.param(
            payload(**{f"t{RECORD_TLV_TYPE}": b"wattline:1:nonsense:1"}), "malformed_record", id="no session id"
        ),
        pytest.param(payload(**{f"t{RECORD_TLV_TYPE}": b"\xff\xfe"}), "malformed_record", id="no text"),
        pytest.param(
            payload(**{f"t{RECORD_TLV_TYPE}": f"wattline:1:{SESSION}:01".encode()}),
            "malformed_record",
            id="leading zero",
        ),
        pytest.param(
            payload(**record(), t133773310=f"wattline:1:{SESSION}:123456".encode()),
            "malformed_record",
            id="a longer wattline text under another type",
        ),
        pytest.param(
            payload(**record(), t133773310=b"x" * 200), "malformed_record", id="a longer text hides the record"
        ),
        pytest.param(
            payload(t133773310=format_record(SESSION, 1).encode()),
            "malformed_record",
            id="the text under another type only",
        ),
        pytest.param(
            payload(**record(), **{f"t{PREIMAGE_TLV_TYPE}": b"none"}),
            "malformed_record",
            id="no preimage: not a keysend",
        ),
        pytest.param(payload(**record(), t8=bytes(32) + encode_truncated(200)), "in_parts", id="one of several parts"),
        pytest.param(payload(**record())[:-2], "malformed_record", id="cut short"),
    ],
)
def test_what_speaks_of_wattline_and_is_wrong_is_failed(gate: KeysendGate, wrong: str, code: str) -> None:
    verdict = gate.judge(htlc(wrong))
    assert isinstance(verdict, Refuse)
    assert verdict.code == code


def test_a_single_part_that_states_its_total_passes(gate: KeysendGate) -> None:
    assert gate.judge(htlc(payload(**record(), t8=bytes(32) + encode_truncated(100)))) == Pass()


def test_a_preimage_that_does_not_belong_to_the_hash_is_failed_and_reserves_nothing() -> None:
    reservations = Reservations()
    verdict = gate_of(Desk(), reservations).judge(htlc(payload(**record(), **proof(2)), number=1))
    assert isinstance(verdict, Refuse)
    assert verdict.code == "wrong_preimage"
    assert reservations.in_flight_msat(SESSION) == 0


def test_what_lightningd_failed_after_the_hook_does_not_use_up_the_cap_for_ever() -> None:
    now = [0.0]
    reservations = Reservations(lambda: now[0])
    gate = gate_of(Desk(), reservations)
    assert gate.judge(htlc(payload(**record()), amount_msat=CAP_MSAT)) == Pass()
    second = htlc(payload(**record(sequence=2), **proof(2)), amount_msat=CAP_MSAT, number=2)
    assert isinstance(gate.judge(second), Refuse)
    now[0] = LIFETIME_S + 1
    assert gate.judge(second) == Pass()
    assert reservations.in_flight_msat(SESSION) == CAP_MSAT


@pytest.mark.parametrize(
    "doomed",
    [
        pytest.param(htlc(payload(**record(), t2=encode_truncated(101))), id="less than its payload says"),
        pytest.param(htlc(payload(**record(), t2=b"none")), id="no amount"),
        pytest.param(htlc(payload(**record(), t4=b"none")), id="no expiry"),
        pytest.param(htlc(payload(**record(), t16=b"hello")), id="payment_metadata"),
        pytest.param(htlc(payload(**record(), t10=b"\xff" * 40)), id="data of a blinded path"),
        pytest.param(htlc(payload(**record(), t12=b"\2" + b"\xff" * 32)), id="the key of a blinded path"),
        pytest.param(replace(htlc(payload(**record())), cltv_expiry=499), id="an expiry before its payload's"),
        pytest.param(replace(htlc(payload(**record())), blocks_left=17), id="an expiry that is near"),
    ],
)
def test_what_lightningd_would_fail_anyway_is_not_in_flight_before(doomed: Htlc) -> None:
    reservations = Reservations()
    verdict = gate_of(Desk(), reservations).judge(doomed)
    assert isinstance(verdict, Refuse)
    assert verdict.code == "malformed_record"
    assert reservations.in_flight_msat(SESSION) == 0
    assert (
        gate_of(Desk(), reservations).judge(replace(htlc(payload(**record())), cltv_expiry=500, blocks_left=18))
        == Pass()
    )


def test_a_first_payment_that_does_not_come_in_keeps_others_out_for_some_seconds_only() -> None:
    now = [0.0]
    reservations = Reservations(lambda: now[0])
    gate = gate_of(Desk(), reservations)
    assert not reservations.is_claiming(SESSION)
    assert gate.judge(htlc(payload(**record()))) == Pass()
    assert reservations.is_claiming(SESSION)
    assert not reservations.when_idle(SESSION, lambda: None)
    now[0] = CLAIM_S - 0.1
    assert gate.judge(htlc(payload(**record(sequence=2), **proof(2)), number=2)) == Pass()
    now[0] = CLAIM_S
    assert not reservations.is_claiming(SESSION), "another payment does not make it longer"
    reservations.forget(SESSION)
    assert reservations.when_idle(SESSION, lambda: None)
    now[0] = 10 * CLAIM_REST_S
    assert gate.judge(htlc(payload(**record(sequence=3), **proof(3)), number=3)) == Pass()
    assert not reservations.is_claiming(SESSION), "no session claims twice"


def test_new_sessions_with_payments_that_fail_keep_an_outlet_for_a_small_part_of_the_time() -> None:
    now = [0.0]
    reservations = Reservations(lambda: now[0])
    blocked = 0
    for second in range(600):
        now[0] = float(second)
        thief = f"thief {second}"
        assert reservations.reserve(f"{second:064x}", thief, 1000, lambda _: True, "A1")
        blocked += any(reservations.is_claiming(f"thief {each}") for each in range(second + 1))
    assert blocked <= 600 * CLAIM_S / (CLAIM_S + CLAIM_REST_S) + CLAIM_S
    assert reservations.reserve("ab" * 32, "neighbour", 1000, lambda _: True, "B2")
    assert reservations.is_claiming("neighbour"), "another outlet is not concerned"


def test_a_claim_that_is_credited_leaves_the_outlet_to_the_next_ones_claim() -> None:
    reservations = Reservations(lambda: 0.0)
    for number in range(3):
        assert reservations.reserve(f"{number:064x}", f"session {number}", 10, lambda _: True, "A1")
        assert reservations.is_claiming(f"session {number}")
        reservations.release(f"{number:064x}")


def test_a_preimage_that_was_used_is_refused() -> None:
    reservations = Reservations()
    gate = gate_of(Desk(), reservations)
    assert gate.judge(htlc(payload(**record()))) == Pass()
    assert gate.judge(htlc(payload(**record()))) == Pass(), "lightningd tells of it again while it is on its way"
    reservations.release(payment_hash(1))
    assert isinstance(gate.judge(htlc(payload(**record()))), Refuse)

    class KnowingDesk(Desk):
        def was_received(self, payment_hash: str) -> bool:
            return True

    assert isinstance(gate_of(KnowingDesk(), Reservations()).judge(htlc(payload(**record()))), Refuse)


def test_a_hash_that_is_sent_again_and_again_keeps_nobody_elses_reservation() -> None:
    now = [0.0]
    reservations = Reservations(lambda: now[0])
    assert reservations.reserve("a" * 64, "thief", 10, lambda _: True)
    now[0] = 1
    assert reservations.reserve("b" * 64, "victim", 1000, lambda _: True)
    for at_s in range(30, 300, 30):
        now[0] = at_s
        assert reservations.reserve("a" * 64, "thief", 10, lambda _: True)
    assert reservations.in_flight_msat("victim") == 0


def test_the_same_hash_for_another_session_is_failed() -> None:
    class AnyDesk(Place):
        def refusal(self, session_id: str, amount_msat: int, in_flight_msat: int) -> tuple[str, str] | None:
            return None

    gate = gate_of(AnyDesk(), Reservations())
    assert gate.judge(htlc(payload(**record(SESSION)))) == Pass()
    assert isinstance(gate.judge(htlc(payload(**record(OTHER)))), Refuse)


def test_sixteen_at_once_never_exceed_the_cap() -> None:
    reservations = Reservations()
    gate = gate_of(Desk(), reservations)
    verdicts: list[Pass | Refuse] = []
    start = threading.Barrier(16)

    def pay(number: int) -> None:
        start.wait()
        verdicts.append(
            gate.judge(htlc(payload(**record(sequence=number), **proof(number)), amount_msat=100, number=number))
        )

    threads = [threading.Thread(target=pay, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(v, Pass) for v in verdicts) == CAP_MSAT // 100
    assert {v.code for v in verdicts if isinstance(v, Refuse)} == {"over_credit_cap"}
    assert reservations.in_flight_msat(SESSION) == CAP_MSAT


@given(
    st.lists(
        st.tuples(st.sampled_from(["reserve", "release", "forget"]), st.integers(0, 9), st.integers(1, 400)),
        max_size=60,
    )
)
def test_what_is_in_flight_is_the_sum_of_what_passed_and_is_not_yet_credited(steps: list[tuple[str, int, int]]) -> None:
    reservations = Reservations()
    gate = gate_of(Desk(), reservations)
    model: dict[int, int] = {}
    used: set[int] = set()
    for what, number, amount_msat in steps:
        if what == "reserve":
            fields = record() | proof(number) | {"t2": encode_truncated(amount_msat)}
            verdict = gate.judge(htlc(payload(**fields), amount_msat=amount_msat, number=number))
            others = sum(model.values()) - model.get(number, 0)
            is_new = number in model or number not in used
            assert isinstance(verdict, Pass) is (is_new and others + amount_msat <= CAP_MSAT)
            if isinstance(verdict, Pass):
                model[number] = amount_msat
                used.add(number)
        elif what == "release":
            reservations.release(payment_hash(number))
            model.pop(number, None)
        else:
            reservations.forget(SESSION)
            model.clear()
        assert reservations.in_flight_msat(SESSION) == sum(model.values()) <= CAP_MSAT
        assert reservations.wait_drained(SESSION, 0) is (not model)
