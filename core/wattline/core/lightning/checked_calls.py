"""The gate to lightningd: what is called, and the exact form of every parameter. What has another form is never sent,
whoever asks for it. Pure.

lightningd aborts on some values that it does not expect, and every channel with it (seen on v26.06.6: a long
``destination`` in ``addpsbtoutput``, a first byte other than 31 to 34 in ``checkmessage``, a route from a node to
itself in ``getroutes``). A value that comes from the other side, from a configuration or from a node passes here or not
at all, so what a caller forgot to check cannot reach lightningd. A new call needs a row here and one in
docs/security.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from wattline.core.bitcoin.address import PREFIXES, AddressError, script_of
from wattline.core.bitcoin.checked_calls import TXID, VOUT, Check, hexadecimal, listed, matches, one_of, shaped, whole
from wattline.core.bitcoin.psbt import is_finalized
from wattline.core.bitcoin.transaction import MOST_SAT
from wattline.core.lightning.node import is_node_id

MOST_MSAT = MOST_SAT * 1000
MOST_BLOCKS = 2**31 - 1
MOST_S = 366 * 86_400
MOST_HOPS = 20
ONION_BYTES = 1366
"""Of an onion packet: version, key, 1300 bytes of hop payloads, HMAC (BOLT #4)."""

# 65 bytes in zbase32, the first of them 31 to 34: libsecp256k1 takes another recovery id for a bug of its caller.
is_signature = matches(r"(?:d[h769]|r[ybndrfg8ejkm])[ybndrfg8ejkmcpqxot1uwisza345h769]{102}")
is_plain_text = matches(r"[ -~]{0,1000}")
"""Printable ASCII: signmessage signs the JSON-escaped text, so anything else would be signed as something else."""


def is_short_channel_id(value: object) -> bool:
    """``BLOCKxTXxOUTPUT`` of 24, 24 and 16 bits (BOLT #7)."""
    match = _SHORT_CHANNEL_ID.fullmatch(value) if isinstance(value, str) else None
    return match is not None and all(
        int(part) < limit for part, limit in zip(match.groups(), (1 << 24, 1 << 24, 1 << 16), strict=True)
    )


def is_address(value: object) -> bool:
    """P2WPKH or P2TR of one of the networks, as we encode it ourselves."""
    return isinstance(value, str) and any(_belongs_to(value, network) for network in PREFIXES)


def _belongs_to(address: str, network: str) -> bool:
    try:
        script_of(address, network)
    except AddressError:
        return False
    return True


def _amount_sat(value: object) -> bool:
    """``1234sat``, nothing above all the bitcoin that there are."""
    return isinstance(value, str) and _AMOUNT_SAT.fullmatch(value) is not None and int(value[:-3]) <= MOST_SAT


def _outpoint(value: object) -> bool:
    txid, _, vout = value.partition(":") if isinstance(value, str) else ("", "", "")
    return TXID(txid) and _NUMBER.fullmatch(vout) is not None and VOUT(int(vout))


_SHORT_CHANNEL_ID = re.compile(r"([0-9]{1,8})x([0-9]{1,8})x([0-9]{1,5})")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
_AMOUNT_SAT = re.compile(r"[1-9][0-9]{0,15}sat")

_AMOUNT_MSAT = whole(1, MOST_MSAT)
_HEIGHT, _BLOCKS = whole(0, MOST_BLOCKS), whole(1, MOST_BLOCKS)
_INDEX, _PAGE, _SECONDS = whole(0, 2**63 - 1), whole(1, 10_000), whole(0, MOST_S)
_HASH = hexadecimal(32)
_NAME = matches(r"[a-z][a-z0-9.-]{0,63}")
_FEERATE = matches(r"[1-9][0-9]{0,8}perkw")
_OUTPOINTS = listed(_outpoint, 1, 1_000)
# Of our own node's making, and of any length that its wallet's inputs need.
_OWN_PSBT = matches(r"cHNidP8[A-Za-z0-9+/]{1,4000000}={0,2}")
_HOP_PAYLOAD = matches(r"(?:[0-9a-f]{2}){2,1300}")

CALLS: Mapping[str, Mapping[str, Check]] = {
    "addpsbtoutput": {"satoshi": _amount_sat, "initialpsbt": _OWN_PSBT, "destination": is_address},
    "bkpr-editdescriptionbyoutpoint": {"outpoint": _outpoint, "description": is_plain_text},
    "checkmessage": {"message": is_plain_text, "zbase": is_signature, "pubkey": is_node_id},
    "createonion": {
        "hops": listed(shaped(pubkey=is_node_id, payload=_HOP_PAYLOAD), 1, MOST_HOPS),
        "assocdata": _HASH,
    },
    "datastore": {
        "key": listed(_NAME, 1, 4),
        "string": is_plain_text,
        "mode": one_of("create-or-replace"),
    },
    "feerates": {"style": one_of("perkw")},
    "getinfo": {},
    "getroutes": {
        "source": is_node_id,
        "destination": is_node_id,
        "amount_msat": _AMOUNT_MSAT,
        "maxfee_msat": whole(0, MOST_MSAT),
        "final_cltv": whole(1, 2016),
        "layers": listed(one_of("auto.localchans", "auto.sourcefree", "auto.no_mpp_support"), 0, 3),
        "maxparts": one_of(1),
    },
    "listconfigs": {"config": _NAME},
    "listdatastore": {"key": listed(_NAME, 1, 4)},
    "listfunds": {"spent": one_of(True)},
    "listinvoices": {"index": one_of("updated"), "start": _INDEX, "limit": _PAGE},
    "listpeerchannels": {},
    "listsendpays": {"payment_hash": _HASH, "index": one_of("created"), "start": _INDEX, "limit": _PAGE},
    "listtransactions": {},
    "newaddr": {"addresstype": one_of("p2tr")},
    "reserveinputs": {"psbt": _OWN_PSBT, "exclusive": one_of(False), "reserve": _BLOCKS},
    "sendonion": {
        "onion": hexadecimal(ONION_BYTES),
        "first_hop": shaped(
            id=is_node_id, channel=is_short_channel_id, amount_msat=_AMOUNT_MSAT, delay=whole(1, MOST_BLOCKS)
        ),
        "payment_hash": _HASH,
        "label": is_plain_text,
        "shared_secrets": listed(hexadecimal(32), 1, MOST_HOPS),
        "partid": one_of(0),
        "groupid": one_of(1),
        "amount_msat": _AMOUNT_MSAT,
        "destination": is_node_id,
    },
    "sendpsbt": {"psbt": lambda value: isinstance(value, str) and is_finalized(value)},
    "signmessage": {"message": matches(r"wattline:[a-z]{1,20}:1:[0-9a-f]{64}")},
    "signpsbt": {"psbt": _OWN_PSBT},
    "unreserveinputs": {"psbt": _OWN_PSBT, "reserve": _BLOCKS},
    "utxopsbt": {
        "satoshi": one_of(0),
        "feerate": _FEERATE,
        "startweight": whole(0, 400_000),
        "utxos": _OUTPOINTS,
        "locktime": one_of(0),
        "reserve": _BLOCKS,
    },
    "waitsendpay": {"payment_hash": _HASH, "timeout": _SECONDS, "partid": one_of(0), "groupid": one_of(1)},
    "withdraw": {
        "destination": is_address,
        "satoshi": one_of("all"),
        "feerate": _FEERATE,
        "minconf": one_of(0),
        "utxos": _OUTPOINTS,
    },
}
"""Every call, with a check of each parameter that it is ever given."""
_OPTIONAL = {
    "getroutes": {"maxparts"},
    "listconfigs": {"config"},
    "listfunds": {"spent"},
    "listsendpays": {"payment_hash", "index", "start", "limit"},
}


def fault(method: str, params: Mapping[str, object]) -> str | None:
    """Why this call is not made; None when it is one of ours."""
    checks = CALLS.get(method)
    if checks is None:
        return f"{method} is none of the calls that are made"
    if strange := params.keys() - checks.keys():
        return f"{method} is given {', '.join(sorted(strange))}"
    if missing := checks.keys() - params.keys() - _OPTIONAL.get(method, set()):
        return f"{method} is not given {', '.join(sorted(missing))}"
    for name, param in params.items():
        if not checks[name](param):
            return f"{method}: its {name} has not the form that is passed on"
    if method == "getroutes" and params["source"] == params["destination"]:
        return "getroutes: there is no route from a node to itself"
    return None
