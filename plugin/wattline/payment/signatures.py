"""What the signatures of a version cover: everything, so that nobody can change it. Pure.

That a signature is valid is for the mempool's verdict to say. Only single-key outputs are taken: a Lightning node's
wallet has no others, and the txid of a transaction that spends them cannot be changed by anybody else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from wattline.bitcoin.address import P2TR, P2WPKH
from wattline.bitcoin.chain import Outpoint, Tx, TxInput, Unspent
from wattline.payment.aggregate import VersionRefused

SIGHASH_ALL = "01"
_SCHNORR = re.compile(rf"[0-9a-f]{{128}}(?:{SIGHASH_ALL})?")
"""64 bytes mean SIGHASH_DEFAULT, which covers as much as SIGHASH_ALL (BIP 341)."""
_DER = re.compile(rf"30[0-9a-f]{{120,142}}{SIGHASH_ALL}")
"""A DER signature with its sighash byte at the end (BIP 66, BIP 143)."""


def check_signatures(tx: Tx, inputs: Mapping[Outpoint, Unspent | None]) -> None:
    """Every input is a P2TR key path or a P2WPKH, and its signature covers all inputs and outputs. ``inputs`` is what
    the chain knows of them. Raises VersionRefused ``bad_input`` or ``not_signed``."""
    for item in tx.inputs:
        unspent = inputs.get(item.outpoint)
        script = unspent.script if unspent is not None else ""
        if P2TR.fullmatch(script):
            signature = _only(item, 1, _SCHNORR)
        elif P2WPKH.fullmatch(script):
            signature = _only(item, 2, _DER)
        else:
            raise VersionRefused(
                "bad_input", f"input {item.outpoint} must be P2TR or P2WPKH, of one key; its script is {script}"
            )
        if not signature:
            raise VersionRefused(
                "not_signed",
                f"input {item.outpoint} must be signed by its key alone, with SIGHASH_ALL (or DEFAULT for P2TR)",
            )


def _only(item: TxInput, length: int, form: re.Pattern[str]) -> bool:
    """The witness has so many elements, the first of them of that form, and nothing stands outside of it."""
    return item.script_sig == "" and len(item.witness) == length and form.fullmatch(item.witness[0]) is not None
