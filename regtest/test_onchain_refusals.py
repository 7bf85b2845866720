"""What a socket with a real bitcoind refuses to take for a version of an aggregate. Nothing is credited for it, nothing
of what was accepted before is touched, and the session ends as if it had never been tried."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness.attacker import REPLACEABLE, Coin, Draft, spend
from harness.cable import FEE_SAT, Cable
from harness.place import COIN_SAT, Place, begin, ends_as_if_nothing_had_been_tried, place
from harness.stall import EXPOSURE_CAP_SAT, FLOOR_SAT, Stall

from wattline.core.bitcoin.chain import TxInput, TxOutput
from wattline.regtest.waiting import wait_until

pytestmark = pytest.mark.long

FIRST_SAT, SECOND_SAT = 3_000, 3_100
PSBT_LIMIT = 32 * 1024


@pytest.fixture(scope="module")
def ground() -> Iterator[Place]:
    with place(Place) as made:
        yield made


@pytest.fixture
def stall(ground: Place, tmp_path: Path) -> Iterator[Stall]:
    with ground.stall(tmp_path) as made:
        yield made


def another_coin(cable: Cable) -> Coin:
    return cable.wallet.fund([COIN_SAT])[0]


def with_other_input(cable: Cable, draft: Draft) -> Draft:
    return replace(draft, inputs=(TxInput(another_coin(cable).outpoint, REPLACEABLE),))


def with_input_more(cable: Cable, draft: Draft) -> Draft:
    more = TxInput(another_coin(cable).outpoint, REPLACEABLE)
    return replace(draft, inputs=(*draft.inputs, more)).with_output(1, value_sat=draft.outputs[1].value_sat + COIN_SAT)


def with_two_payments(cable: Cable, draft: Draft) -> Draft:
    return replace(draft, outputs=(replace(draft.outputs[0], value_sat=SECOND_SAT - 600), TxOutput(600, cable.script)))


def with_third_output(cable: Cable, draft: Draft) -> Draft:
    third = TxOutput(1_000, cable.wallet.script())
    return replace(draft, outputs=(*draft.outputs, third)).with_output(1, value_sat=draft.outputs[1].value_sat - 1_000)


def with_dust_change(cable: Cable, draft: Draft) -> Draft:
    return draft.with_output(1, value_sat=329)


Forgery = Callable[[Cable, Draft], Draft]

FORGERIES: dict[str, tuple[Forgery, str]] = {
    "a smaller value": (lambda cable, draft: cable.draft(FIRST_SAT - 1), "value_not_larger"),
    "the same value with another fee": (lambda cable, draft: cable.draft(FIRST_SAT, FEE_SAT + 1), "value_not_larger"),
    "another input": (with_other_input, "other_inputs"),
    "an input added": (with_input_more, "other_inputs"),
    "another address": (lambda cable, draft: draft.with_output(0, script=cable.wallet.script()), "wrong_output"),
    "a script that anybody can spend": (lambda cable, draft: draft.with_output(0, script="51"), "wrong_output"),
    "two outputs to the socket": (with_two_payments, "wrong_output"),
    "a third output": (with_third_output, "wrong_output"),
    "no fee": (lambda cable, draft: cable.draft(SECOND_SAT, 0), "fee_too_low"),
    "a fee just below the floor": (lambda cable, draft: cable.draft(SECOND_SAT, 153), "fee_too_low"),
    "an absurd fee": (lambda cable, draft: cable.draft(SECOND_SAT, 100_000), "fee_too_high"),
    "more than its inputs": (lambda cable, draft: draft.with_output(1, value_sat=COIN_SAT), "fee_too_low"),
    "a lock time in blocks to come": (lambda cable, draft: replace(draft, locktime=10_000), "bad_locktime"),
    "a lock time in seconds to come": (lambda cable, draft: replace(draft, locktime=4_000_000_000), "bad_locktime"),
    "a lock time that is over": (lambda cable, draft: replace(draft, locktime=1), "bad_locktime"),
    "a lock time that no sequence enables": (
        lambda cable, draft: replace(draft.with_sequence(0xFFFFFFFF), locktime=10_000),
        "bad_locktime",
    ),
    "a relative lock time in blocks": (lambda cable, draft: draft.with_sequence(10), "bad_sequence"),
    "a relative lock time in seconds": (lambda cable, draft: draft.with_sequence(1 << 22 | 10), "bad_sequence"),
    "a relative lock time that is over": (lambda cable, draft: draft.with_sequence(0), "bad_sequence"),
    "version 1": (lambda cable, draft: replace(draft, version=1), "bad_version"),
    "version 3": (lambda cable, draft: replace(draft, version=3), "bad_version"),
    "a change that is dust": (with_dust_change, "dust_output"),
    "more than the exposure cap": (lambda cable, draft: cable.draft(EXPOSURE_CAP_SAT + 1), "exposure_cap"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_version_is_refused_and_changes_nothing(ground: Place, stall: Stall, name: str) -> None:
    make, code = FORGERIES[name]
    cable = ground.paying_cable(stall, FIRST_SAT)
    forged = cable.wallet.signed(make(cable, cable.draft(SECOND_SAT)))

    assert cable.refusal(2, forged) == code

    ends_as_if_nothing_had_been_tried(ground, stall, cable)


@pytest.mark.parametrize("number", [0, 1, 3, 2**31, 2**63])
def test_a_version_out_of_turn_is_refused(ground: Place, stall: Stall, number: int) -> None:
    cable = ground.paying_cable(stall, FIRST_SAT)

    assert cable.refusal(number, cable.wallet.signed(cable.draft(SECOND_SAT))) == "bad_version"

    ends_as_if_nothing_had_been_tried(ground, stall, cable)


def test_the_same_version_under_a_new_number_is_refused(ground: Place, stall: Stall) -> None:
    cable = ground.paying_cable(stall, FIRST_SAT)

    assert cable.refusal(2, cable.wallet.signed(cable.versions[0])) == "value_not_larger"

    ends_as_if_nothing_had_been_tried(ground, stall, cable)


def test_the_same_version_told_again_is_credited_once(ground: Place, stall: Stall) -> None:
    cable = ground.paying_cable(stall, FIRST_SAT)

    again = cable.hand_over(1, cable.wallet.signed(cable.versions[0]))

    assert again.version_accepted.value_sat == FIRST_SAT
    ends_as_if_nothing_had_been_tried(ground, stall, cable)


def test_a_version_without_one_of_its_inputs_is_refused(ground: Place, stall: Stall) -> None:
    cable = ground.cable(stall, COIN_SAT, COIN_SAT)
    begin(cable, FIRST_SAT)
    wait_until("the relay to close", stall.is_relay_closed)
    less = replace(cable.draft(SECOND_SAT), inputs=cable.versions[0].inputs[:1])
    less = less.with_output(1, value_sat=COIN_SAT - SECOND_SAT - FEE_SAT)

    assert cable.refusal(2, cable.wallet.signed(less)) == "other_inputs"

    ends_as_if_nothing_had_been_tried(ground, stall, cable)


def test_a_final_version_that_nobody_asked_for_is_refused(ground: Place, stall: Stall) -> None:
    cable = ground.paying_cable(stall, FIRST_SAT)

    assert cable.refusal(2, cable.wallet.signed(cable.draft(FLOOR_SAT)), is_final=True) == "session_closed"

    ends_as_if_nothing_had_been_tried(ground, stall, cable)


def without_signature(cable: Cable, psbt: bytes) -> bytes:
    return cable.wallet.unsigned(cable.draft(SECOND_SAT))


def with_a_flipped_byte(cable: Cable, psbt: bytes) -> bytes:
    """In the signature, which the PSBT holds beside its transaction."""
    witness = cable.wallet.call("decoderawtransaction", cable.wallet.extracted(psbt))["vin"][0]["txinwitness"]
    return _flipped(psbt, bytes.fromhex(witness[0]))


def with_a_flipped_byte_in_its_witness(cable: Cable, psbt: bytes) -> bytes:
    """In a PSBT that calls itself finalized."""
    answer = cable.wallet.call("finalizepsbt", base64.b64encode(psbt).decode("ascii"), False)
    witness = cable.wallet.call("decoderawtransaction", cable.wallet.extracted(psbt))["vin"][0]["txinwitness"]
    return _flipped(base64.b64decode(answer["psbt"]), bytes.fromhex(witness[0]))


def _flipped(psbt: bytes, signature: bytes) -> bytes:
    at = psbt.index(signature) + 40
    return psbt[:at] + bytes([psbt[at] ^ 1]) + psbt[at + 1 :]


def padded(cable: Cable, psbt: bytes) -> bytes:
    """Signed well, with a global field that nobody knows (BIP 174)."""
    value = bytes(PSBT_LIMIT)
    field = b"\x02\xf0\x01" + b"\xfe" + len(value).to_bytes(4, "little") + value
    return psbt[:5] + field + psbt[5:]


SPOILT: dict[str, tuple[Callable[[Cable, bytes], bytes], str]] = {
    "no signature": (without_signature, "not_signed"),
    "a bad signature": (with_a_flipped_byte, "not_signed"),
    "a bad signature, finalized": (with_a_flipped_byte_in_its_witness, "not_signed"),
    "a PSBT above 32 kB": (padded, "not_signed"),
    "a PSBT cut short": (lambda cable, psbt: psbt[:-9], "not_signed"),
    "no bytes": (lambda cable, psbt: b"", "not_signed"),
    "garbage": (lambda cable, psbt: b"\xff" * 300, "not_signed"),
    "the transaction itself": (
        lambda cable, psbt: bytes.fromhex(cable.wallet.extracted(psbt)),
        "not_signed",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_no_signed_transaction_is_refused(ground: Place, stall: Stall, name: str) -> None:
    spoil, code = SPOILT[name]
    cable = ground.paying_cable(stall, FIRST_SAT)
    psbt = cable.wallet.signed(cable.draft(SECOND_SAT))

    assert cable.refusal(2, spoil(cable, psbt)) == code

    ends_as_if_nothing_had_been_tried(ground, stall, cable)


LOOSE = ["NONE", "SINGLE", "ALL|ANYONECANPAY", "NONE|ANYONECANPAY", "SINGLE|ANYONECANPAY"]


@pytest.mark.parametrize("sighash", LOOSE)
def test_a_signature_that_lets_others_change_the_transaction_is_refused(
    ground: Place, stall: Stall, sighash: str
) -> None:
    """Whoever sees such a transaction in a mempool may send its outputs elsewhere, or pin it with inputs of his own."""
    cable = ground.paying_cable(stall, FIRST_SAT)

    answer = cable.hand_over(2, cable.wallet.signed(cable.draft(SECOND_SAT), sighash))

    assert answer.version_refused.code == "not_signed"
    assert stall.credited_sat(cable.session_id) == FIRST_SAT


def test_an_honest_session_pays_the_exact_charge(ground: Place, stall: Stall) -> None:
    """What all the others are measured against."""
    cable = ground.paying_cable(stall, FIRST_SAT)

    ends_as_if_nothing_had_been_tried(ground, stall, cable)

    draft = spend(cable.coins, [TxOutput(1, cable.script)])
    assert stall.aggregate(cable.session_id).inputs[0].outpoint == draft.inputs[0].outpoint
    assert stall.session(cable.session_id).stop_reason == "cable_closed"
