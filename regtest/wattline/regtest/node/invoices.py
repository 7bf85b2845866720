"""Invoices: made, listed, paid, waited for (lightningd/invoice.c, wallet/invoices.c)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from hashlib import sha256
from typing import Any

from wattline.regtest.node.bolt11 import Invoice
from wattline.regtest.node.fault import Fault
from wattline.regtest.node.keys import NodeKey
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.plugin_host import PluginHost
from wattline.regtest.node.rpc_server import Given, RpcServer
from wattline.regtest.node.store import Store

Json = dict[str, Any]
EXPIRY_S = 604_800
LABEL_EXISTS = 900
HASH_EXISTS = 901
WAIT_TIMED_OUT = 904
UNKNOWN_INVOICE = 905
STATUS_UNEXPECTED = 906


class Invoices:
    """The table of invoices, which for wattline is the journal."""

    def __init__(self, store: Store, key: NodeKey, plugins: PluginHost, rpc: RpcServer) -> None:
        self._store = store
        self._key = key
        self._plugins = plugins
        self._waiters: set[asyncio.Future[None]] = set()
        rpc.add("invoice", self._invoice)
        rpc.add("listinvoices", self._listinvoices)
        rpc.add("delinvoice", self._delinvoice)
        rpc.add("waitanyinvoice", self._waitanyinvoice)

    def make(self, label: str, description: str, amount_msat: int | None, preimage: str | None = None) -> Json:
        """A new, unpaid row. Raises Fault when label or hash are taken."""
        chosen = preimage or os.urandom(32).hex()
        payment_hash = sha256(bytes.fromhex(chosen)).hexdigest()
        now = int(time.time())
        text = Invoice(payment_hash, os.urandom(32).hex(), amount_msat, description, now, self._key.node_id)
        with self._store.unit():
            if self._store.row("SELECT 1 FROM invoices WHERE label = ?", label) is not None:
                raise Fault(LABEL_EXISTS, f"Duplicate label '{label}'")
            try:
                self._store.insert(
                    "invoices",
                    created_index=self._store.next_number("invoices_created"),
                    label=label,
                    payment_hash=payment_hash,
                    preimage=chosen,
                    payment_secret=text.payment_secret,
                    bolt11=text.encode(self._key),
                    description=description,
                    amount_msat=amount_msat,
                    expires_at=now + EXPIRY_S,
                    status="unpaid",
                )
            except sqlite3.IntegrityError as error:
                raise Fault(HASH_EXISTS, "Invoice with same payment_hash already exists") from error
        row = self.by_hash(payment_hash)
        assert row is not None
        amount = {} if amount_msat is None else {"msat": amount_msat}
        self._plugins.notify("invoice_creation", {**amount, "preimage": chosen, "label": label})
        return row

    def by_hash(self, payment_hash: str) -> Json | None:
        return self._store.row("SELECT * FROM invoices WHERE payment_hash = ?", payment_hash)

    def pay(self, invoice: Json, amount_msat: int) -> None:
        """It is paid. Call it in the unit of work that takes the money."""
        self._store.execute(
            "UPDATE invoices SET status = 'paid', pay_index = ?, updated_index = ?, amount_received_msat = ?, "
            "paid_at = ? WHERE created_index = ?",
            self._store.next_number("invoices_paid"),
            self._store.next_number("invoices_updated"),
            amount_msat,
            int(time.time()),
            invoice["created_index"],
        )
        content = {"msat": amount_msat, "preimage": invoice["preimage"], "label": invoice["label"]}
        self._store.afterwards(lambda: self._tell(content))

    def _tell(self, content: Json) -> None:
        self._plugins.notify("invoice_payment", content)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # Commands.

    async def _invoice(self, given: Given, _: str) -> Json:
        params = Parameters(
            given, ("amount_msat", "label", "description"), ("expiry", "preimage", "cltv", "deschashonly")
        )
        amount = None if params.raw("amount_msat") == "any" else params.msat("amount_msat")
        preimage = params.hex32("preimage") if params.has("preimage") else None
        row = self.make(params.text("label"), params.text("description"), amount, preimage)
        return {
            "payment_hash": row["payment_hash"],
            "expires_at": row["expires_at"],
            "bolt11": row["bolt11"],
            "payment_secret": row["payment_secret"],
            "created_index": row["created_index"],
            "warning_capacity": "Insufficient incoming channel capacity to pay invoice",
        }

    async def _listinvoices(self, given: Given, _: str) -> Json:
        params = Parameters(
            given, (), ("label", "invstring", "payment_hash", "offer_id", "index", "start", "limit", "end")
        )
        index = params.text("index", "created")
        if index not in ("created", "updated"):
            raise params.invalid("index", "unknown index")
        where, values = [f"{index}_index IS NOT NULL"], []
        for name, column in (("label", "label"), ("payment_hash", "payment_hash"), ("invstring", "bolt11")):
            if params.has(name):
                where.append(f"{column} = ?")
                values.append(params.text(name))
        if params.has("start"):
            where.append(f"{index}_index >= ?")
            values.append(str(params.integer("start")))
        limit = f" LIMIT {params.integer('limit')}" if params.has("limit") else ""
        # The numbers came as text; SQLite compares them as what the column is.
        rows = self._store.rows(
            f"SELECT * FROM invoices WHERE {' AND '.join(where)} ORDER BY {index}_index{limit}", *values
        )
        return {"invoices": [invoice_object(row) for row in rows]}

    async def _delinvoice(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("label", "status"), ("desconly",))
        row = self._store.row("SELECT * FROM invoices WHERE label = ?", params.text("label"))
        if row is None:
            raise Fault(UNKNOWN_INVOICE, "Unknown invoice")
        if row["status"] != params.text("status"):
            raise Fault(
                STATUS_UNEXPECTED,
                f"Invoice status is {row['status']} not {params.text('status')}",
                {"current_status": row["status"], "expected_status": params.text("status")},
            )
        self._store.execute("DELETE FROM invoices WHERE created_index = ?", row["created_index"])
        return invoice_object(row)

    async def _waitanyinvoice(self, given: Given, _: str) -> Json:
        params = Parameters(given, (), ("lastpay_index", "timeout"))
        after, timeout = params.integer("lastpay_index"), params.integer("timeout", -1)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout if params.has("timeout") else None
        while True:
            row = self._store.row("SELECT * FROM invoices WHERE pay_index > ? ORDER BY pay_index LIMIT 1", after)
            if row is not None:
                return invoice_object(row)
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait_for(waiter, None if deadline is None else max(0.0, deadline - loop.time()))
            except TimeoutError:
                raise Fault(WAIT_TIMED_OUT, "Timed out while waiting for invoice to be paid") from None
            finally:
                self._waiters.discard(waiter)


def invoice_object(row: Json) -> Json:
    """As the commands show it."""
    shown: Json = {"label": row["label"], "bolt11": row["bolt11"], "payment_hash": row["payment_hash"]}
    if row["amount_msat"] is not None:
        shown["amount_msat"] = row["amount_msat"]
    status = row["status"]
    if status == "unpaid" and row["expires_at"] < time.time():
        status = "expired"
    shown["status"] = status
    if status == "paid":
        shown["pay_index"] = row["pay_index"]
        shown["amount_received_msat"] = row["amount_received_msat"]
        shown["paid_at"] = row["paid_at"]
        shown["payment_preimage"] = row["preimage"]
    shown["description"] = row["description"]
    shown["expires_at"] = row["expires_at"]
    shown["created_index"] = row["created_index"]
    if row["updated_index"] is not None:
        shown["updated_index"] = row["updated_index"]
    return shown
