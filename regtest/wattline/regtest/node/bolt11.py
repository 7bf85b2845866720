"""Invoices as text (BOLT #11): what is needed to make one and to pay one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from wattline.regtest.node.keys import NodeKey, recover

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
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
        return _bech32(human, data + _to_fives(signature))


def decode(text: str) -> Invoice:
    """Raises ValueError when it is not an invoice of this network."""
    human, _, rest = text.lower().rpartition("1")
    fives = [_CHARSET.index(character) for character in rest]
    if not human.startswith(_HUMAN_PART) or _polymod(_expanded(human) + fives) != 1:
        raise ValueError("not an invoice of this network")
    signed, signature = fives[:-110], _from_fives(fives[-110:-6])
    payee = recover(signature, _digest(human, signed))
    tags: dict[str, list[int]] = {}
    position = 7
    while position + 3 <= len(signed):
        length = signed[position + 1] * 32 + signed[position + 2]
        tags.setdefault(_CHARSET[signed[position]], signed[position + 3 : position + 3 + length])
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
    return hashlib.sha256(human.encode() + bytes(_to_eights(data, pad=True))).digest()


def _tagged(name: str, data: list[int]) -> list[int]:
    return [_CHARSET.index(name), len(data) // 32, len(data) % 32, *data]


def _number(value: int, length: int) -> list[int]:
    return [value >> 5 * (length - 1 - i) & 31 for i in range(length)]


def _minimal(value: int) -> list[int]:
    return _number(value, max(1, -(-value.bit_length() // 5)))


def _to_fives(data: bytes) -> list[int]:
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    return [int(bits[i : i + 5], 2) for i in range(0, len(bits), 5)]


def _to_eights(fives: list[int], pad: bool) -> list[int]:
    bits = "".join(f"{five:05b}" for five in fives)
    bits = bits + "0" * (-len(bits) % 8) if pad else bits[: len(bits) // 8 * 8]
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def _from_fives(fives: list[int]) -> bytes:
    return bytes(_to_eights(fives, pad=False))


def _bech32(human: str, fives: list[int]) -> str:
    checksum = _polymod(_expanded(human) + fives + [0] * 6) ^ 1
    return human + "1" + "".join(_CHARSET[five] for five in fives + _number(checksum, 6))


def _expanded(human: str) -> list[int]:
    return [ord(c) >> 5 for c in human] + [0] + [ord(c) & 31 for c in human]


def _polymod(values: list[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for i in range(5):
            checksum ^= _GENERATOR[i] if top >> i & 1 else 0
    return checksum
