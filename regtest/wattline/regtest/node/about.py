"""Commands about the node itself and its peers: getinfo, listpeers, listpeerchannels, listconfigs, signatures, help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wattline.regtest.node.channels import Channels
from wattline.regtest.node.fault import INVALID_PARAMETERS, Fault
from wattline.regtest.node.keys import NodeKey, is_public_key, signer_of
from wattline.regtest.node.keysend import NAME as KEYSEND
from wattline.regtest.node.options import Options
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.peers import Peers, peer_object
from wattline.regtest.node.plugin_host import FEATURES, PluginHost, unknown_command
from wattline.regtest.node.rpc_server import Given, RpcServer
from wattline.regtest.node.store import Store

Json = dict[str, Any]
VERSION = "v26.06.6"
"""Of the lightningd that it was recorded from."""
PUBKEY_NOT_FOUND = 1301
LONGEST_MESSAGE = 65535


class About:
    """What a node tells of itself."""

    def __init__(
        self,
        key: NodeKey,
        options: Options,
        directory: Path,
        store: Store,
        channels: Channels,
        peers: Peers,
        plugins: PluginHost,
        rpc: RpcServer,
    ) -> None:
        self._key = key
        self._options = options
        self._directory = directory
        self._store = store
        self._channels = channels
        self._peers = peers
        self._plugins = plugins
        self._rpc = rpc
        self.height = 0
        rpc.add("getinfo", self._getinfo)
        rpc.add("listpeers", self._listpeers)
        rpc.add("listpeerchannels", self._listpeerchannels)
        rpc.add("listforwards", self._listforwards)
        rpc.add("listconfigs", self._listconfigs)
        rpc.add("connect", self._connect)
        rpc.add("signmessage", self._signmessage)
        rpc.add("checkmessage", self._checkmessage)
        rpc.add("help", self._help)
        rpc.add("notifications", self._notifications)

    async def _getinfo(self, given: Given, _: str) -> Json:
        Parameters(given)
        states = [channel["state"] for channel in self._channels.all()]
        active = states.count("CHANNELD_NORMAL")
        host, _, port = self._options.text("addr").rpartition(":")
        address = [{"type": "ipv4", "address": host, "port": int(port)}]
        earned = self._store.row(
            "SELECT coalesce(sum(in_msat - out_msat), 0) AS fees FROM forwards WHERE status='settled'"
        )
        return {
            "id": self._key.node_id,
            "alias": self._options.text("alias"),
            "color": self._key.node_id[:6],
            "num_peers": len(self._peers.all()),
            "num_pending_channels": len(states) - active,
            "num_active_channels": active,
            "num_inactive_channels": 0,
            "address": address,
            "binding": address,
            "version": VERSION,
            "blockheight": self.height,
            "network": "regtest",
            "fees_collected_msat": earned["fees"] if earned else 0,
            "lightning-dir": str(self._directory),
            # The keysend plugin is what sets its bit (55).
            "our_features": {**FEATURES, "node": FEATURES["init"]} if self._options.is_disabled(KEYSEND) else FEATURES,
        }

    async def _listpeers(self, given: Given, _: str) -> Json:
        params = Parameters(given, (), ("id", "level"))
        wanted = params.node_id("id") if params.has("id") else None
        shown = []
        for node_id in self._known_peers():
            if wanted not in (None, node_id):
                continue
            connection, count = self._peers.connection(node_id), len(self._channels.with_peer(node_id))
            if connection is not None:
                shown.append(peer_object(connection, count))
            elif count:
                shown.append({"id": node_id, "connected": False, "num_channels": count, "features": FEATURES["init"]})
        return {"peers": shown}

    def _known_peers(self) -> list[str]:
        return [row["node_id"] for row in self._store.rows("SELECT node_id FROM peers ORDER BY rowid")]

    async def _listpeerchannels(self, given: Given, _: str) -> Json:
        params = Parameters(given, (), ("id", "short_channel_id"))
        rows = self._channels.with_peer(params.node_id("id")) if params.has("id") else self._channels.all()
        return {"channels": [self._channels.object(row) for row in rows]}

    async def _listforwards(self, given: Given, _: str) -> Json:
        Parameters(given, (), ("status", "in_channel", "out_channel", "index", "start", "limit"))
        return {
            "forwards": [
                forward_object(row) for row in self._store.rows("SELECT * FROM forwards ORDER BY created_index")
            ]
        }

    async def _listconfigs(self, given: Given, _: str) -> Json:
        params = Parameters(given, (), ("config",))
        shown = {}
        for name, values in self._options.values.items():
            if params.has("config") and params.text("config") != name:
                continue
            value = values[-1]
            kind = "value_int" if value.isdigit() else "value_str"
            shown[name] = {kind: int(value) if value.isdigit() else value, "source": "cmdline"}
            if name.startswith("autoclean-"):
                # Open to setconfig.
                shown[name]["dynamic"] = True
        return {"configs": shown}

    async def _connect(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("id",), ("host", "port"))
        node_id, _, address = params.text("id").partition("@")
        host, _, port = address.partition(":") if address else (params.text("host"), "", str(params.integer("port")))
        Parameters({"id": node_id}, ("id",)).node_id("id")
        connection = await self._peers.connect(node_id, host or "127.0.0.1", int(port or 9735))
        direction = "out" if connection.is_ours else "in"
        return {
            "id": node_id,
            "features": FEATURES["init"],
            "direction": direction,
            "address": connection.address,
        }

    async def _signmessage(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("message",))
        if len(params.text("message")) > LONGEST_MESSAGE:
            raise Fault(INVALID_PARAMETERS, "Message must be < 64k")
        return dict(self._key.sign_message(params.text("message")))

    async def _checkmessage(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("message", "zbase"), ("pubkey",))
        if params.has("pubkey") and not is_public_key(params.text("pubkey")):
            raise params.invalid("pubkey", "should be a compressed pubkey")
        try:
            signer = signer_of(params.text("message"), params.text("zbase"))
        except ValueError:
            raise Fault(INVALID_PARAMETERS, "zbase is not valid zbase32") from None
        if params.has("pubkey"):
            return {"pubkey": signer, "verified": signer == params.text("pubkey").lower()}
        if signer != self._key.node_id and signer not in self._known_peers():
            raise Fault(PUBKEY_NOT_FOUND, "pubkey not found in the graph", {"claimed_key": signer})
        return {"pubkey": signer, "verified": True}

    async def _help(self, given: Given, _: str) -> Json:
        params = Parameters(given, (), ("command",))
        if not params.has("command"):
            return {"help": [], "format-hint": "simple"}
        name = params.text("command")
        shown = self._plugins.command_help(name)
        if shown is None and not self._rpc.knows(name):
            raise unknown_command(name)
        return {"help": [{"command": shown or name}], "format-hint": "simple"}

    async def _notifications(self, given: Given, _: str) -> Json:
        Parameters(given, ("enable",))
        return {}


def forward_object(row: Json) -> Json:
    """One element of ``listforwards``."""
    shown: Json = {"created_index": row["created_index"]}
    if row["updated_index"] is not None:
        shown["updated_index"] = row["updated_index"]
    shown |= {"in_channel": row["in_channel"], "in_htlc_id": row["in_htlc_id"], "out_channel": row["out_channel"]}
    if row["out_htlc_id"] is not None:
        shown["out_htlc_id"] = row["out_htlc_id"]
    shown["in_msat"] = row["in_msat"]
    if row["out_msat"] is not None:
        shown |= {"out_msat": row["out_msat"], "fee_msat": row["in_msat"] - row["out_msat"]}
    shown["status"] = row["status"]
    for name in ("failcode", "failreason"):
        if row[name] is not None:
            shown[name] = row[name]
    shown |= {"style": "tlv", "received_time": row["received_time"]}
    if row["resolved_time"] is not None:
        shown["resolved_time"] = row["resolved_time"]
    return shown
