"""lightningd's hook and notification for payments, translated.

An exception here must never fail a stranger's payment (pyln would answer it with an error, which lightningd takes as a
failure of the htlc): foreign payments go on whatever happens, our own fail.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any

from wattline.payment.keysend import Htlc, KeysendGate, Pass, Refuse

log = logging.getLogger(__name__)

CONTINUE = {"result": "continue"}
INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS = 0x400F
"""PERM|15 (BOLT #4): the destination's refusal, followed by the htlc's amount (u64) and the block height (u32)."""


class PaymentHook:
    """``htlc_accepted``: refuses what no session can use."""

    def __init__(
        self, gate: KeysendGate, refused: Callable[[Htlc, Refuse], None], blockheight: Callable[[], int]
    ) -> None:
        self._gate = gate
        self._refused = refused
        self._blockheight = blockheight

    def __call__(self, onion: dict[str, Any], htlc: dict[str, Any], **_: Any) -> dict[str, Any]:
        try:
            ours = self._gate.speaks_of_wattline(onion.get("payload", ""))
        except Exception:
            log.exception("the quick test failed; the payment goes on")
            return CONTINUE
        if not ours:
            return CONTINUE
        amount_msat = 0
        try:
            seen = Htlc(
                payment_hash=htlc["payment_hash"],
                amount_msat=int(htlc["amount_msat"]),
                payload=onion["payload"],
                is_forward="short_channel_id" in onion or "next_node_id" in onion,
            )
            amount_msat = seen.amount_msat
            verdict = self._gate.judge(seen)
            if isinstance(verdict, Pass):
                return CONTINUE
            self._refused(seen, verdict)
        except Exception:
            log.exception("a payment that speaks of wattline could not be judged; it is failed")
        return self._fail(amount_msat)

    def _fail(self, amount_msat: int) -> dict[str, Any]:
        message = INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS.to_bytes(2, "big")
        message += amount_msat.to_bytes(8, "big") + self._blockheight().to_bytes(4, "big")
        return {"result": "fail", "failure_message": message.hex()}


def paid_keysend(invoice_payment: dict[str, Any]) -> tuple[str, int] | None:
    """payment_hash and amount of an ``invoice_payment`` notification; None when it was not a keysend."""
    if not str(invoice_payment.get("label", "")).startswith("keysend-"):
        return None
    preimage = bytes.fromhex(invoice_payment["preimage"])
    msat = invoice_payment["msat"]
    amount = int(msat.removesuffix("msat")) if isinstance(msat, str) else int(msat)
    return hashlib.sha256(preimage).hexdigest(), amount
