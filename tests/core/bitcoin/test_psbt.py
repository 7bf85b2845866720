from __future__ import annotations

import base64
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.bitcoin.chain import NotATransaction, Outpoint, Tx, TxInput, TxOutput
from wattline.core.bitcoin.psbt import MOST_PSBT_BYTES, finalized_psbt, signed_tx, unsigned_tx
from wattline.core.bitcoin.transaction import MOST_SAT, ByteReader, compact, make_tx, read_tx, sized, witness_bytes
from wattline.core.errors import StopError

# BIP 143, "Native P2WPKH": a signed transaction whose first input is a P2PK, the second a P2WPKH.
BIP143 = bytes.fromhex(
    "01000000000102fff7f7881a8099afa6940d42d1e7f6362bec38171ea3edf433541db4e4ad969f00000000494830450221008b9d1dc26ba6a9"
    "cb62127b02742fa9d754cd3bebf337f7a55d114c8e5cdd30be022040529b194ba3f9281a99f2b1c0a19c0489bc22ede944ccf4ecbab4cc618e"
    "f3ed01eeffffffef51e1b804cc89d182d279655c3aa89e815b1b309fe287d9b2b55d57b90ec68a0100000000ffffffff02202cb20600000000"
    "1976a9148280b37df378db99f66f85c95a783a76ac7a6d5988ac9093510d000000001976a9143bde42dbee7e4dbe6a21b2d50ce2f0167faa81"
    "5988ac000247304402203609e17b84f6a7d30c80bfa610b5b4542f32a8a0d5447a12fb1366d7f01cc44a0220573a954c4518331561406f9030"
    "0e8f3358f51928d43c212a8caed02de67eebee0121025476c2e83188368da1ff3e292e7acafcdb3566bb0ad253f62fc70f07aeee635711"
    "000000"
)

outpoints = st.builds(Outpoint, st.binary(min_size=32, max_size=32).map(bytes.hex), st.integers(0, 2**32 - 1))
numbers = st.integers(0, 2**32 - 1)
scripts = st.binary(max_size=40).map(bytes.hex)
outputs = st.builds(TxOutput, st.integers(0, MOST_SAT), scripts)
witnesses = st.lists(st.binary(max_size=80).map(bytes.hex), min_size=1, max_size=3).map(tuple)
signed_inputs = st.builds(TxInput, outpoints, numbers, st.just(""), witnesses)
signed_txs = st.builds(
    make_tx,
    numbers,
    numbers,
    st.lists(signed_inputs, min_size=1, max_size=4),
    st.lists(outputs, min_size=1, max_size=3),
)


def psbt_with(tx: Tx, *maps: dict[bytes, bytes], head: dict[bytes, bytes] | None = None) -> bytes:
    """A PSBT of the unsigned ``tx`` with these maps of its inputs, and empty ones of its outputs."""
    bare = make_tx(tx.version, tx.locktime, [TxInput(item.outpoint, item.sequence) for item in tx.inputs], tx.outputs)
    whole = b"psbt\xff"
    for fields in ({b"\x00": bytes.fromhex(bare.raw)} | (head or {}), *maps, *({} for _ in tx.outputs)):
        whole += b"".join(sized(key) + sized(value) for key, value in fields.items()) + b"\x00"
    return whole


def test_a_transaction_of_the_standard_is_read_with_its_txid_and_size() -> None:
    tx = read_tx(BIP143)
    assert tx.txid == "e8151a2af31c368a35053ddd4bdb285a8595c769a3ad83e0fa02314a602d4609"
    assert (tx.version, tx.locktime, tx.raw) == (1, 17, BIP143.hex())
    assert [output.value_sat for output in tx.outputs] == [112_340_000, 223_450_000]
    assert tx.inputs[1].witness[1] == "025476c2e83188368da1ff3e292e7acafcdb3566bb0ad253f62fc70f07aeee6357"


@given(signed_txs)
def test_what_is_written_is_read_again(tx: Tx) -> None:
    assert read_tx(bytes.fromhex(tx.raw)) == tx


@given(signed_txs, st.lists(outputs, min_size=4, max_size=4))
def test_our_own_psbt_gives_its_transaction_again(tx: Tx, prevouts: Sequence[TxOutput]) -> None:
    psbt = base64.b64decode(finalized_psbt(tx, prevouts[: len(tx.inputs)]))
    assert signed_tx(psbt) == tx
    assert unsigned_tx(psbt).txid == tx.txid


@given(signed_txs, st.dictionaries(st.binary(min_size=2, max_size=9), st.binary(max_size=40), max_size=3))
def test_what_else_a_strangers_psbt_holds_is_dropped(tx: Tx, odd: dict[bytes, bytes]) -> None:
    odd = {b"\xfc" + key: value for key, value in odd.items()}
    maps = [{b"\x08": witness_bytes(item.witness)} | odd for item in tx.inputs]
    assert signed_tx(psbt_with(tx, *maps, head=odd)) == tx


def test_one_signature_of_one_key_makes_the_witness() -> None:
    output = TxOutput(1_000, "5120" + "ab" * 32)
    tx = make_tx(2, 0, [TxInput(Outpoint("01" * 32, 0), 1), TxInput(Outpoint("02" * 32, 1), 2)], [output])
    key, signature, schnorr = b"\x02" * 33, b"\x30" * 71, b"\x07" * 64
    made = signed_tx(psbt_with(tx, {b"\x02" + key: signature}, {b"\x13": schnorr}))
    assert [item.witness for item in made.inputs] == [(signature.hex(), key.hex()), (schnorr.hex(),)]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "psbt_incomplete"),
        ({b"\x02" + b"\x02" * 33: b"\x30", b"\x02" + b"\x03" * 33: b"\x30"}, "psbt_incomplete"),
        ({b"\x07": b"\x51"}, "psbt_invalid"),
        ({b"\x08": b"\x00"}, "psbt_invalid"),
        ({b"\x08": b"\x01\x01\x51\x00"}, "psbt_invalid"),
        ({b"\x08": b"\xff" + b"\xff" * 8}, "psbt_invalid"),
    ],
)
def test_an_input_that_is_not_signed_by_one_key_is_refused(fields: dict[bytes, bytes], code: str) -> None:
    tx = make_tx(2, 0, [TxInput(Outpoint("01" * 32, 0), 1)], [TxOutput(1_000, "5120" + "ab" * 32)])
    with pytest.raises(NotATransaction) as caught:
        signed_tx(psbt_with(tx, fields))
    assert caught.value.code == code


@given(signed_txs, st.data())
def test_a_psbt_or_transaction_that_is_cut_short_or_goes_on_is_none(tx: Tx, data: st.DataObject) -> None:
    psbt = base64.b64decode(finalized_psbt(tx, [TxOutput(1, "00")] * len(tx.inputs)))
    for whole, read in ((psbt, signed_tx), (bytes.fromhex(tx.raw), read_tx)):
        cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
        for other in (cut, whole + data.draw(st.binary(min_size=1, max_size=3))):
            with pytest.raises(NotATransaction):
                read(other)


@given(st.binary(max_size=300), st.sampled_from([b"", b"psbt\xff", b"psbt\xff\x01\x00", BIP143[:4]]))
def test_any_bytes_at_all_are_read_or_refused(tail: bytes, head: bytes) -> None:
    for read in (signed_tx, unsigned_tx, read_tx):
        try:
            tx = read(head + tail)
        except NotATransaction:
            continue
        assert read_tx(bytes.fromhex(tx.raw)) == tx


def test_a_psbt_of_another_version_a_key_told_twice_and_a_large_one_are_refused() -> None:
    tx = make_tx(2, 0, [TxInput(Outpoint("01" * 32, 0), 1)], [TxOutput(1_000, "5120" + "ab" * 32)])
    good = psbt_with(tx, {b"\x13": b"\x07" * 64})
    twice = good.replace(b"\x01\x13", b"\x01\x13\x00\x01\x13")
    for psbt in (psbt_with(tx, {}, head={b"\xfb": b"\x02\x00\x00\x00"}), twice, good + bytes(MOST_PSBT_BYTES)):
        with pytest.raises(NotATransaction):
            unsigned_tx(psbt)


def test_a_number_that_is_longer_than_it_must_be_is_refused() -> None:
    for long in (b"\xfd\x01\x00", b"\xfe\xff\xff\x00\x00", b"\xff" + b"\xff" * 4 + bytes(4)):
        with pytest.raises(ValueError, match="longer"):
            ByteReader(long).compact()


@given(st.integers(0, 2**64 - 1))
def test_every_number_is_read_as_it_was_written(number: int) -> None:
    assert ByteReader(compact(number)).compact() == number


@pytest.mark.parametrize(
    "text", ["ab:1", "AB" * 32 + ":1", *("ab" * 32 + vout for vout in (":4294967296", ":01", ":١", ":1\n", ":", ""))]
)
def test_an_outpoint_has_its_exact_length_alphabet_and_range(text: str) -> None:
    with pytest.raises(StopError):
        Outpoint.parse(text)
