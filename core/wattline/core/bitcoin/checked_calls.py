"""The gate to bitcoind: what is called, and the exact form of every parameter. What has another form is never sent,
whoever asks for it. Pure.

A value that comes from the other side, from a configuration or from a node passes here or not at all, so what a caller
forgot to check cannot reach bitcoind. A new call needs a row here and one in docs/security.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from wattline.core.bitcoin.chain import NotATransaction
from wattline.core.bitcoin.transaction import read_tx

Check = Callable[[object], bool]

MOST_BLOCKS = 2**31 - 1
OUTPUTS_ASKED = 10_000
"""More outpoints than there are aggregates at a time."""


def hexadecimal(size: int) -> Check:
    """So many bytes in lower-case hex."""
    form = re.compile(rf"[0-9a-f]{{{2 * size}}}")
    return lambda value: isinstance(value, str) and form.fullmatch(value) is not None


def whole(lowest: int, highest: int) -> Check:
    return lambda value: type(value) is int and lowest <= value <= highest


def one_of(*allowed: object) -> Check:
    """The same type, too: True is not 1."""
    return lambda value: any(value == each and type(value) is type(each) for each in allowed)


def matches(form: str) -> Check:
    compiled = re.compile(form)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def listed(check: Check, least: int, most: int) -> Check:
    """A list (or tuple) of so many."""
    return lambda value: (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and least <= len(value) <= most
        and all(check(item) for item in value)
    )


def shaped(**fields: Check) -> Check:
    """An object with exactly these fields."""
    return lambda value: (
        isinstance(value, Mapping)
        and value.keys() == fields.keys()
        and all(check(value[name]) for name, check in fields.items())
    )


def transaction(value: object) -> bool:
    """A serialized transaction as we write it, hex."""
    try:
        return isinstance(value, str) and read_tx(bytes.fromhex(value)).raw == value
    except (NotATransaction, ValueError):
        return False


TXID = BLOCK_HASH = hexadecimal(32)
VOUT = whole(0, 2**32 - 1)

CALLS: Mapping[str, Sequence[Check]] = {
    "getblock": (BLOCK_HASH, one_of(0, 2)),
    "getblockchaininfo": (),
    "getblockhash": (whole(0, MOST_BLOCKS),),
    "getblockheader": (BLOCK_HASH,),
    "getmempoolinfo": (),
    "getnetworkinfo": (),
    "getrawtransaction": (TXID, one_of(True)),
    "gettxout": (TXID, VOUT, one_of(True, False)),
    "gettxspendingprevout": (listed(shaped(txid=TXID, vout=VOUT), 1, OUTPUTS_ASKED),),
    "sendrawtransaction": (transaction,),
    "testmempoolaccept": (listed(transaction, 1, 1),),
}
"""Every call, with a check of each of its parameters, all of which are given."""


def fault(method: str, params: Sequence[object]) -> str | None:
    """Why this call is not made; None when it is one of ours."""
    checks = CALLS.get(method)
    if checks is None:
        return f"{method} is none of the calls that are made"
    if len(checks) != len(params):
        return f"{method} takes {len(checks)} parameters, not {len(params)}"
    for number, (check, param) in enumerate(zip(checks, params, strict=True), 1):
        if not check(param):
            return f"{method}: its parameter {number} has not the form that is passed on"
    return None
