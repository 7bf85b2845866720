"""lightningd's hook and notification for payments, translated.

An exception here must never fail a stranger's payment (pyln would answer it with an error, which lightningd takes as a
failure of the htlc): foreign payments go on whatever happens, our own fail.

They fail without the answer ``fail``. After that one lightningd (seen on v26.06.6: plugin_hook_callback returns without
hook_done) counts the hook as in use for ever, and a plugin that is started later, such as this one after a crash, is
called after keysend, which has taken the preimage out by then. So lightningd is told to go on with a payload that
belongs to no invoice and is no keysend, and fails it itself, as what nobody asked for.

Keysend payments on the socket's side: what the ``htlc_accepted`` hook refuses, and what is in flight.

The hook only refuses. A payment that it lets pass is *reserved* (it counts against the session's credit cap) until its
credit has reached the session; the money itself is counted from lightningd's paid invoices alone (the journal), never
from the hook. Everything here is quick, since lightningd waits for the answer: it is in memory, and besides the ledger
is asked once whether it has the payment_hash (one row by its key).
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wattline.core.record import (
    PREIMAGE_TLV_TYPE,
    RECORD_TLV_TYPE,
    PayloadError,
    RecordError,
    encode_tlv_stream,
    encode_truncated,
    invoice_description,
    parse_payload,
    parse_record,
    quick_test,
)
from wattline.plugin.crediting import Crediting
from wattline.plugin.reservations import MOST_REMEMBERED

log = logging.getLogger(__name__)

CONTINUE = {"result": "continue"}
FAIL = {"result": "fail", "failure_message": "400f" + "00" * 12}
"""PERM|15 (BOLT #4), amount and height unknown: for what cannot be failed otherwise."""


class PaymentHook:
    """``htlc_accepted``: refuses what no session can use."""

    def __init__(self, crediting: Callable[[], Crediting | None], gate: KeysendGate | None = None) -> None:
        """``crediting``: None until the socket has started; it takes no payment before."""
        self._crediting = crediting
        self._gate = gate or KeysendGate(crediting)

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
            crediting = self._crediting()
            if crediting is not None:
                crediting.payment_refused(
                    seen.payment_hash, seen.amount_msat, verdict.code, verdict.message, verdict.session_id or ""
                )
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


DESCRIPTION_PREFIX = "keysend: "
AMOUNT_TLV_TYPE = 2
CLTV_TLV_TYPE = 4
PAYMENT_DATA_TLV_TYPE = 8
"""``payment_data`` of a final hop (BOLT #4): payment_secret (32 bytes) and total_msat (tu64)."""
BLINDED_TLV_TYPES = (10, 12)
"""``encrypted_recipient_data`` and ``current_path_key`` (BOLT #4): of blinded paths, on which no keysend comes."""
PAYMENT_METADATA_TLV_TYPE = 16
MIN_FINAL_CLTV = 18
"""Blocks that must be left (BOLT #11, and lightningd's own ``cltv-final``)."""


@dataclass(frozen=True, slots=True)
class Htlc:
    """An incoming htlc as the hook shows it."""

    payment_hash: str
    amount_msat: int
    payload: str
    """The decrypted per-hop payload, hex, with its length prefix."""
    is_forward: bool
    cltv_expiry: int | None = None
    """Of the htlc itself; None: not known."""
    blocks_left: int | None = None
    """Until then, from the newest block on; None: not known."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Let lightningd go on with it."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Fail it: the payer keeps the money. ``session_id`` is None when the record does not name a known session."""

    code: str
    message: str
    session_id: str | None = None


class KeysendGate:
    """The refusing side of the hook."""

    def __init__(self, crediting: Callable[[], Crediting | None]) -> None:
        """``crediting``: None until the socket has started; it takes no payment before."""
        self._crediting = crediting
        self._passed: OrderedDict[str, None] = OrderedDict()
        """Hashes of payments that were let pass, the newest at the end."""

    def speaks_of_wattline(self, payload: str) -> bool:
        """The quick test on the hex: False lets a stranger's payment pass without another look."""
        return quick_test(payload)

    def judge(self, htlc: Htlc) -> Pass | Refuse:
        """Whether the session that an htlc names can use it; reserves the amount when it can."""
        if htlc.is_forward or not quick_test(htlc.payload):
            return Pass()
        try:
            payload = bytes.fromhex(htlc.payload)
            fields = parse_payload(payload)
        except (PayloadError, ValueError) as error:
            return Refuse("malformed_record", f"the payload cannot be read: {error}")
        own = fields.get(RECORD_TLV_TYPE)
        description = invoice_description(payload) if PREIMAGE_TLV_TYPE in fields else None
        text = (description or "").removeprefix(DESCRIPTION_PREFIX)
        if own is None and not text.startswith("wattline:"):
            return Pass()
        if own is None or own != text.encode():
            return Refuse(
                "malformed_record",
                f"the record must be the longest text of the payment and stand under type {RECORD_TLV_TYPE}",
            )
        try:
            record = parse_record(text)
        except RecordError as error:
            return Refuse("malformed_record", str(error))
        if hashlib.sha256(fields.get(PREIMAGE_TLV_TYPE, b"")).hexdigest() != htlc.payment_hash:
            return Refuse("wrong_preimage", "the preimage does not belong to the payment_hash", record.session_id)
        if _total_msat(fields, htlc.amount_msat) != htlc.amount_msat:
            return Refuse("in_parts", "a payment for a session must come in one part", record.session_id)
        reason = _would_fail(fields, htlc)
        if reason:
            return Refuse("malformed_record", f"lightningd would not take it: {reason}", record.session_id)
        if self._is_used_up(htlc.payment_hash):
            return Refuse("malformed_record", "lightningd would not take it: its preimage is known", record.session_id)
        return self._reserve(htlc, record.session_id)

    def _is_used_up(self, payment_hash: str) -> bool:
        """It came before, and is not on its way any more."""
        crediting = self._crediting()
        if crediting is None or crediting.reservations.session_of(payment_hash) is not None:
            return False
        return payment_hash in self._passed or crediting.was_received(payment_hash)

    def _reserve(self, htlc: Htlc, session_id: str) -> Pass | Refuse:
        crediting, refusals = self._crediting(), list[tuple[str, str]]()
        if crediting is None:
            return Refuse("starting", "the socket is starting and does not take payments yet", session_id)

        def can_use(in_flight_msat: int) -> bool:
            refusal = crediting.refusal(session_id, htlc.amount_msat, in_flight_msat)
            if refusal is not None:
                refusals.append(refusal)
            return refusal is None

        outlet_id = crediting.outlet_id_of(session_id)
        if crediting.reservations.reserve(htlc.payment_hash, session_id, htlc.amount_msat, can_use, outlet_id):
            self._passed[htlc.payment_hash] = None
            while len(self._passed) > MOST_REMEMBERED:
                self._passed.popitem(last=False)
            return Pass()
        code, message = refusals[0] if refusals else ("wrong_session", "this payment_hash pays another session")
        return Refuse(code, message, session_id)


def _would_fail(fields: dict[int, bytes], htlc: Htlc) -> str:
    """Why lightningd fails a payment of which its payload says so (handle_localpay, BOLT #4); empty when it takes it.
    What would fail anyway must not be in flight meanwhile: it would cost its sender nothing."""
    if AMOUNT_TLV_TYPE not in fields or CLTV_TLV_TYPE not in fields:
        return "the payload names no amount or no expiry"
    if int.from_bytes(fields[AMOUNT_TLV_TYPE], "big") > htlc.amount_msat:
        return "it is less than its payload says"
    if htlc.cltv_expiry is not None and int.from_bytes(fields[CLTV_TLV_TYPE], "big") > htlc.cltv_expiry:
        return "it expires earlier than its payload says"
    if htlc.blocks_left is not None and htlc.blocks_left < MIN_FINAL_CLTV:
        return f"it expires in {htlc.blocks_left} blocks, and {MIN_FINAL_CLTV} must be left"
    if PAYMENT_METADATA_TLV_TYPE in fields:
        return "it carries payment_metadata"
    if any(kind in fields for kind in BLINDED_TLV_TYPES):
        return "it came on a blinded path"
    return ""


def _total_msat(fields: dict[int, bytes], amount_msat: int) -> int:
    """What the whole payment is to be: ``payment_data.total_msat``, or the htlc itself where there is none."""
    data = fields.get(PAYMENT_DATA_TLV_TYPE)
    return amount_msat if data is None else int.from_bytes(data[32:], "big")
