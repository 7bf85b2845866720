"""lightningd's hook and notification for payments, translated.

An exception here must never fail a stranger's payment (pyln would answer it with an error, which lightningd takes as a
failure of the htlc): foreign payments go on whatever happens, our own fail.

They fail without the answer ``fail``. After that one lightningd (seen on v26.06.6: plugin_hook_callback returns without
hook_done) counts the hook as in use for ever, and a plugin that is started later, such as this one after a crash, is
called after keysend, which has taken the preimage out by then. So lightningd is told to go on with a payload that
belongs to no invoice and is no keysend, and fails it itself, as what nobody asked for.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable
from typing import Any

from wattline.core.record import encode_tlv_stream, encode_truncated
from wattline.plugin.keysend import (
    AMOUNT_TLV_TYPE,
    CLTV_TLV_TYPE,
    PAYMENT_DATA_TLV_TYPE,
    Htlc,
    KeysendGate,
    Pass,
    Refuse,
)

log = logging.getLogger(__name__)

CONTINUE = {"result": "continue"}
FAIL = {"result": "fail", "failure_message": "400f" + "00" * 12}
"""PERM|15 (BOLT #4), amount and height unknown: for what cannot be failed otherwise."""


class PaymentHook:
    """``htlc_accepted``: refuses what no session can use."""

    def __init__(self, gate: KeysendGate, refused: Callable[[Htlc, Refuse], None]) -> None:
        self._gate = gate
        self._refused = refused

    def __call__(self, onion: dict[str, Any], htlc: dict[str, Any], **_: Any) -> dict[str, Any]:
        try:
            ours = self._gate.speaks_of_wattline(onion.get("payload", ""))
        except Exception:
            log.exception("the quick test failed; the payment goes on")
            return CONTINUE
        if not ours:
            return CONTINUE
        try:
            seen = Htlc(
                payment_hash=htlc["payment_hash"],
                amount_msat=int(htlc["amount_msat"]),
                payload=onion["payload"],
                is_forward="short_channel_id" in onion or "next_node_id" in onion,
                cltv_expiry=int(htlc["cltv_expiry"]) if "cltv_expiry" in htlc else None,
                blocks_left=int(htlc["cltv_expiry_relative"]) if "cltv_expiry_relative" in htlc else None,
            )
            verdict = self._gate.judge(seen)
            if isinstance(verdict, Pass):
                return CONTINUE
            self._refused(seen, verdict)
        except Exception:
            log.exception("a payment that speaks of wattline could not be judged; it is failed")
        return fail(htlc)


def fail(htlc: dict[str, Any]) -> dict[str, Any]:
    """The answer after which lightningd fails an htlc with ``incorrect_or_unknown_payment_details`` (BOLT #4): amount
    and expiry as they came, and a payment_secret that no invoice has. Never raises."""
    try:
        amount, expiry = encode_truncated(int(htlc["amount_msat"])), encode_truncated(int(htlc["cltv_expiry"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        log.exception("an htlc without amount or expiry is failed")
        return FAIL
    fields = {AMOUNT_TLV_TYPE: amount, CLTV_TLV_TYPE: expiry, PAYMENT_DATA_TLV_TYPE: secrets.token_bytes(32) + amount}
    return {"result": "continue", "payload": encode_tlv_stream(fields).hex()}


def paid_keysend(invoice_payment: dict[str, Any]) -> tuple[str, int] | None:
    """payment_hash and amount of an ``invoice_payment`` notification; None when it was not a keysend."""
    if not str(invoice_payment.get("label", "")).startswith("keysend-"):
        return None
    preimage = bytes.fromhex(invoice_payment["preimage"])
    msat = invoice_payment["msat"]
    amount = int(msat.removesuffix("msat")) if isinstance(msat, str) else int(msat)
    return hashlib.sha256(preimage).hexdigest(), amount
