"""What may be handed to lightningd and to bitcoind, by a judge that shares nothing with the gates."""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import coincurve
from pyln.proto.bech32 import CHARSET

from wattline.regtest.node.psbt import Psbt

MOST_SAT = 21_000_000 * 10**8
ZBASE32 = "ybndrfg8ejkmcpqxot1uwisza345h769"


def is_hex(text: object, size: int) -> bool:
    return isinstance(text, str) and len(text) == 2 * size and set(text) <= set("0123456789abcdef")


def is_key(text: object) -> bool:
    return is_hex(text, 33) and bool(coincurve.PublicKey(bytes.fromhex(str(text))).format())


def is_amount(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def is_text(text: object) -> bool:
    return isinstance(text, str) and len(text) <= 1_000 and all(32 <= ord(character) < 127 for character in text)


def is_outpoint(text: object) -> bool:
    txid, _, vout = str(text).partition(":")
    return is_hex(txid, 32) and vout == str(int(vout)) and 0 <= int(vout) < 2**32


def is_address(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch(rf"bcrt1(?:q[{CHARSET}]{{38}}|p[{CHARSET}]{{58}})", text) is not None


def is_signature(text: object) -> bool:
    number = functools.reduce(lambda number, letter: number * 32 + ZBASE32.index(letter), str(text), 0)
    return len(str(text)) == 104 and 31 <= number >> 512 <= 34


def is_payload(text: object) -> bool:
    content = bytes.fromhex(str(text))
    length, rest = (content[0], content[1:]) if content[0] < 0xFD else (int.from_bytes(content[1:3]), content[3:])
    return str(text) == content.hex() and length == len(rest) <= 1_300


def is_psbt(text: object) -> bool:
    return isinstance(text, str) and base64.b64encode(base64.b64decode(text, validate=True)).decode() == text


def is_channel(text: object) -> bool:
    parts = [int(part) for part in str(text).split("x")]
    return len(parts) == 3 and parts[0] < 1 << 24 and parts[1] < 1 << 24 and parts[2] < 1 << 16


JUDGE: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "addpsbtoutput": lambda p: (
        is_address(p["destination"])
        and is_psbt(p["initialpsbt"])
        and p["satoshi"].endswith("sat")
        and 0 < int(p["satoshi"][:-3]) <= MOST_SAT
    ),
    "bkpr-editdescriptionbyoutpoint": lambda p: is_outpoint(p["outpoint"]) and is_text(p["description"]),
    "checkmessage": lambda p: is_text(p["message"]) and is_signature(p["zbase"]) and is_key(p["pubkey"]),
    "createonion": lambda p: (
        is_hex(p["assocdata"], 32)
        and 0 < len(p["hops"]) <= 20
        and all(is_key(hop["pubkey"]) and is_payload(hop["payload"]) for hop in p["hops"])
    ),
    "getroutes": lambda p: (
        is_key(p["source"])
        and is_key(p["destination"])
        and p["source"] != p["destination"]
        and is_amount(p["amount_msat"], MOST_SAT * 1000)
        and p["amount_msat"] > 0
        and is_amount(p["maxfee_msat"], MOST_SAT * 1000)
        and is_amount(p["final_cltv"], 2016)
    ),
    "listinvoices": lambda p: is_amount(p["start"], 2**63) and 0 < p["limit"] <= 10_000,
    "listsendpays": lambda p: is_hex(p["payment_hash"], 32),
    "reserveinputs": lambda p: is_psbt(p["psbt"]) and is_amount(p["reserve"], 2**31),
    "sendonion": lambda p: (
        is_hex(p["onion"], 1366)
        and all(is_hex(secret, 32) for secret in p["shared_secrets"])
        and is_hex(p["payment_hash"], 32)
        and is_key(p["destination"])
        and is_key(p["first_hop"]["id"])
        and is_channel(p["first_hop"]["channel"])
        and is_amount(p["first_hop"]["amount_msat"], MOST_SAT * 1000)
        and is_amount(p["first_hop"]["delay"], 2**31)
        and is_amount(p["amount_msat"], MOST_SAT * 1000)
        and is_text(p["label"])
    ),
    "sendpsbt": lambda p: str(Psbt.parse(p["psbt"])) == p["psbt"],
    "signmessage": lambda p: re.fullmatch(r"wattline:[a-z]+:1:[0-9a-f]{64}", p["message"]) is not None,
    "signpsbt": lambda p: is_psbt(p["psbt"]),
    "unreserveinputs": lambda p: is_psbt(p["psbt"]) and is_amount(p["reserve"], 2**31),
    "utxopsbt": lambda p: all(is_outpoint(item) for item in p["utxos"]) and 0 < len(p["utxos"]) <= 1_000,
    "waitsendpay": lambda p: is_hex(p["payment_hash"], 32) and is_amount(p["timeout"], 2**31),
    "withdraw": lambda p: is_address(p["destination"]) and all(is_outpoint(item) for item in p["utxos"]),
}
WITHOUT = {"feerates", "getinfo", "listconfigs", "listfunds", "listpeerchannels", "listtransactions", "newaddr"}

BITCOIND: dict[str, Callable[[list[Any]], bool]] = {
    "getblockheader": lambda p: is_hex(p[0], 32),
    "getrawtransaction": lambda p: is_hex(p[0], 32) and p[1] is True,
    "gettxout": lambda p: is_hex(p[0], 32) and is_amount(p[1], 2**32 - 1) and type(p[2]) is bool,
    "gettxspendingprevout": lambda p: all(is_hex(o["txid"], 32) and is_amount(o["vout"], 2**32 - 1) for o in p[0]),
    "sendrawtransaction": lambda p: bytes.fromhex(p[0]).hex() == p[0] and len(p[0]) > 100,
    "testmempoolaccept": lambda p: len(p[0]) == 1 and bytes.fromhex(p[0][0]).hex() == p[0][0] and len(p[0][0]) > 100,
}


def is_right(method: str, params: Mapping[str, Any]) -> bool:
    """Whether lightningd may be called so."""
    return method in WITHOUT or JUDGE[method](params)
