"""The transaction inside a PSBT of version 0 (BIP 174), as far as the cable looks at what its own node has signed."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from wattline.bitcoin.chain import Outpoint
from wattline.errors import StopError

MAGIC = b"psbt\xff"
UNSIGNED_TX = b"\x00"
"""The key of PSBT_GLOBAL_UNSIGNED_TX."""


class PsbtError(StopError):
    """Not a PSBT of version 0. Code ``psbt_invalid``."""

    def __init__(self) -> None:
        super().__init__("psbt_invalid", "the node has signed something that is no PSBT of version 0")


@dataclass(frozen=True, slots=True)
class UnsignedTx:
    """What the signatures are for."""

    txid: str
    """That of the signed transaction, too, when all inputs are native segwit (their scriptSig stays empty)."""
    inputs: tuple[Outpoint, ...]
    outputs: tuple[tuple[int, str], ...]
    """value_sat and scriptPubKey (hex) of each, in order."""


def unsigned_tx(psbt: bytes) -> UnsignedTx:
    """The transaction in ``psbt``. Raises PsbtError."""
    try:
        return _transaction(_first_global(psbt))
    except (struct.error, IndexError, ValueError) as error:
        raise PsbtError from error


def _first_global(psbt: bytes) -> bytes:
    if not psbt.startswith(MAGIC):
        raise ValueError("no magic")
    reader = _Reader(psbt[len(MAGIC) :])
    while key := reader.take(reader.compact()):
        value = reader.take(reader.compact())
        if key == UNSIGNED_TX:
            return value
    raise ValueError("no unsigned transaction")


def _transaction(raw: bytes) -> UnsignedTx:
    reader = _Reader(raw)
    reader.take(4)
    inputs = []
    for _ in range(reader.compact()):
        txid, vout = reader.take(32)[::-1].hex(), struct.unpack("<I", reader.take(4))[0]
        if reader.compact():
            raise ValueError("a scriptSig")
        reader.take(4)
        inputs.append(Outpoint(txid, vout))
    outputs = []
    for _ in range(reader.compact()):
        value_sat = struct.unpack("<q", reader.take(8))[0]
        outputs.append((value_sat, reader.take(reader.compact()).hex()))
    reader.take(4)
    if not reader.is_at_end:
        raise ValueError("more than a transaction")
    txid = hashlib.sha256(hashlib.sha256(raw).digest()).digest()[::-1].hex()
    return UnsignedTx(txid, tuple(inputs), tuple(outputs))


class _Reader:
    """Bytes, taken from the front."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._content)

    def take(self, count: int) -> bytes:
        """So many bytes. Raises ValueError when there are fewer."""
        if self._at + count > len(self._content):
            raise ValueError("too short")
        self._at += count
        return self._content[self._at - count : self._at]

    def compact(self) -> int:
        """A compactSize number."""
        first = self.take(1)[0]
        if first < 0xFD:
            return first
        length = {0xFD: 2, 0xFE: 4, 0xFF: 8}[first]
        return int.from_bytes(self.take(length), "little")
