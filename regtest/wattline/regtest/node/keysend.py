"""lightningd's own keysend plugin: the last one asked about an htlc, makes an invoice for what carries its preimage
(plugins/keysend.c)."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any

from wattline.core.record import (
    PREIMAGE_TLV_TYPE,
    encode_tlv_stream,
    encode_truncated,
    invoice_description,
    parse_payload,
)
from wattline.regtest.node.fault import Fault
from wattline.regtest.node.htlcs import AMOUNT, KNOWN_FIELDS, PAYMENT_DATA
from wattline.regtest.node.invoices import Invoices
from wattline.regtest.node.log import Log

Json = dict[str, Any]
NAME = "keysend"
_CONTINUE: Json = {"result": "continue"}


class Keysend:
    """Registered for ``htlc_accepted`` before any plugin of the person's own."""

    def __init__(self, invoices: Invoices, log: Log) -> None:
        self._invoices = invoices
        self._log = log

    async def ask(self, params: Json) -> Json:
        payload = bytes.fromhex(params["onion"]["payload"])
        payment_hash = params["htlc"]["payment_hash"]
        description = invoice_description(payload)
        if description is None:
            return _CONTINUE
        fields = parse_payload(payload)
        preimage = fields[PREIMAGE_TLV_TYPE]
        if sha256(preimage).hexdigest() != payment_hash:
            self._say("unusual", f"Preimage provided by the sender does not match the payment_hash {payment_hash}.")
            return _CONTINUE
        now_ns = time.time_ns()
        self._say("info", f"Inserting a new invoice for keysend with payment_hash {payment_hash}")
        try:
            label = f"keysend-{now_ns // 10**9}.{now_ns % 10**9:09d}"
            invoice = self._invoices.make(label, description, None, preimage.hex())
        except Fault as fault:
            self._say("broken", f"Could not create invoice for keysend: {fault.message}")
            return _CONTINUE
        kept = {number: value for number, value in fields.items() if number % 2 or number in KNOWN_FIELDS}
        total = encode_truncated(int.from_bytes(fields[AMOUNT], "big"))
        kept[PAYMENT_DATA] = bytes.fromhex(invoice["payment_secret"]) + total
        self._say(
            "info",
            f"Resolving incoming HTLC with preimage for payment_hash {payment_hash} provided in the onion payload.",
        )
        return {"result": "continue", "payload": encode_tlv_stream(kept).hex()}

    def _say(self, level: str, text: str) -> None:
        self._log.write(level, "plugin-keysend", text)
