"""What a recorded scenario does to its nodes besides calling them: the same on either kind of node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.probe import heard, write_probe
from wattline.regtest.lightningd import Node
from wattline.regtest.network import Channel, RegtestNetwork
from wattline.regtest.waiting import wait_until

Json = dict[str, Any]


class Stage:
    """The nodes of one scenario, each with a probe plugin, and the steps that are no calls."""

    def __init__(self, network: RegtestNetwork) -> None:
        self._network = network
        self._nodes: dict[str, Node] = {}
        self._probes: dict[str, Path] = {}
        self._seen: Counter[str] = Counter()
        self._channels: list[Channel] = []
        self._actions: Mapping[str, Callable[..., Json | None]] = {
            "node": self._node,
            "channel": self._channel,
            "quiet": self._quiet,
            "mine": self._mine,
            "restart": self._restart,
            "kill": self._kill,
            "start": self._start,
            "reconnected": self._reconnected,
            "waits_in_hook": self._waits_in_hook,
            "plugin_gone": self._plugin_gone,
            "routed": self._routed,
            "fund": self._fund,
            "reorganise": self._reorganise,
            "transaction": self._transaction,
        }

    @property
    def directory(self) -> Path:
        return self._network.directory

    def do(self, action: str, **arguments: Any) -> Json | None:
        """Take the step; what later steps may speak of."""
        return self._actions[action](**arguments)

    def node(self, name: str) -> Node:
        return self._nodes[name]

    def any_node(self) -> Node:
        return next(node for node in self._nodes.values() if node.is_running)

    def node_ids(self) -> dict[str, str]:
        return {name: node.node_id for name, node in self._nodes.items()}

    def probe(self, node: str) -> Path:
        """The probe's program."""
        return self._probes[node]

    def heard(self, node: str, methods: Sequence[str]) -> list[Json]:
        """What the probe got of these methods since the last time, as soon as it is as many as named."""
        wanted = Counter(methods)

        def look() -> list[Json] | None:
            new = [m for m in heard(self._probes[node])[self._seen[node] :] if m["method"] in wanted]
            return (
                new if all(sum(m["method"] == name for m in new) >= count for name, count in wanted.items()) else None
            )

        messages = wait_until(f"the probe of {node} to hear {', '.join(methods)}", look, 30)
        self._seen[node] = len(heard(self._probes[node]))
        return messages

    # The steps.

    def _node(self, name: str, options: Mapping[str, Any]) -> Json:
        self._probes[name] = write_probe(self._network.directory, name)
        self._nodes[name] = self._network.node(name, plugin=self._probes[name], **options)
        return {"id": self._nodes[name].node_id, "port": self._nodes[name].port, "probe": str(self._probes[name])}

    def _channel(self, opener: str, peer: str, value_sat: int, push_msat: int, announce: bool) -> Json:
        ends = self._nodes[opener], self._nodes[peer]
        made = self._network.open_channel(*ends, value_sat, push_msat=push_msat, announce=announce)
        self._channels.append(made)
        return {"scid": made.short_channel_id, "channel_id": made.channel_id, "txid": made.funding_txid}

    def _quiet(self) -> None:
        """No htlc is under way anywhere."""

        def is_quiet() -> bool:
            running = [node for node in self._nodes.values() if node.is_running]
            rows = [row for node in running for row in node.rpc.listpeerchannels()["channels"]]
            return not any(row["htlcs"] for row in rows)

        wait_until("no htlc is under way", is_quiet)

    def _mine(self, blocks: int) -> None:
        self._network.mine(blocks)

    def _restart(self, name: str) -> None:
        self._nodes[name].restart()

    def _kill(self, name: str) -> None:
        self._nodes[name].kill()

    def _start(self, name: str) -> None:
        self._nodes[name].start()

    def _reconnected(self) -> None:
        for channel in self._channels:
            self._network.wait_for_channel(channel)

    def _routed(self, source: str, destination: str) -> None:
        self._network.wait_for_route(self._nodes[source], self._nodes[destination])

    def _waits_in_hook(self, name: str) -> None:
        def waits() -> bool:
            rows = self._nodes[name].rpc.listpeerchannels()["channels"]
            return any("htlc_accepted hook" in htlc.get("status", "") for row in rows for htlc in row["htlcs"])

        wait_until("an htlc waits for the probe", waits)

    def _fund(self, name: str, value_sat: int, outputs: int) -> Json:
        return {"txid": self._network.fund_wallet(self._nodes[name], value_sat, outputs)}

    def _reorganise(self, blocks: int) -> None:
        """The newest ``blocks`` give way to one block more, which has none of their transactions: those wait again."""
        chain = self._network.chain
        orphan = chain.call("getblockhash", chain.height - blocks + 1)
        chain.call("invalidateblock", orphan)
        address = chain.call("getnewaddress")
        for _ in range(blocks + 1):
            chain.call("generateblock", address, [])
        for node in self._nodes.values():
            wait_until(f"{node.name} to follow the new chain", partial(self._follows, node, chain.height))

    @staticmethod
    def _follows(node: Node, height: int) -> bool:
        return node.blockheight >= height

    def _transaction(self, psbt: str = "", tx: str = "") -> Json:
        """What bitcoind makes of it: the transaction, and whether it is signed."""
        chain = self._network.chain
        final = {"complete": True, "hex": tx} if tx else chain.call("finalizepsbt", psbt)
        decoded = (
            chain.call("decoderawtransaction", final["hex"]) if "hex" in final else chain.call("decodepsbt", psbt)["tx"]
        )
        return {
            "complete": final["complete"],
            "vsize": decoded["vsize"],
            "version": decoded["version"],
            "locktime": decoded["locktime"],
            "inputs": [
                {"txid": one["txid"], "vout": one["vout"], "sequence": one["sequence"]} for one in decoded["vin"]
            ],
            "outputs": [
                {"value_btc": str(one["value"]), "script": one["scriptPubKey"]["hex"]} for one in decoded["vout"]
            ],
        }

    def _plugin_gone(self, name: str) -> None:
        def gone() -> bool:
            plugins = self._nodes[name].rpc.call("plugin", {"subcommand": "list"})["plugins"]
            return not any(plugin["name"] == str(self._probes[name]) for plugin in plugins)

        wait_until("the probe's end is noticed", gone)
