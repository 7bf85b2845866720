"""Payments on their way: offered to peers, received, forwarded, taken or failed (lightningd/peer_htlcs.c)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from wattline.core.record import PayloadError, decode_bigsize, encode_bigsize, parse_tlv_stream
from wattline.regtest.node import failures
from wattline.regtest.node.channels import CLTV_DELTA, Channels
from wattline.regtest.node.hooks import HookChain
from wattline.regtest.node.invoices import Invoices
from wattline.regtest.node.keys import NodeKey
from wattline.regtest.node.log import Log
from wattline.regtest.node.onion import OnionError, Peeled, peel
from wattline.regtest.node.payments import Payments, first_peer_not_ready
from wattline.regtest.node.peers import Peers
from wattline.regtest.node.store import Store

Json = dict[str, Any]
AMOUNT, CLTV, SCID, PAYMENT_DATA = 2, 4, 6, 8
KNOWN_FIELDS = frozenset({2, 4, 6, 8, 10, 12, 16, 18})


class FailedError(Exception):
    """The htlc goes back; ``message`` is BOLT #4's failure message."""

    def __init__(self, message: bytes) -> None:
        super().__init__(failures.failcode_name(failures.failcode(message)))
        self.message = message


class Htlcs:
    """Everything that is under way. What is written is taken up again after a restart: hooks are asked a second
    time."""

    def __init__(
        self,
        key: NodeKey,
        store: Store,
        channels: Channels,
        peers: Peers,
        invoices: Invoices,
        payments: Payments,
        hook: HookChain,
        height: Callable[[], int],
        log: Log,
    ) -> None:
        self._key = key
        self._store = store
        self._channels = channels
        self._peers = peers
        self._invoices = invoices
        self._payments = payments
        self._hook = hook
        self._height = height
        self._log = log
        self._judging: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        payments.offer = self.offer_payment
        peers.effect = self.take_message

    # Leaving.

    def offer_payment(self, first_hop: Json, onion: str, sendpay_id: int) -> None:
        """A payment of our own to the first hop. Raises Fault when it cannot leave."""
        channel = self._channels.by_scid(first_hop["channel"]) if first_hop["channel"] else None
        if channel is None:
            channel = next(iter(self._channels.with_peer(first_hop["id"])), None)
        scid = first_hop["channel"] or (channel["scid"] if channel else "0x0x0")
        direction = self._channels.direction(channel) if channel else 0
        if channel is None or not self._channels.is_usable(channel):
            raise first_peer_not_ready(self._key.node_id, scid, direction)
        if first_hop["amount_msat"] > self._channels.spendable_msat(channel):
            fault = first_peer_not_ready(self._key.node_id, scid, direction)
            fault.message = fault.message.replace("First peer not ready", "Capacity exceeded")
            raise fault
        expiry = self._height() + first_hop["delay"] + 1
        self._offer(
            channel, first_hop["amount_msat"], first_hop["payment_hash"], expiry, onion, {"sendpay_id": sendpay_id}
        )

    def _offer(self, channel: Json, amount_msat: int, payment_hash: str, expiry: int, onion: str, origin: Json) -> int:
        channel_id = channel["channel_id"]
        with self._store.unit():
            row = self._store.row("SELECT next_htlc_id FROM channels WHERE channel_id = ?", channel_id)
            number = int(row["next_htlc_id"]) if row else 0
            self._store.execute("UPDATE channels SET next_htlc_id = ? WHERE channel_id = ?", number + 1, channel_id)
            htlc = {
                "htlc_id": number,
                "amount_msat": amount_msat,
                "payment_hash": payment_hash,
                "cltv_expiry": expiry,
                "onion": onion,
            }
            self._store.insert("htlcs", channel_id=channel_id, direction="out", **htlc, **origin)
            self._channels.offered(channel_id, amount_msat, "out")
            self._peers.say(channel_id, {"type": "add", **htlc})
        return number

    # Arriving.

    def take_message(self, channel_id: str, message: Json) -> None:
        """What the peer says about a channel; inside of the unit of work that notes that it was heard."""
        kind = message.pop("type")
        if kind == "add":
            self._store.insert("htlcs", channel_id=channel_id, direction="in", **message)
            self._channels.offered(channel_id, message["amount_msat"], "in")
            self._store.afterwards(lambda: self._judge_later(channel_id, message["htlc_id"]))
        elif kind == "fulfill":
            self._fulfilled(channel_id, message["htlc_id"], message["preimage"])
        elif kind == "fail":
            self._failed(channel_id, message["htlc_id"], bytes.fromhex(message["message"]), message["secret"])

    def resume(self) -> None:
        """After a start: judge what nobody has decided on yet."""
        for row in self._store.rows(
            "SELECT i.* FROM htlcs i LEFT JOIN htlcs o ON o.from_channel = i.channel_id AND o.from_htlc_id = i.htlc_id "
            "WHERE i.direction = 'in' AND o.htlc_id IS NULL ORDER BY i.rowid"
        ):
            self._judge_later(row["channel_id"], row["htlc_id"])

    def _fulfilled(self, channel_id: str, htlc_id: int, preimage: str) -> None:
        htlc = self._ended(channel_id, "out", htlc_id)
        if htlc is None or sha256(bytes.fromhex(preimage)).hexdigest() != htlc["payment_hash"]:
            return
        self._channels.move(channel_id, htlc["amount_msat"], "out")
        if htlc["sendpay_id"] is not None:
            self._payments.complete(htlc["sendpay_id"], preimage)
        else:
            self._finish(htlc["from_channel"], htlc["from_htlc_id"], preimage=preimage)
            self._forwarded(htlc, "settled")

    def _failed(self, channel_id: str, htlc_id: int, message: bytes, secret: str) -> None:
        htlc = self._ended(channel_id, "out", htlc_id)
        if htlc is None:
            return
        if htlc["sendpay_id"] is not None:
            self._payments.fail(htlc["sendpay_id"], message, secret)
        else:
            self._finish(htlc["from_channel"], htlc["from_htlc_id"], failure=message, secret=secret)
            self._forwarded(htlc, "failed")

    def _ended(self, channel_id: str, direction: str, htlc_id: int) -> Json | None:
        """The htlc, which is no more."""
        row = self._store.row(
            "SELECT * FROM htlcs WHERE channel_id = ? AND direction = ? AND htlc_id = ?", channel_id, direction, htlc_id
        )
        self._store.execute(
            "DELETE FROM htlcs WHERE channel_id = ? AND direction = ? AND htlc_id = ?", channel_id, direction, htlc_id
        )
        return row

    def _finish(
        self, channel_id: str, htlc_id: int, preimage: str | None = None, failure: bytes = b"", secret: str = ""
    ) -> None:
        """An incoming htlc ends: taken with the preimage, or failed."""
        htlc = self._ended(channel_id, "in", htlc_id)
        self._channels.htlc_status.pop((channel_id, htlc_id), None)
        if htlc is None:
            return
        if preimage is not None:
            self._channels.move(channel_id, htlc["amount_msat"], "in")
            self._peers.say(channel_id, {"type": "fulfill", "htlc_id": htlc_id, "preimage": preimage})
        else:
            self._peers.say(
                channel_id, {"type": "fail", "htlc_id": htlc_id, "message": failure.hex(), "secret": secret}
            )

    # Judging.

    def _judge_later(self, channel_id: str, htlc_id: int) -> None:
        if (channel_id, htlc_id) in self._judging:
            return
        self._judging.add((channel_id, htlc_id))
        task = asyncio.ensure_future(self._judge(channel_id, htlc_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _judge(self, channel_id: str, htlc_id: int) -> None:
        secret = ""
        try:
            htlc = self._store.row(
                "SELECT * FROM htlcs WHERE channel_id = ? AND direction = 'in' AND htlc_id = ?", channel_id, htlc_id
            )
            channel = self._channels.get(channel_id)
            if htlc is None or channel is None:
                return
            try:
                layer = peel(bytes.fromhex(htlc["onion"]), self._key, bytes.fromhex(htlc["payment_hash"]))
            except OnionError as error:
                raise FailedError(failures.INVALID_ONION_HMAC) from error
            secret = layer.shared_secret.hex()
            await self._ask_and_decide(channel, htlc, layer)
        except FailedError as failed:
            with self._store.unit():
                self._finish(channel_id, htlc_id, failure=failed.message, secret=secret)
        finally:
            self._judging.discard((channel_id, htlc_id))

    async def _ask_and_decide(self, channel: Json, htlc: Json, layer: Peeled) -> None:
        key = (channel["channel_id"], htlc["htlc_id"])

        def asking(name: str) -> None:
            if name != "keysend":
                self._channels.htlc_status[key] = f"Waiting for the htlc_accepted hook of plugin {name}"

        try:
            verdict = await self._hook.run(self._hook_params(channel, htlc, layer), asking, _with_payload)
        finally:
            self._channels.htlc_status.pop(key, None)
        if verdict["result"] == "fail":
            raise FailedError(bytes.fromhex(verdict.get("failure_message", "2002")))
        if verdict["result"] == "resolve":
            with self._store.unit():
                self._finish(*key, preimage=verdict["payment_key"])
            return
        payload = bytes.fromhex(verdict["params"]["onion"]["payload"])
        fields = checked_fields(payload)
        if SCID in fields:
            self._forward(channel, htlc, fields, layer.next_onion.hex())
        else:
            self._take_payment(htlc, fields)

    def _hook_params(self, channel: Json, htlc: Json, layer: Peeled) -> Json:
        onion: Json = {"payload": layer.payload.hex()}
        forward: Json = {}
        try:
            fields = parse_tlv_stream(_without_length(layer.payload))
        except PayloadError:
            fields = {}
        if SCID in fields:
            scid = scid_text(fields[SCID])
            onion |= {
                "type": "tlv",
                "short_channel_id": scid,
                "forward_msat": int.from_bytes(fields.get(AMOUNT, b""), "big"),
                "outgoing_cltv_value": int.from_bytes(fields.get(CLTV, b""), "big"),
            }
            out = self._channels.by_scid(scid)
            if out is not None:
                forward["forward_to"] = out["channel_id"]
        onion |= {"next_onion": layer.next_onion.hex(), "shared_secret": layer.shared_secret.hex()}
        return {
            "peer_id": channel["peer_id"],
            "onion": onion,
            **forward,
            "htlc": {
                "short_channel_id": channel["scid"],
                "id": htlc["htlc_id"],
                "amount_msat": htlc["amount_msat"],
                "cltv_expiry": htlc["cltv_expiry"],
                "cltv_expiry_relative": htlc["cltv_expiry"] - self._height(),
                "payment_hash": htlc["payment_hash"],
            },
        }

    def _take_payment(self, htlc: Json, fields: dict[int, bytes]) -> None:
        amount_msat, height = htlc["amount_msat"], self._height()
        if amount_msat < int.from_bytes(fields.get(AMOUNT, b""), "big"):
            raise FailedError(failures.final_incorrect_amount(amount_msat))
        if htlc["cltv_expiry"] < int.from_bytes(fields.get(CLTV, b""), "big"):
            raise FailedError(failures.final_incorrect_expiry(htlc["cltv_expiry"]))
        unknown = FailedError(failures.unknown_payment(amount_msat, height))
        invoice = self._invoices.by_hash(htlc["payment_hash"])
        if invoice is None or invoice["status"] != "unpaid" or invoice["expires_at"] < time.time():
            raise unknown
        if fields.get(PAYMENT_DATA, b"")[:32].hex() != invoice["payment_secret"]:
            raise unknown
        # One part only: a payment in several would be held for the others, here it is what it is.
        wanted = invoice["amount_msat"]
        if wanted is not None and not wanted <= amount_msat <= 2 * wanted:
            raise unknown
        with self._store.unit():
            self._invoices.pay(invoice, amount_msat)
            self._finish(htlc["channel_id"], htlc["htlc_id"], preimage=invoice["preimage"])
        self._log.info(f"Resolved invoice '{invoice['label']}' with amount {amount_msat}msat in 1 htlcs")

    # Forwarding.

    def _forward(self, channel: Json, htlc: Json, fields: dict[int, bytes], next_onion: str) -> None:
        amount_msat = int.from_bytes(fields.get(AMOUNT, b""), "big")
        expiry = int.from_bytes(fields.get(CLTV, b""), "big")
        scid = scid_text(fields[SCID])
        out = self._channels.by_scid(scid)
        with self._store.unit():
            self._store.execute(
                "INSERT OR IGNORE INTO forwards (created_index, in_channel, in_htlc_id, out_channel, in_msat, status, "
                "received_time) VALUES (?, ?, ?, ?, ?, 'offered', ?)",
                self._store.next_number("forwards_created"),
                channel["scid"],
                htlc["htlc_id"],
                scid,
                htlc["amount_msat"],
                time.time(),
            )
            problem = self._problem(out, htlc, amount_msat, expiry)
            if problem is None and out is not None:
                origin = {"from_channel": channel["channel_id"], "from_htlc_id": htlc["htlc_id"]}
                number = self._offer(out, amount_msat, htlc["payment_hash"], expiry, next_onion, origin)
                self._store.execute(
                    "UPDATE forwards SET out_htlc_id = ?, out_msat = ? WHERE in_channel = ? AND in_htlc_id = ?",
                    number,
                    amount_msat,
                    channel["scid"],
                    htlc["htlc_id"],
                )
                return
            assert problem is not None
            self._store.execute(
                "UPDATE forwards SET status = 'local_failed', failcode = ?, failreason = ? WHERE in_channel = ? AND "
                "in_htlc_id = ?",
                failures.failcode(problem),
                failures.failcode_name(failures.failcode(problem)),
                channel["scid"],
                htlc["htlc_id"],
            )
        raise FailedError(problem)

    def _problem(self, out: Json | None, htlc: Json, amount_msat: int, expiry: int) -> bytes | None:
        if out is None:
            return failures.UNKNOWN_NEXT_PEER
        fee_msat = self._channels.fee_base_msat + amount_msat * self._channels.fee_ppm // 1_000_000
        if htlc["amount_msat"] < amount_msat + fee_msat:
            return failures.fee_insufficient(htlc["amount_msat"])
        if htlc["cltv_expiry"] < expiry + CLTV_DELTA:
            return failures.incorrect_expiry(htlc["cltv_expiry"])
        if not self._channels.is_usable(out) or amount_msat > self._channels.spendable_msat(out):
            return failures.TEMPORARY_CHANNEL_FAILURE
        return None

    def _forwarded(self, htlc: Json, status: str) -> None:
        channel = self._channels.get(htlc["from_channel"])
        self._store.execute(
            "UPDATE forwards SET status = ?, resolved_time = ?, updated_index = ? WHERE in_channel = ? "
            "AND in_htlc_id = ?",
            status,
            time.time(),
            self._store.next_number("forwards_updated"),
            channel["scid"] if channel else "",
            htlc["from_htlc_id"],
        )


def checked_fields(payload: bytes) -> dict[int, bytes]:
    """The fields of a payload, length in front. Raises FailedError when it is malformed or holds a field that must be
    understood and is not (BOLT #1: it's ok to be odd)."""
    try:
        stream = _without_length(payload)
        fields = parse_tlv_stream(stream)
    except PayloadError as error:
        raise FailedError(failures.invalid_payload(0, 0)) from error
    for number in fields:
        if number % 2 == 0 and number not in KNOWN_FIELDS:
            raise FailedError(failures.invalid_payload(number, _offset_of(stream, number)))
    return fields


def scid_text(data: bytes) -> str:
    """``BLOCKxTXxOUTPUT``."""
    value = int.from_bytes(data, "big")
    return f"{value >> 40}x{value >> 16 & 0xFFFFFF}x{value & 0xFFFF}"


def _without_length(payload: bytes) -> bytes:
    length, offset = decode_bigsize(payload, 0)
    if length != len(payload) - offset:
        raise PayloadError(f"the payload claims {length} bytes and has {len(payload) - offset}")
    return payload[offset:]


def _offset_of(stream: bytes, wanted: int) -> int:
    offset = 0
    while offset < len(stream):
        start = offset
        number, offset = decode_bigsize(stream, offset)
        if number == wanted:
            return start
        length, offset = decode_bigsize(stream, offset)
        offset += length
    return 0


def _with_payload(params: Json, answer: Json) -> Json:
    """The next one asked sees the payload that the last one put in its place."""
    if "payload" not in answer:
        return params
    payload = bytes.fromhex(answer["payload"])
    onion = {**params["onion"], "payload": (encode_bigsize(len(payload)) + payload).hex()}
    return {**params, "onion": onion}
