"""Partially signed transactions of version 0 (BIP 174), as far as a wallet makes them: inputs, and outputs added.

Signatures and everything else in the maps of an input or output are kept as they are.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

_MAGIC = b"psbt\xff"
_UNSIGNED_TX = b"\x00"
_NON_WITNESS_UTXO = b"\x00"
_WITNESS_UTXO = b"\x01"
_VERSION = 2
SEQUENCE = 0xFFFFFFFD
"""Replaceable (BIP 125), as lightningd's inputs are."""

Map = tuple[tuple[bytes, bytes], ...]


class PsbtError(ValueError):
    """It is no PSBT of version 0."""


@dataclass(frozen=True, slots=True)
class PsbtInput:
    txid: str
    vout: int
    sequence: int = SEQUENCE
    fields: Map = ()


@dataclass(frozen=True, slots=True)
class PsbtOutput:
    value_sat: int
    script: bytes
    fields: Map = ()


@dataclass(frozen=True, slots=True)
class Psbt:
    """Of one transaction, whose inputs have no script or witness yet."""

    inputs: tuple[PsbtInput, ...]
    outputs: tuple[PsbtOutput, ...] = ()
    locktime: int = 0
    version: int = _VERSION
    fields: Map = ()
    """Global ones besides the transaction."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From base64. Raises PsbtError."""
        try:
            reader = _Reader(base64.b64decode(text, validate=True))
            if reader.take(len(_MAGIC)) != _MAGIC:
                raise PsbtError("no PSBT")
            glob = reader.map()
            tx = _Reader(dict(glob)[_UNSIGNED_TX])
            version = tx.number(4)
            inputs = tuple(_input(tx) for _ in range(tx.size()))
            outputs = tuple(PsbtOutput(tx.number(8), tx.take(tx.size())) for _ in range(tx.size()))
            locktime = tx.number(4)
            made = cls(
                tuple(replace(one, fields=reader.map()) for one in inputs),
                tuple(replace(one, fields=reader.map()) for one in outputs),
                locktime,
                version,
                tuple(field for field in glob if field[0] != _UNSIGNED_TX),
            )
        except (ValueError, KeyError) as error:
            raise PsbtError("no PSBT") from error
        if not reader.is_at_end or not tx.is_at_end:
            raise PsbtError("a PSBT with something behind it")
        return made

    def __str__(self) -> str:
        """Base64."""
        maps: list[Map] = [((_UNSIGNED_TX, self.unsigned_tx), *self.fields)]
        maps += [one.fields for one in self.inputs] + [one.fields for one in self.outputs]
        return base64.b64encode(_MAGIC + b"".join(_map(fields) for fields in maps)).decode("ascii")

    @property
    def unsigned_tx(self) -> bytes:
        """The transaction, without witnesses."""
        inputs = b"".join(
            bytes.fromhex(one.txid)[::-1] + _number(one.vout, 4) + b"\x00" + _number(one.sequence, 4)
            for one in self.inputs
        )
        outputs = b"".join(_number(one.value_sat, 8) + _sized(one.script) for one in self.outputs)
        counted = _size(len(self.inputs)) + inputs + _size(len(self.outputs)) + outputs
        return _number(self.version, 4) + counted + _number(self.locktime, 4)

    def with_outputs(self, *outputs: PsbtOutput, at: int | None = None) -> Psbt:
        """With these outputs more, behind its own or from place ``at`` on."""
        place = len(self.outputs) if at is None else at
        return replace(self, outputs=(*self.outputs[:place], *outputs, *self.outputs[place:]))

    @property
    def outpoints(self) -> Sequence[tuple[str, int]]:
        return [(one.txid, one.vout) for one in self.inputs]


def spending(txid: str, vout: int, value_sat: int, script: bytes, rawtx: bytes) -> PsbtInput:
    """An input with what a signer must know of the output that it spends."""
    output = _number(value_sat, 8) + _sized(script)
    return PsbtInput(txid, vout, fields=((_NON_WITNESS_UTXO, rawtx), (_WITNESS_UTXO, output)))


def _input(tx: _Reader) -> PsbtInput:
    txid, vout = tx.take(32)[::-1].hex(), tx.number(4)
    if tx.size() != 0:
        raise PsbtError("an input is signed in the transaction itself")
    return PsbtInput(txid, vout, tx.number(4))


class _Reader:
    """Bytes read from the front. Raises ValueError when there are too few."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise ValueError("too short")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def size(self) -> int:
        """A compact size."""
        first = self.number(1)
        return first if first < 0xFD else self.number({0xFD: 2, 0xFE: 4, 0xFF: 8}[first])

    def map(self) -> Map:
        fields = []
        while length := self.size():
            key = self.take(length)
            fields.append((key, self.take(self.size())))
        return tuple(fields)


def _map(fields: Map) -> bytes:
    return b"".join(_sized(key) + _sized(value) for key, value in fields) + b"\x00"


def _sized(data: bytes) -> bytes:
    return _size(len(data)) + data


def _size(count: int) -> bytes:
    if count < 0xFD:
        return _number(count, 1)
    return b"\xfd" + _number(count, 2) if count <= 0xFFFF else b"\xfe" + _number(count, 4)


def _number(value: int, count: int) -> bytes:
    return value.to_bytes(count, "little")
