"""Invoices as text (BOLT #11): what is needed to make one and to pay one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pyln.proto.bech32 import CHARSET, bech32_decode, bech32_encode, convertbits

from wattline.regtest.node.keys import NodeKey, recover

_HUMAN_PART = "lnbcrt"
_EXPIRY_S = 604_800
_FINAL_CLTV = 10
# payment_secret, var_onion, basic_mpp, option_payment_metadata as v26.06 announces them.
_FEATURES = "02000002024100"
_UNITS = (("", 10**11), ("m", 10**8), ("u", 10**5), ("n", 10**2))


@dataclass(frozen=True, slots=True)
class Invoice:
    """What its text says."""

    payment_hash: str
    payment_secret: str
    amount_msat: int | None
    description: str
    created_at: int
    payee: str

    def encode(self, key: NodeKey) -> str:
        """Signed by ``key``."""
        human = _HUMAN_PART + _amount_text(self.amount_msat)
        data = _number(self.created_at, 7)
        data += _tagged("s", _to_fives(bytes.fromhex(self.payment_secret)))
        data += _tagged("p", _to_fives(bytes.fromhex(self.payment_hash)))
        if len(self.description.encode()) <= 639:
            data += _tagged("d", _to_fives(self.description.encode()))
        else:
            data += _tagged("h", _to_fives(hashlib.sha256(self.description.encode()).digest()))
        data += _tagged("x", _minimal(_EXPIRY_S))
        data += _tagged("c", _minimal(_FINAL_CLTV))
        data += _tagged("9", _minimal(int(_FEATURES, 16)))
        signature = key.sign_recoverable(_digest(human, data))
        return str(bech32_encode(human, bytes(data + _to_fives(signature))))


def decode(text: str) -> Invoice:
    """Raises ValueError when it is not an invoice of this network."""
    try:
        human, values = bech32_decode(text)
    except ValueError as error:
        raise ValueError(f"not an invoice: {error}") from error
    if not human.startswith(_HUMAN_PART):
        raise ValueError("not an invoice of this network")
    fives = list(values)
    signed, signature = fives[:-104], _from_fives(fives[-104:])
    payee = recover(signature, _digest(human, signed))
    tags: dict[str, list[int]] = {}
    position = 7
    while position + 3 <= len(signed):
        length = signed[position + 1] * 32 + signed[position + 2]
        tags.setdefault(CHARSET[signed[position]], signed[position + 3 : position + 3 + length])
        position += 3 + length
    created_at = 0
    for five in signed[:7]:
        created_at = created_at * 32 + five
    return Invoice(
        payment_hash=_from_fives(tags["p"]).hex(),
        payment_secret=_from_fives(tags["s"]).hex(),
        amount_msat=_amount_msat(human.removeprefix(_HUMAN_PART)),
        description=_from_fives(tags.get("d", [])).decode(),
        created_at=created_at,
        payee=payee,
    )


def _amount_text(amount_msat: int | None) -> str:
    if amount_msat is None:
        return ""
    for unit, msat in _UNITS:
        if amount_msat % msat == 0:
            return f"{amount_msat // msat}{unit}"
    return f"{amount_msat * 10}p"


def _amount_msat(text: str) -> int | None:
    if not text:
        return None
    if text.endswith("p"):
        return int(text[:-1]) // 10
    unit = text[-1] if text[-1].isalpha() else ""
    return int(text.removesuffix(unit)) * dict(_UNITS)[unit]


def _digest(human: str, data: list[int]) -> bytes:
    return hashlib.sha256(human.encode() + bytes(convertbits(data, 5, 8))).digest()


def _tagged(name: str, data: list[int]) -> list[int]:
    return [CHARSET.index(name), len(data) // 32, len(data) % 32, *data]


def _number(value: int, length: int) -> list[int]:
    return [value >> 5 * (length - 1 - i) & 31 for i in range(length)]


def _minimal(value: int) -> list[int]:
    return _number(value, max(1, -(-value.bit_length() // 5)))


def _to_fives(data: bytes) -> list[int]:
    return list(convertbits(data, 8, 5))


def _from_fives(fives: list[int]) -> bytes:
    """What is left over is padding."""
    return bytes(convertbits(fives, 5, 8)[: len(fives) * 5 // 8])
