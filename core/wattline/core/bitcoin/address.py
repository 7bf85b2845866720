"""Addresses of the outputs that a Lightning node's wallet makes, P2WPKH and P2TR: encoded from the script by ourselves
(BIP 173, BIP 350), and never passed on as somebody else wrote them."""

from __future__ import annotations

from pyln.proto.bech32 import CHARSET, bech32_hrp_expand, bech32_polymod, convertbits

from wattline.core.bitcoin.transaction import P2TR, P2WPKH
from wattline.core.errors import StopError

PREFIXES = {"bitcoin": "bc", "testnet": "tb", "testnet4": "tb", "signet": "tb", "regtest": "bcrt"}
"""The human-readable part of an address, by network as Core Lightning calls it (bitcoin/chainparams.c)."""
_BECH32, _BECH32M = 1, 0x2BC830A3
"""What the checksum comes to: of witness version 0 (BIP 173), and of all later ones (BIP 350)."""
_CHECKSUM_LENGTH = 6


class AddressError(StopError):
    """No script or address of these kinds, or one of another network. Code ``address_invalid``."""

    def __init__(self, message: str) -> None:
        super().__init__("address_invalid", message)


def is_plain(script: str) -> bool:
    """Whether a scriptPubKey (lower-case hex) is P2WPKH or P2TR."""
    return (P2WPKH.fullmatch(script) or P2TR.fullmatch(script)) is not None


def address_of(script: str, network: str) -> str:
    """The one address of a scriptPubKey (lower-case hex) on ``network``. Raises AddressError."""
    if network not in PREFIXES:
        raise AddressError(f"no addresses are known of network {network!r:.40}")
    return _encoded(script, PREFIXES[network])


def script_of(address: str, network: str) -> str:
    """The scriptPubKey (hex) of an address that is written as we would write it. Raises AddressError."""
    prefix, _, text = address[:_LONGEST].partition("1")
    data = [CHARSET.find(character) for character in text[:-_CHECKSUM_LENGTH]]
    program = None if not data or -1 in data else convertbits(data[1:], 5, 8, False)
    if program is None:
        raise AddressError(f"no address: {address!r:.100}")
    script = bytes([data[0] + 0x50 if data[0] else 0, len(program), *program]).hex()
    if PREFIXES.get(network) != prefix or _encoded(script, prefix) != address:
        raise AddressError(f"no P2WPKH or P2TR address of {network}: {address!r:.100}")
    return script


def _encoded(script: str, prefix: str) -> str:
    if not is_plain(script):
        raise AddressError(f"neither P2WPKH nor P2TR: {script!r:.100}")
    version, program = bytes.fromhex(script[:2])[0], bytes.fromhex(script[4:])
    data = bytes([version - 0x50 if version else 0, *convertbits(program, 8, 5)])
    expected = _BECH32M if version else _BECH32
    checksum = bech32_polymod(bech32_hrp_expand(prefix) + data + bytes(_CHECKSUM_LENGTH)) ^ expected
    ending = [checksum >> 5 * place & 31 for place in reversed(range(_CHECKSUM_LENGTH))]
    return prefix + "1" + "".join(CHARSET[five] for five in (*data, *ending))


_LONGEST = len(_encoded("5120" + "00" * 32, "bcrt"))
