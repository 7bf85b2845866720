"""Addresses and funds, and channels from their opening to their announcement."""

from __future__ import annotations

import os
import time
from typing import Any

from wattline.regtest.node.chain_view import ChainView
from wattline.regtest.node.channels import Channels
from wattline.regtest.node.fault import INVALID_PARAMETERS, Fault
from wattline.regtest.node.funds import Funds
from wattline.regtest.node.gossip import Gossip, GossipBoard
from wattline.regtest.node.log import timestamp
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.peers import Peers
from wattline.regtest.node.plugin_host import PluginHost
from wattline.regtest.node.rpc_server import Given, RpcServer
from wattline.regtest.node.store import Store

Json = dict[str, Any]
LOCKED_IN_DEPTH = 1
ANNOUNCED_DEPTH = 6
NO_ADDRESS = 400
AWAITING = "CHANNELD_AWAITING_LOCKIN"
NORMAL = "CHANNELD_NORMAL"


class Funding:
    """Addresses, outputs, ``fundchannel``; and what blocks do to channels."""

    def __init__(
        self,
        store: Store,
        chain: ChainView,
        funds: Funds,
        gossip: GossipBoard,
        channels: Channels,
        peers: Peers,
        plugins: PluginHost,
        rpc: RpcServer,
    ) -> None:
        self._store = store
        self._chain = chain
        self._funds = funds
        self._gossip = gossip
        self._channels = channels
        self._peers = peers
        self._plugins = plugins
        peers.opened = self._asked_to_open
        rpc.add("newaddr", self._newaddr)
        rpc.add("listfunds", self._listfunds)
        rpc.add("fundchannel", self._fundchannel)

    def follow(self, height: int) -> None:
        """The chain has this height: channels are locked in and announced."""
        for channel in self._channels.all():
            at = self._chain.confirmed_at(channel["funding_txid"])
            if at is None:
                continue
            depth = height - at[0] + 1
            if channel["state"] == AWAITING and depth >= LOCKED_IN_DEPTH:
                self._lock_in(channel, f"{at[0]}x{at[1]}x0")
                channel = self._channels.get(channel["channel_id"]) or channel
            if channel["is_announced"] and not channel["gossiped"] and depth >= ANNOUNCED_DEPTH:
                self._announce(channel)

    def _lock_in(self, channel: Json, scid: str) -> None:
        now = timestamp()
        self._store.execute(
            "UPDATE channels SET state = ?, scid = ?, normal_since = ? WHERE channel_id = ?",
            NORMAL,
            scid,
            now,
            channel["channel_id"],
        )
        self._tell_state(channel, now, AWAITING, NORMAL, "Lockin complete", scid)

    def _announce(self, channel: Json) -> None:
        # Each end tells its own direction, as each signs its own channel_update (BOLT #7).
        capacity, mine = channel["capacity_msat"], self._channels.direction(channel)
        now = int(time.time())
        self._gossip.announce(
            Gossip(
                channel["scid"],
                mine,
                self._peers.node_id,
                channel["peer_id"],
                capacity,
                self._channels.fee_base_msat,
                self._channels.fee_ppm,
                now,
            )
        )
        self._store.execute("UPDATE channels SET gossiped = 1 WHERE channel_id = ?", channel["channel_id"])

    def _tell_state(
        self, channel: Json, at: str, old: str | None, new: str, message: str, scid: str | None = None
    ) -> None:
        self._plugins.notify(
            "channel_state_changed",
            {
                "peer_id": channel["peer_id"],
                "channel_id": channel["channel_id"],
                **({"short_channel_id": scid} if scid else {}),
                "timestamp": at,
                **({"old_state": old} if old else {}),
                "new_state": new,
                "cause": "user" if channel["is_opener"] else "remote",
                "message": message,
            },
        )

    def _asked_to_open(self, peer_id: str, request: Json) -> Json:
        self._add(peer_id, request, is_opener=False, to_us_msat=request["push_msat"])
        return {"channel_id": request["channel_id"], "accepted": True}

    def _add(self, peer_id: str, request: Json, is_opener: bool, to_us_msat: int) -> None:
        with self._store.unit():
            self._store.insert(
                "channels",
                channel_id=request["channel_id"],
                peer_id=peer_id,
                is_opener=is_opener,
                state=AWAITING,
                funding_txid=request["txid"],
                capacity_msat=request["capacity_msat"],
                pushed_msat=request["push_msat"],
                to_us_msat=to_us_msat,
                min_to_us_msat=to_us_msat,
                max_to_us_msat=to_us_msat,
                is_announced=request["announce"],
                alias_local=request["aliases"][0 if is_opener else 1],
                alias_remote=request["aliases"][1 if is_opener else 0],
            )
        channel = self._channels.get(request["channel_id"])
        if channel is not None:
            self._tell_state(channel, timestamp(), None, AWAITING, "new channel opened")

    # Commands.

    async def _newaddr(self, given: Given, _: str) -> Json:
        kind = Parameters(given, (), ("addresstype",)).text("addresstype", "p2tr")
        kinds = ("bech32", "p2tr") if kind == "all" else (kind,)
        if kinds[0] not in ("bech32", "p2tr"):
            raise Fault(INVALID_PARAMETERS, f"'addresstype' should be 'p2tr', 'bech32', or 'all', not '{kind}'")
        return {name: await self._funds.new_address(name) for name in kinds}

    async def _listfunds(self, given: Given, _: str) -> Json:
        spent = Parameters(given, (), ("spent",)).flag("spent", False)
        channels = [
            {
                "peer_id": channel["peer_id"],
                "connected": self._peers.connection(channel["peer_id"]) is not None,
                "state": channel["state"],
                "channel_id": channel["channel_id"],
                **({"short_channel_id": channel["scid"]} if channel["scid"] else {}),
                "our_amount_msat": channel["to_us_msat"],
                "amount_msat": channel["capacity_msat"],
                "funding_txid": channel["funding_txid"],
                "funding_output": 0,
            }
            for channel in self._channels.all()
        ]
        return {"outputs": self._funds.outputs(spent), "channels": channels}

    async def _fundchannel(self, given: Given, _: str) -> Json:
        params = Parameters(
            given, ("id", "amount"), ("feerate", "announce", "minconf", "utxos", "push_msat", "close_to", "mindepth")
        )
        peer_id, value_sat = params.node_id("id"), params.integer("amount")
        push_msat, announce = params.msat("push_msat") if params.has("push_msat") else 0, params.flag("announce", True)
        if not self._peers.is_ready(peer_id):
            data = {"id": peer_id, "method": "connect"}
            raise Fault(NO_ADDRESS, "Unable to connect, no address known for peer", data)
        txid = await self._funds.fund(value_sat)
        request = {
            "channel_id": bytes.fromhex(txid)[::-1].hex(),
            "txid": txid,
            "capacity_msat": value_sat * 1000,
            "push_msat": push_msat,
            "announce": announce,
            "aliases": [_alias(), _alias()],
        }
        self._add(peer_id, request, is_opener=True, to_us_msat=value_sat * 1000 - push_msat)
        await self._peers.ask(peer_id, request)
        return {
            "tx": "practice",
            "txid": txid,
            "outnum": 0,
            "channel_id": request["channel_id"],
            "channel_type": {"bits": [12, 22], "names": ["static_remotekey/even", "anchors/even"]},
        }


def _alias() -> str:
    raw = int.from_bytes(os.urandom(8), "big")
    return f"{raw >> 40}x{raw >> 16 & 0xFFFFFF}x{raw & 0xFFFF}"
