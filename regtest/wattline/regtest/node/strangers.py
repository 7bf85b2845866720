"""Paying as people do: ``xkeysend``, ``keysend`` and ``xpay`` (plugins/xpay)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from typing import Any

from wattline.core.lightning.onion import encode_short_channel_id
from wattline.core.record import PREIMAGE_TLV_TYPE, encode_bigsize, encode_tlv_stream, encode_truncated
from wattline.regtest.node import bolt11
from wattline.regtest.node.failures import DESTINATION_FAILED_FOR_GOOD
from wattline.regtest.node.fault import INVALID_PARAMETERS, Fault
from wattline.regtest.node.htlcs import AMOUNT, CLTV, PAYMENT_DATA, SCID
from wattline.regtest.node.onion import OnionError, make_onion
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.payments import Payments
from wattline.regtest.node.routes import NO_ROUTE, Routes
from wattline.regtest.node.rpc_server import Given, RpcServer

Json = dict[str, Any]
FINAL_CLTV = 42
UNKNOWN_DETAILS = 0x400F
PART_OF_XPAY = {"partid": 1, "groupid": 1}
PART_OF_KEYSEND = {"partid": 0, "groupid": 0}


class Strangers:
    """Commands that find the way, choose the preimage and wait, all in one."""

    def __init__(
        self,
        node_id: str,
        routes: Routes,
        payments: Payments,
        height: Callable[[], int],
        rpc: RpcServer,
        allow_deprecated: bool,
    ) -> None:
        self._node_id = node_id
        self._routes = routes
        self._payments = payments
        self._height = height
        rpc.add("createonion", self._createonion)
        rpc.add("xkeysend", self._xkeysend)
        rpc.add("xpay", self._xpay)
        if allow_deprecated:
            rpc.add("keysend", self._keysend)

    async def _createonion(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("hops", "assocdata"), ("session_key", "onion_size"))
        hops = []
        for hop in params.raw("hops"):
            one = Parameters(hop, ("pubkey", "payload"))
            hops.append((one.node_id("pubkey"), one.binary("payload")))
        if not hops:
            raise Fault(INVALID_PARAMETERS, "Cannot create an onion without hops.")
        try:
            packet, secrets = make_onion(hops, params.binary("assocdata"))
        except OnionError as error:
            raise Fault(-1, f"Could not create onion packet: {error}") from error
        return {"onion": packet.hex(), "shared_secrets": [secret.hex() for secret in secrets]}

    async def _xkeysend(self, given: Given, _: str) -> Json:
        params = Parameters(
            given, ("destination", "amount_msat"), ("extratlvs", "layers", "maxfee", "retry_for", "maxdelay", "label")
        )
        row = await self._spontaneously(params, PART_OF_XPAY)
        return _paid(row)

    async def _keysend(self, given: Given, _: str) -> Json:
        params = Parameters(
            given,
            ("destination", "amount_msat"),
            ("label", "maxfeepercent", "retry_for", "maxdelay", "exemptfee", "extratlvs", "routehints", "maxfee"),
        )
        began_s = time.time()
        row = await self._spontaneously(params, PART_OF_KEYSEND)
        return keysend_object({**row, "created_at": began_s})

    async def _xpay(self, given: Given, _: str) -> Json:
        params = Parameters(
            given, ("invstring",), ("amount_msat", "maxfee", "layers", "retry_for", "partial_msat", "label")
        )
        try:
            invoice = bolt11.decode(params.text("invstring"))
        except (ValueError, KeyError, IndexError) as error:
            raise Fault(INVALID_PARAMETERS, f"Invalid bolt11: {error}") from error
        amount_msat = invoice.amount_msat or params.msat("amount_msat")
        secret = bytes.fromhex(invoice.payment_secret) + encode_truncated(amount_msat)
        final = {PAYMENT_DATA: secret}
        texts = {"bolt11": params.text("invstring"), "label": None}
        row = await self._pay(invoice.payee, amount_msat, invoice.payment_hash, final, PART_OF_XPAY | texts)
        return _paid(row)

    async def _spontaneously(self, params: Parameters, part: Json) -> Json:
        preimage = os.urandom(32)
        final = {int(number): bytes.fromhex(value) for number, value in (params.raw("extratlvs") or {}).items()}
        final[PREIMAGE_TLV_TYPE] = preimage
        told = {**part, "label": params.raw("label"), "bolt11": None}
        destination = params.node_id("destination")
        return await self._pay(destination, params.msat("amount_msat"), sha256(preimage).hexdigest(), final, told)

    async def _pay(
        self, destination: str, amount_msat: int, payment_hash: str, final: dict[int, bytes], about: Json
    ) -> Json:
        """One part, on the one way there is; its row. ``about`` is the part's numbers and texts. Raises Fault with
        xpay's words."""
        max_fee_msat = max(5_000, amount_msat // 100)
        try:
            steps = self._routes.find(self._node_id, destination, amount_msat, max_fee_msat, FINAL_CLTV)
        except Fault as fault:
            raise Fault(NO_ROUTE, f"Failed: {fault.message}") from fault
        base = self._height() + 1
        hops = []
        for step, following in pairwise(steps):
            fields = {
                AMOUNT: encode_truncated(following.amount_out_msat),
                CLTV: encode_truncated(base + following.cltv_out),
                SCID: encode_short_channel_id(following.edge.scid),
            }
            hops.append((step.edge.destination, _with_length(fields)))
        last = steps[-1]
        told = {AMOUNT: encode_truncated(amount_msat), CLTV: encode_truncated(base + last.cltv_out), **final}
        hops.append((destination, _with_length(told)))
        onion, secrets = make_onion(hops, bytes.fromhex(payment_hash))
        first = steps[0]
        first_hop = {
            "id": first.edge.destination,
            "channel": first.edge.scid,
            "amount_msat": first.amount_in_msat,
            "delay": first.cltv_in,
        }
        part = {
            "payment_hash": payment_hash,
            "destination": destination,
            "amount_msat": amount_msat,
            "secrets": json.dumps([secret.hex() for secret in secrets]),
            **about,
        }
        sent = self._payments.send(first_hop, onion.hex(), part)
        try:
            return await self._payments.outcome(sent["created_index"], None)
        except Fault as fault:
            data = fault.data or {}
            if data.get("erring_index") == len(hops) and data.get("failcode") == UNKNOWN_DETAILS:
                message = "Destination said it doesn't know invoice: incorrect_or_unknown_payment_details"
                raise Fault(DESTINATION_FAILED_FOR_GOOD, message) from fault
            name = str(data.get("failcodename", "")).removeprefix("WIRE_").lower()
            raise Fault(NO_ROUTE, f"Failed after 1 attempts. We got {name}, assuming it won't work again") from fault


def keysend_object(row: Json) -> Json:
    """The answer of ``keysend``."""
    return {
        "destination": row["destination"],
        "payment_hash": row["payment_hash"],
        "created_at": row["created_at"],
        "parts": 1,
        "amount_msat": row["amount_msat"],
        "amount_sent_msat": row["amount_sent_msat"],
        "payment_preimage": row["preimage"],
        "status": "complete",
    }


def _paid(row: Json) -> Json:
    return {
        "payment_preimage": row["preimage"],
        "amount_msat": row["amount_msat"],
        "amount_sent_msat": row["amount_sent_msat"],
        "failed_parts": 0,
        "successful_parts": 1,
    }


def _with_length(fields: dict[int, bytes]) -> bytes:
    stream = encode_tlv_stream(fields)
    return encode_bigsize(len(stream)) + stream
