"""Transactions as bytes (BIP 144), read strictly and written by us: what has any other form than the one that we write
ourselves is refused. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from wattline.core.bitcoin.chain import NotATransaction, Outpoint, Tx, TxInput, TxOutput

P2WPKH = re.compile(r"0014[0-9a-f]{40}")
P2TR = re.compile(r"5120[0-9a-f]{64}")
"""The scriptPubKeys (hex) of a Lightning node's wallet."""
MOST_SAT = 21_000_000 * 100_000_000
MOST_BYTES = 400_000
"""No transaction that is relayed is larger (400,000 weight units)."""
_WITNESS_MARK = b"\x00\x01"
"""Marker and flag: what follows has witnesses."""


class ByteReader:
    """Bytes, taken from the front. Raises ValueError when there are fewer than asked for."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._content)

    def take(self, count: int) -> bytes:
        if count > len(self._content) - self._at:
            raise ValueError("too short")
        self._at += count
        return self._content[self._at - count : self._at]

    def skip(self, expected: bytes) -> bool:
        """Whether ``expected`` comes next; taken if so."""
        found = self._content.startswith(expected, self._at)
        self._at += len(expected) if found else 0
        return found

    def number(self, size: int) -> int:
        """Little-endian."""
        return int.from_bytes(self.take(size), "little")

    def compact(self) -> int:
        """A compactSize in its shortest form."""
        first = self.number(1)
        if first < 0xFD:
            return first
        value = self.number({0xFD: 2, 0xFE: 4, 0xFF: 8}[first])
        if len(compact(value)) != {0xFD: 3, 0xFE: 5, 0xFF: 9}[first]:
            raise ValueError("a number that is longer than it must be")
        return value

    def sized(self) -> bytes:
        return self.take(self.compact())


def compact(value: int) -> bytes:
    """A compactSize."""
    if value < 0xFD:
        return value.to_bytes(1, "little")
    if value <= 0xFFFF:
        return b"\xfd" + value.to_bytes(2, "little")
    if value <= 0xFFFFFFFF:
        return b"\xfe" + value.to_bytes(4, "little")
    return b"\xff" + value.to_bytes(8, "little")


def sized(content: bytes) -> bytes:
    return compact(len(content)) + content


def read_tx(raw: bytes) -> Tx:
    """Raises NotATransaction ``tx_invalid``."""
    try:
        if len(raw) > MOST_BYTES:
            raise ValueError("too long")
        tx = _read(ByteReader(raw))
    except ValueError as error:
        raise NotATransaction("tx_invalid", f"no transaction: {error}") from error
    if tx.raw != raw.hex():
        raise NotATransaction("tx_invalid", "no transaction: not in the form in which it would be written")
    return tx


def make_tx(version: int, locktime: int, inputs: Sequence[TxInput], outputs: Sequence[TxOutput]) -> Tx:
    """Serialized by us. Raises ValueError when a value does not fit."""
    if not inputs or not outputs:
        raise ValueError("a transaction has inputs and outputs")
    if not all(0 <= output.value_sat <= MOST_SAT for output in outputs):
        raise ValueError("an output's value is no amount of bitcoin")
    try:
        ends = version.to_bytes(4, "little"), locktime.to_bytes(4, "little")
        body = _listed(map(_input, inputs)) + _listed(map(output_bytes, outputs))
    except OverflowError as error:
        raise ValueError("a number does not fit") from error
    witnesses = b"".join(map(_witness, inputs)) if any(item.witness for item in inputs) else b""
    bare = ends[0] + body + ends[1]
    raw = ends[0] + _WITNESS_MARK + body + witnesses + ends[1] if witnesses else bare
    return Tx(
        txid=hashlib.sha256(hashlib.sha256(bare).digest()).digest()[::-1].hex(),
        version=version,
        locktime=locktime,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        # BIP 141: what is no witness weighs four times.
        vsize=-(-(3 * len(bare) + len(raw)) // 4),
        raw=raw.hex(),
    )


def output_bytes(output: TxOutput) -> bytes:
    return output.value_sat.to_bytes(8, "little") + sized(bytes.fromhex(output.script))


def read_output(content: bytes) -> TxOutput:
    """Raises ValueError."""
    reader = ByteReader(content)
    output = TxOutput(reader.number(8), reader.sized().hex())
    if not reader.is_at_end:
        raise ValueError("something stands behind it")
    return output


def witness_bytes(witness: Sequence[str]) -> bytes:
    return _listed(sized(bytes.fromhex(element)) for element in witness)


def read_witness(reader: ByteReader) -> tuple[str, ...]:
    return tuple(reader.sized().hex() for _ in range(reader.compact()))


def _read(reader: ByteReader) -> Tx:
    version = reader.number(4)
    has_witnesses = reader.skip(_WITNESS_MARK)
    inputs = [_read_input(reader) for _ in range(reader.compact())]
    outputs = [TxOutput(reader.number(8), reader.sized().hex()) for _ in range(reader.compact())]
    if has_witnesses:
        inputs = [TxInput(item.outpoint, item.sequence, item.script_sig, read_witness(reader)) for item in inputs]
    locktime = reader.number(4)
    if not reader.is_at_end:
        raise ValueError("something stands behind it")
    return make_tx(version, locktime, inputs, outputs)


def _read_input(reader: ByteReader) -> TxInput:
    outpoint = Outpoint(reader.take(32)[::-1].hex(), reader.number(4))
    script_sig = reader.sized().hex()
    return TxInput(outpoint, reader.number(4), script_sig)


def _listed(parts: Iterable[bytes]) -> bytes:
    listed = tuple(parts)
    return compact(len(listed)) + b"".join(listed)


def _input(item: TxInput) -> bytes:
    outpoint = bytes.fromhex(item.outpoint.txid)[::-1] + item.outpoint.vout.to_bytes(4, "little")
    return outpoint + sized(bytes.fromhex(item.script_sig)) + item.sequence.to_bytes(4, "little")


def _witness(item: TxInput) -> bytes:
    return witness_bytes(item.witness)
