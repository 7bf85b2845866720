"""Which versions of an aggregate are credited, and what the final one has to pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.aggregate import SMALLEST_OUTPUT_SAT, OnchainRules, VersionRefused, final_value_sat
from wattline.core.bitcoin.chain import Outpoint, Tx, TxInput, TxOutput, Unspent
from wattline.core.version_check import feerate_per_kw, prove

OURS, CHANGE, OTHER = "5120" + "aa" * 32, "5120" + "bb" * 32, "0014" + "cc" * 20
COINS = tuple(Outpoint(f"{number:02x}" * 32, number) for number in range(1, 8))
COIN_SAT = 1_000_000
RBF = 0xFFFFFFFD
RULES = OnchainRules(
    floor_sat=600,
    credit_cap_sat=2_000,
    exposure_cap_sat=10_000,
    min_feerate_per_kw=253,
    max_feerate_per_kw=25_000,
    max_age_s=3_600,
    input_confirmations=2,
    max_inputs=3,
)
MSAT = st.integers(0, 10**12)


def weight_of(inputs: int, outputs: int) -> int:
    """Of a transaction of P2TR key paths and P2TR outputs (BIP 141, BIP 341)."""
    return 42 + 230 * inputs + 172 * outputs


def version(
    value_sat: int = 5_000, fee_sat: int = 200, inputs: int = 1, change: bool = True, weight: int | None = None
) -> Tx:
    """An honest one."""
    outputs = [TxOutput(value_sat, OURS)]
    if change:
        outputs.append(TxOutput(inputs * COIN_SAT - value_sat - fee_sat, CHANGE))
    return Tx(
        txid="ff" * 32,
        version=2,
        locktime=0,
        inputs=tuple(TxInput(coin, RBF) for coin in COINS[:inputs]),
        outputs=tuple(outputs),
        vsize=-(-(weight or weight_of(inputs, len(outputs))) // 4),
        raw="",
    )


def confirmed(tx: Tx, confirmations: int = 2) -> dict[Outpoint, Unspent | None]:
    return {item.outpoint: Unspent(COIN_SAT, OTHER, confirmations) for item in tx.inputs}


def refusal(
    tx: Tx,
    inputs: Mapping[Outpoint, Unspent | None] | None = None,
    floor_per_kw: int = 250,
) -> str:
    with pytest.raises(VersionRefused) as caught:
        prove(tx, OURS, RULES, confirmed(tx) if inputs is None else inputs, floor_per_kw)
    return caught.value.code


@given(
    feerate=st.integers(RULES.min_feerate_per_kw, RULES.max_feerate_per_kw),
    inputs=st.integers(1, RULES.max_inputs),
    saved=st.integers(0, 3),
    value_sat=st.integers(RULES.floor_sat, 900_000),
    change=st.booleans(),
)
def test_whoever_keeps_to_the_rules_by_weight_is_never_refused(
    feerate: int, inputs: int, saved: int, value_sat: int, change: bool
) -> None:
    weight = weight_of(inputs, 2 if change else 1) - saved
    fee_sat = -(-feerate * weight // 1000)
    if not change:
        value_sat = inputs * COIN_SAT - fee_sat
    tx = version(value_sat, fee_sat, inputs, change, weight)
    proven = prove(tx, OURS, RULES, confirmed(tx), RULES.min_feerate_per_kw)
    assert (proven.value_sat, proven.fee_sat, proven.vout) == (value_sat, fee_sat, 0)
    assert proven.feerate_per_kw == fee_sat * 1000 // (tx.vsize * 4)


@given(st.integers(0, 100_000), st.integers(1, 100_000), st.integers(100, 2_000))
def test_a_fee_is_taken_exactly_within_the_rates_but_for_rounding(fee_sat: int, floor: int, vsize: int) -> None:
    tx = replace(version(5_000, fee_sat), vsize=vsize)
    lowest, highest = max(floor, RULES.min_feerate_per_kw), RULES.max_feerate_per_kw
    if fee_sat * 1000 < lowest * (vsize * 4 - 3):
        assert refusal(tx, floor_per_kw=floor) == "fee_too_low"
    elif (fee_sat - 1) * 1000 >= highest * vsize * 4:
        assert refusal(tx, floor_per_kw=floor) == "fee_too_high"
    else:
        proven = prove(tx, OURS, RULES, confirmed(tx), floor)
        assert proven.feerate_per_kw == feerate_per_kw(fee_sat, vsize)


def test_the_sockets_output_may_stand_anywhere_and_change_may_be_left_out() -> None:
    tx = version()
    turned = replace(tx, outputs=tx.outputs[::-1])
    assert prove(turned, OURS, RULES, confirmed(tx), 250).vout == 1
    alone = version(COIN_SAT - 200, change=False)
    assert prove(alone, OURS, RULES, confirmed(alone), 250).value_sat == COIN_SAT - 200


def _with_sequence(tx: Tx, sequence: int) -> Tx:
    return replace(tx, inputs=tuple(replace(item, sequence=sequence) for item in tx.inputs))


def _with_outputs(tx: Tx, *outputs: TxOutput) -> Tx:
    return replace(tx, outputs=outputs)


@pytest.mark.parametrize(
    ("game", "code"),
    [
        (lambda tx: replace(tx, version=1), "bad_version"),
        (lambda tx: replace(tx, version=3), "bad_version"),
        (lambda tx: replace(tx, locktime=1), "bad_locktime"),
        (lambda tx: replace(tx, locktime=1_800_000_000), "bad_locktime"),
        (lambda tx: _with_sequence(tx, 0), "bad_sequence"),
        (lambda tx: _with_sequence(tx, 0xFFFFFFFC), "bad_sequence"),
        (lambda tx: _with_sequence(tx, 0x00400001), "bad_sequence"),
        (lambda tx: replace(tx, inputs=()), "other_inputs"),
        (lambda tx: replace(tx, inputs=tx.inputs * 2), "other_inputs"),
        (lambda tx: _with_outputs(tx, *tx.outputs[1:]), "wrong_output"),
        (lambda tx: _with_outputs(tx), "wrong_output"),
        (lambda tx: _with_outputs(tx, tx.outputs[0], tx.outputs[0]), "wrong_output"),
        (lambda tx: _with_outputs(tx, TxOutput(5_000, OTHER), tx.outputs[1]), "wrong_output"),
        (lambda tx: _with_outputs(tx, *tx.outputs, TxOutput(600, OTHER)), "wrong_output"),
        (lambda tx: _with_outputs(tx, TxOutput(SMALLEST_OUTPUT_SAT - 1, OURS), tx.outputs[1]), "dust_output"),
        (lambda tx: _with_outputs(tx, tx.outputs[0], TxOutput(SMALLEST_OUTPUT_SAT - 1, CHANGE)), "dust_output"),
        (lambda tx: _with_outputs(tx, tx.outputs[0], TxOutput(0, "6a")), "dust_output"),
        (lambda tx: _with_outputs(tx, TxOutput(RULES.floor_sat - 1, OURS), tx.outputs[1]), "dust_output"),
        (lambda tx: _with_outputs(tx, TxOutput(5_000, OURS), TxOutput(COIN_SAT - 5_000, CHANGE)), "fee_too_low"),
        (lambda tx: _with_outputs(tx, TxOutput(5_000, OURS), TxOutput(COIN_SAT, CHANGE)), "fee_too_low"),
        (lambda tx: _with_outputs(tx, TxOutput(5_000, OURS), TxOutput(COIN_SAT - 5_155, CHANGE)), "fee_too_low"),
        (lambda tx: _with_outputs(tx, TxOutput(5_000, OURS), TxOutput(COIN_SAT - 20_401, CHANGE)), "fee_too_high"),
        (lambda tx: _with_outputs(tx, TxOutput(5_000, OURS)), "fee_too_high"),
    ],
)
def test_a_version_that_plays_a_game_is_refused_by_its_name(game: Callable[[Tx], Tx], code: str) -> None:
    assert refusal(game(version())) == code


def test_the_fee_is_held_to_its_bounds_to_the_satoshi() -> None:
    # 1 P2TR input, 2 P2TR outputs: 616 weight units, 154 vB. The lightest of 154 vB weighs 613.
    least = -(-253 * 613 // 1000)
    most = 25_000 * 616 // 1000
    for fee_sat in (least, most):
        tx = version(fee_sat=fee_sat)
        assert prove(tx, OURS, RULES, confirmed(tx), 250).fee_sat == fee_sat
    assert refusal(version(fee_sat=least - 1)) == "fee_too_low"
    assert refusal(version(fee_sat=most + 1)) == "fee_too_high"


def test_a_mempool_that_asks_for_more_than_the_rules_is_heeded() -> None:
    assert refusal(version(fee_sat=200), floor_per_kw=400) == "fee_too_low"
    dearer = version(fee_sat=250)
    assert prove(dearer, OURS, RULES, confirmed(dearer), 400).fee_sat == 250


def test_more_inputs_than_agreed_are_not_taken() -> None:
    tx = version(inputs=RULES.max_inputs + 1)
    assert refusal(tx) == "other_inputs"


def test_an_input_that_is_spent_or_unknown_to_the_chain_is_refused() -> None:
    tx = version(inputs=2)
    assert refusal(tx, inputs={**confirmed(tx), COINS[1]: None}) == "input_spent"
    assert refusal(tx, inputs={COINS[0]: Unspent(2 * COIN_SAT, OTHER, 9)}) == "input_spent"


def test_what_the_chain_knows_of_other_outputs_adds_nothing_to_the_funds() -> None:
    tx = version(fee_sat=200)
    inputs = {**confirmed(tx), COINS[6]: Unspent(10 * COIN_SAT, OTHER, 9)}
    assert prove(tx, OURS, RULES, inputs, 250).fee_sat == 200


def test_an_input_needs_as_many_confirmations_as_agreed() -> None:
    tx = version()
    assert refusal(tx, inputs=confirmed(tx, RULES.input_confirmations - 1)) == "input_unconfirmed"
    assert prove(tx, OURS, RULES, confirmed(tx, RULES.input_confirmations), 250).value_sat == 5_000


@given(MSAT, MSAT, st.integers(SMALLEST_OUTPUT_SAT, 10**6))
def test_the_final_value_covers_what_is_owed_and_no_whole_sat_more_than_it_must(
    charged_msat: int, keysend_msat: int, floor_sat: int
) -> None:
    value_sat = final_value_sat(charged_msat, keysend_msat, floor_sat)
    owed_msat = charged_msat - keysend_msat
    if owed_msat <= 0:
        assert value_sat == 0
        return
    assert value_sat >= floor_sat
    assert value_sat * 1000 >= owed_msat
    assert value_sat == floor_sat or (value_sat - 1) * 1000 < owed_msat


@given(MSAT, MSAT, st.integers(0, 10**9))
def test_the_final_value_never_falls_when_more_is_owed(charged_msat: int, keysend_msat: int, more_msat: int) -> None:
    less = final_value_sat(charged_msat, keysend_msat, 600)
    assert final_value_sat(charged_msat + more_msat, keysend_msat, 600) >= less
    assert final_value_sat(charged_msat + more_msat, keysend_msat + more_msat, 600) == less
