from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cable.fake_funds import make_psbt, script_of
from wattline.bitcoin.chain import Outpoint
from wattline.cable.psbt import MAGIC, PsbtError, unsigned_tx

BIP174_UNSIGNED = bytes.fromhex(
    "02000000018594c5bdcaec8f06b78b596f31cd292a294fd031e24eec716f43dac91ea7494d0000000000ffffffff0180969800000000"
    "001976a914a7a9b1d0c4e4e4d3b6b0a6e0a6b9b0f0f0e0d0c088ac00000000"
)
TXID = "4d49a71ec9da436f71ec4ee231d04f292a29cd316f598bb7068fecca" + "bdc59485"


def psbt_of(raw: bytes) -> bytes:
    return MAGIC + b"\x01\x00" + bytes([len(raw)]) + raw + b"\x00\x00\x00"


def test_inputs_and_outputs_are_read_as_the_chain_has_them() -> None:
    tx = unsigned_tx(psbt_of(BIP174_UNSIGNED))
    assert tx.inputs == (Outpoint(TXID, 0),)
    assert tx.outputs == ((10_000_000, "76a914a7a9b1d0c4e4e4d3b6b0a6e0a6b9b0f0f0e0d0c088ac"),)


@given(
    st.lists(st.tuples(st.integers(0, 2**256 - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=6),
    st.lists(st.integers(0, 21 * 10**14), min_size=1, max_size=3),
)
def test_what_is_written_is_read_again(spent: list[tuple[int, int]], values_sat: list[int]) -> None:
    inputs = [Outpoint(f"{txid:064x}", vout) for txid, vout in spent]
    outputs = [(script_of(str(value)), value) for value in values_sat]
    tx = unsigned_tx(make_psbt(inputs, outputs))
    assert list(tx.inputs) == inputs
    assert [(script, value) for value, script in tx.outputs] == outputs


def test_an_outpoint_or_a_value_changes_the_txid() -> None:
    inputs = [Outpoint("ab" * 32, 0)]
    txids = {
        unsigned_tx(make_psbt(inputs, [(script_of("a"), 1)])).txid,
        unsigned_tx(make_psbt(inputs, [(script_of("a"), 2)])).txid,
        unsigned_tx(make_psbt([Outpoint("ab" * 32, 1)], [(script_of("a"), 1)])).txid,
    }
    assert len(txids) == 3


@given(st.integers(0, 120), st.binary(max_size=3))
def test_a_psbt_that_is_cut_short_or_garbled_is_an_error(length: int, tail: bytes) -> None:
    whole = psbt_of(BIP174_UNSIGNED)
    with pytest.raises(PsbtError):
        unsigned_tx(whole[: min(length, len(whole) - 40)] + tail)


def test_a_transaction_with_a_script_in_its_inputs_has_no_final_txid() -> None:
    raw = BIP174_UNSIGNED.replace(
        b"\x00\x00\x00\x00\x00\xff\xff\xff\xff", b"\x00\x00\x00\x00\x01\x51\xff\xff\xff\xff", 1
    )
    with pytest.raises(PsbtError):
        unsigned_tx(psbt_of(raw))
