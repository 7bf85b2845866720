"""Payments that leave: one row per part, found again by its hash (lightningd/pay.c)."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from wattline.regtest.node.failures import TRY_OTHER_ROUTE, failcode_name, failure_data
from wattline.regtest.node.fault import Fault
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.plugin_host import PluginHost
from wattline.regtest.node.rpc_server import Given, RpcServer
from wattline.regtest.node.store import Store

Json = dict[str, Any]
STILL_UNDER_WAY = 200
HASH_USED = 201
UNKNOWN_PAYMENT = 208
MONITOR = "Monitor status with listpays or waitsendpay"


class Payments:
    """The table of sent payments. ``offer`` hands an onion to the channel to the first hop."""

    def __init__(self, store: Store, plugins: PluginHost, rpc: RpcServer) -> None:
        self._store = store
        self._plugins = plugins
        self._waiters: defaultdict[int, set[asyncio.Future[None]]] = defaultdict(set)
        self.offer: Callable[[Json, str, int], None] = lambda first_hop, onion, sendpay_id: None
        rpc.add("sendonion", self._sendonion)
        rpc.add("waitsendpay", self._waitsendpay)
        rpc.add("listsendpays", self._listsendpays)

    def send(self, first_hop: Json, onion: str, part: Json) -> Json:
        """A new payment under way; its row. ``part`` has the columns of it. Raises Fault when it cannot even begin, and
        then there is no row."""
        with self._store.unit():
            number = self._store.next_number("sendpays_created")
            self._store.insert(
                "sendpays",
                created_index=number,
                amount_sent_msat=first_hop["amount_msat"],
                created_at=int(time.time()),
                status="pending",
                **part,
            )
            self.offer({**first_hop, "payment_hash": part["payment_hash"]}, onion, number)
        return self._row(number)

    def complete(self, sendpay_id: int, preimage: str) -> None:
        """The preimage has come. Call it in the unit of work that ends the htlc."""
        self._store.execute(
            "UPDATE sendpays SET status = 'complete', preimage = ?, completed_at = ?, updated_index = ? "
            "WHERE created_index = ?",
            preimage,
            int(time.time()),
            self._store.next_number("sendpays_updated"),
            sendpay_id,
        )
        self._store.afterwards(lambda: self._tell(sendpay_id))

    def fail(self, sendpay_id: int, message: bytes, secret: str) -> None:
        """It came back. ``secret`` is that of the hop that failed it."""
        row = self._row(sendpay_id)
        secrets = json.loads(row["secrets"])
        index = secrets.index(secret) + 1 if secret in secrets else len(secrets)
        data = {**sendpay_object(row), **failure_data(message, index)}
        # lightningd's answer shows the payment as it was before: still pending.
        failure = {
            "code": TRY_OTHER_ROUTE,
            "message": f"failed: {data['failcodename']} (reply from remote)",
            "data": data,
        }
        self._store.execute(
            "UPDATE sendpays SET status = 'failed', failure = ?, completed_at = ?, updated_index = ? "
            "WHERE created_index = ?",
            json.dumps(failure),
            int(time.time()),
            self._store.next_number("sendpays_updated"),
            sendpay_id,
        )
        self._store.afterwards(lambda: self._tell(sendpay_id))

    async def outcome(self, sendpay_id: int, timeout_s: float | None) -> Json:
        """Its row when it is complete. Raises Fault with its failure, or 200 when the time is up."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        while True:
            row = self._row(sendpay_id)
            if row["status"] == "complete":
                return row
            if row["status"] == "failed":
                failure = json.loads(row["failure"])
                raise Fault(failure["code"], failure["message"], failure["data"])
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters[sendpay_id].add(waiter)
            try:
                await asyncio.wait_for(waiter, None if deadline is None else max(0.0, deadline - loop.time()))
            except TimeoutError:
                raise Fault(STILL_UNDER_WAY, "Timed out while waiting") from None
            finally:
                self._waiters[sendpay_id].discard(waiter)

    def _tell(self, sendpay_id: int) -> None:
        row = self._row(sendpay_id)
        if row["status"] == "complete":
            self._plugins.notify("sendpay_success", sendpay_object(row))
        else:
            self._plugins.notify("sendpay_failure", json.loads(row["failure"]))
        for waiter in self._waiters.pop(sendpay_id, set()):
            if not waiter.done():
                waiter.set_result(None)

    def _row(self, sendpay_id: int) -> Json:
        row = self._store.row("SELECT * FROM sendpays WHERE created_index = ?", sendpay_id)
        assert row is not None, "a payment is never deleted"
        return row

    # Commands.

    async def _sendonion(self, given: Given, _: str) -> Json:
        params = Parameters(
            given,
            ("onion", "first_hop", "payment_hash"),
            (
                "label",
                "shared_secrets",
                "partid",
                "bolt11",
                "amount_msat",
                "destination",
                "localinvreqid",
                "groupid",
                "description",
            ),
        )
        payment_hash, part_id = params.hex32("payment_hash"), params.integer("partid")
        group_id = params.integer("groupid", 1)
        known = self._store.rows("SELECT * FROM sendpays WHERE payment_hash = ?", payment_hash)
        for row in known:
            if row["status"] == "complete":
                return sendpay_object(row)
            if (row["groupid"], row["partid"]) == (group_id, part_id):
                if row["status"] == "pending":
                    return {"message": MONITOR, **sendpay_object(row)}
                raise Fault(
                    HASH_USED,
                    f"There already is a payment with payment_hash={payment_hash}, groupid={group_id}, "
                    f"partid={part_id}. Either change the partid, or wait for the payment to complete and start a new "
                    "group.",
                )
        hop = params.raw("first_hop")
        first_hop = Parameters(hop, ("id", "amount_msat", "delay"), ("channel",))
        row = self.send(
            {
                "id": first_hop.node_id("id"),
                "channel": first_hop.text("channel"),
                "amount_msat": first_hop.msat("amount_msat"),
                "delay": first_hop.integer("delay"),
            },
            params.binary("onion").hex(),
            {
                "payment_hash": payment_hash,
                "partid": part_id,
                "groupid": group_id,
                "destination": params.node_id("destination") if params.has("destination") else None,
                "amount_msat": params.msat("amount_msat") if params.has("amount_msat") else None,
                "label": params.raw("label"),
                "bolt11": params.raw("bolt11"),
                "secrets": json.dumps(params.raw("shared_secrets") or []),
            },
        )
        return {"message": MONITOR, **sendpay_object(row)}

    async def _waitsendpay(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("payment_hash",), ("timeout", "partid", "groupid"))
        payment_hash, part_id = params.hex32("payment_hash"), params.integer("partid")
        rows = self._store.rows(
            "SELECT * FROM sendpays WHERE payment_hash = ? AND partid = ? ORDER BY groupid DESC", payment_hash, part_id
        )
        rows = [row for row in rows if not params.has("groupid") or row["groupid"] == params.integer("groupid")]
        if not rows:
            raise Fault(UNKNOWN_PAYMENT, f"Never attempted payment part {part_id} for '{payment_hash}'")
        timeout_s = float(params.integer("timeout")) if params.has("timeout") else None
        return sendpay_object(await self.outcome(rows[0]["created_index"], timeout_s))

    async def _listsendpays(self, given: Given, _: str) -> Json:
        params = Parameters(given, (), ("bolt11", "payment_hash", "status", "index", "start", "limit"))
        where, values = ["1"], []
        if params.has("payment_hash"):
            where.append("payment_hash = ?")
            values.append(params.hex32("payment_hash"))
        for name in ("bolt11", "status"):
            if params.has(name):
                where.append(f"{name} = ?")
                values.append(params.text(name))
        index = params.text("index", "created")
        if index not in ("created", "updated"):
            raise params.invalid("index", "unknown index")
        if params.has("start"):
            where.append(f"{index}_index >= ?")
            values.append(str(params.integer("start")))
        limit = f" LIMIT {params.integer('limit')}" if params.has("limit") else ""
        order = f"ORDER BY {index}_index{limit}"
        rows = self._store.rows(f"SELECT * FROM sendpays WHERE {' AND '.join(where)} {order}", *values)
        return {"payments": [sendpay_object(row) for row in rows]}


def sendpay_object(row: Json) -> Json:
    """As the commands show it."""
    shown: Json = {
        "created_index": row["created_index"],
        "id": row["created_index"],
        "payment_hash": row["payment_hash"],
    }
    shown["groupid"] = row["groupid"]
    if row["updated_index"] is not None:
        shown["updated_index"] = row["updated_index"]
    if row["partid"]:
        shown["partid"] = row["partid"]
    for name in ("destination", "amount_msat"):
        if row[name] is not None:
            shown[name] = row[name]
    shown["amount_sent_msat"] = row["amount_sent_msat"]
    shown["created_at"] = row["created_at"]
    if row["completed_at"] is not None:
        shown["completed_at"] = row["completed_at"]
    shown["status"] = row["status"]
    if row["preimage"] is not None:
        shown["payment_preimage"] = row["preimage"]
    for name in ("label", "bolt11"):
        if row[name] is not None:
            shown[name] = row[name]
    return shown


def first_peer_not_ready(node_id: str, channel: str, direction: int) -> Fault:
    """The onion cannot even leave."""
    return Fault(
        TRY_OTHER_ROUTE,
        f"failed: {failcode_name(0x1007)} (First peer not ready)",
        {
            "erring_index": 0,
            "failcode": 0x1007,
            "failcodename": failcode_name(0x1007),
            "erring_node": node_id,
            "erring_channel": channel,
            "erring_direction": direction,
        },
    )
