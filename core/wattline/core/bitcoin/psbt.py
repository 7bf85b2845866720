"""Partially signed transactions of version 0 (BIP 174, BIP 371): strangers' read strictly, our own written. Pure.

A stranger's PSBT is handed to nobody: the transaction is taken out of it (:func:`signed_tx`), serialized by us, and
where a node needs a PSBT, one is made anew from that transaction and from the outputs that it spends as the chain knows
them (:func:`finalized_psbt`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from wattline.core.bitcoin.chain import NotATransaction, Tx, TxInput, TxOutput
from wattline.core.bitcoin.transaction import (
    ByteReader,
    compact,
    make_tx,
    output_bytes,
    read_output,
    read_tx,
    read_witness,
    sized,
    witness_bytes,
)

MOST_PSBT_BYTES = 32 * 1024
_MAGIC = b"psbt\xff"
_UNSIGNED_TX = b"\x00"
_VERSION = b"\xfb"
_WITNESS_UTXO = b"\x01"
_FINAL_SCRIPT_SIG = b"\x07"
_FINAL_WITNESS = b"\x08"
_TAP_KEY_SIG = b"\x13"
_PARTIAL_SIG = 0x02
_PUBKEY_BYTES = 33

_Map = Mapping[bytes, bytes]


def unsigned_tx(psbt: bytes) -> Tx:
    """What the signatures are for; its txid is that of the signed transaction, since all inputs are native segwit.
    Raises NotATransaction ``psbt_invalid``."""
    return _parts(psbt)[0]


def signed_tx(psbt: bytes) -> Tx:
    """The transaction with its witnesses. Every input needs one signature of one key, or a finished witness; whether
    they are valid is not checked here. Whatever else the PSBT holds is dropped. Raises NotATransaction
    ``psbt_invalid``, or ``psbt_incomplete`` where an input is not signed."""
    tx, inputs = _parts(psbt)
    signed = [
        TxInput(item.outpoint, item.sequence, "", _witness(own)) for item, own in zip(tx.inputs, inputs, strict=True)
    ]
    return make_tx(tx.version, tx.locktime, signed, tx.outputs)


def finalized_psbt(tx: Tx, prevouts: Sequence[TxOutput]) -> str:
    """A PSBT (base64) of the signed ``tx``, each of whose inputs is native segwit and spends the output at its place in
    ``prevouts``. Raises ValueError when they are not as many, or an input is not signed."""
    if any(item.script_sig or not item.witness for item in tx.inputs):
        raise ValueError("an input is not signed by its witness alone")
    bare = make_tx(tx.version, tx.locktime, [TxInput(item.outpoint, item.sequence) for item in tx.inputs], tx.outputs)
    maps: list[_Map] = [{_UNSIGNED_TX: bytes.fromhex(bare.raw)}]
    for item, prevout in zip(tx.inputs, prevouts, strict=True):
        maps.append({_WITNESS_UTXO: output_bytes(prevout), _FINAL_WITNESS: witness_bytes(item.witness)})
    maps += [{} for _ in tx.outputs]
    return base64.b64encode(_MAGIC + b"".join(map(_map_bytes, maps))).decode("ascii")


def is_finalized(psbt: str) -> bool:
    """Whether it is, to the letter, what :func:`finalized_psbt` writes."""
    try:
        content = base64.b64decode(psbt, validate=True)
        spent = [read_output(own.get(_WITNESS_UTXO, b"")) for own in _parts(content)[1]]
        return finalized_psbt(signed_tx(content), spent) == psbt
    except (ValueError, NotATransaction):
        return False


def _parts(psbt: bytes) -> tuple[Tx, Sequence[_Map]]:
    """The unsigned transaction, and the map of each of its inputs."""
    try:
        if len(psbt) > MOST_PSBT_BYTES:
            raise ValueError(f"{len(psbt)} bytes; at most {MOST_PSBT_BYTES}")
        reader = ByteReader(psbt)
        if not reader.skip(_MAGIC):
            raise ValueError("it does not begin like one")
        head = _read_map(reader)
        if head.get(_VERSION, bytes(4)) != bytes(4):
            raise ValueError("not of version 0")
        if _UNSIGNED_TX not in head:
            raise ValueError("without a transaction")
        tx = read_tx(head[_UNSIGNED_TX])
        if any(item.script_sig or item.witness for item in tx.inputs):
            raise ValueError("signed in the transaction itself")
        inputs = [_read_map(reader) for _ in tx.inputs]
        for _ in tx.outputs:
            _read_map(reader)
        if not reader.is_at_end:
            raise ValueError("something stands behind it")
    except (ValueError, NotATransaction) as error:
        raise NotATransaction("psbt_invalid", f"no PSBT of version 0: {error}") from error
    return tx, inputs


def _witness(own: _Map) -> tuple[str, ...]:
    """Of a P2WPKH or P2TR (key path) input: finished, or made of its only signature."""
    if _FINAL_SCRIPT_SIG in own:
        raise NotATransaction("psbt_invalid", "no PSBT of version 0: an input is signed outside of its witness")
    if _FINAL_WITNESS in own:
        reader = ByteReader(own[_FINAL_WITNESS])
        try:
            witness = read_witness(reader)
        except ValueError as error:
            raise NotATransaction("psbt_invalid", f"no PSBT of version 0: a witness is {error}") from error
        if witness and reader.is_at_end:
            return witness
        raise NotATransaction("psbt_invalid", "no PSBT of version 0: a witness is empty, or something stands behind it")
    if _TAP_KEY_SIG in own:
        return (own[_TAP_KEY_SIG].hex(),)
    partial = [key for key in own if key[0] == _PARTIAL_SIG and len(key) == 1 + _PUBKEY_BYTES]
    if len(partial) != 1:
        raise NotATransaction("psbt_incomplete", "the PSBT lacks the signature of at least one input")
    return own[partial[0]].hex(), partial[0][1:].hex()


def _read_map(reader: ByteReader) -> _Map:
    fields: dict[bytes, bytes] = {}
    while key := reader.sized():
        if key in fields:
            raise ValueError("a key comes twice")
        fields[key] = reader.sized()
    return fields


def _map_bytes(fields: _Map) -> bytes:
    return b"".join(sized(key) + sized(value) for key, value in sorted(fields.items())) + compact(0)
