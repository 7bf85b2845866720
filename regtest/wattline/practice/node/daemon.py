"""The node as a whole: put together, started, followed by the chain, ended."""

from __future__ import annotations

import asyncio
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from wattline.practice.node.about import About
from wattline.practice.node.blocks import PracticeBlocks
from wattline.practice.node.channels import FEE_BASE_MSAT, FEE_PPM, Channels
from wattline.practice.node.funding import Funding
from wattline.practice.node.gossip import GossipBoard
from wattline.practice.node.hooks import HookChain, Registration
from wattline.practice.node.htlcs import Htlcs
from wattline.practice.node.invoices import Invoices
from wattline.practice.node.keys import NodeKey
from wattline.practice.node.keysend import NAME as KEYSEND
from wattline.practice.node.keysend import Keysend
from wattline.practice.node.log import Log
from wattline.practice.node.options import Options
from wattline.practice.node.parameters import Parameters
from wattline.practice.node.payments import Payments
from wattline.practice.node.peers import Connection, Peers
from wattline.practice.node.plugin_host import PluginHost
from wattline.practice.node.routes import Routes
from wattline.practice.node.rpc_server import Given, RpcServer
from wattline.practice.node.store import Store
from wattline.practice.node.strangers import Strangers

Json = dict[str, Any]
WARNING = "THIS IS A PRACTICE NODE: it is not Lightning, it holds no money, and nothing that it says is worth anything."
LATENCY_MS = 25
"""How long a message takes to a peer. A payment over one channel takes two of them and what is computed, about as long
as on two real nodes of one machine."""
CHAIN_POLL_S = 0.05


class PracticeNode:
    """One node; ``run`` returns when it was told to stop."""

    def __init__(self, options: Options) -> None:
        directory = options.path("lightning-dir") / "regtest"
        directory.mkdir(parents=True, exist_ok=True)
        # As lightningd does; and the socket's path may then be longer than the system allows for sockets.
        os.chdir(directory)
        self._options = options
        self._log = Log(
            Path(options.text("log-file")) if options.text("log-file") else None, options.text("log-level", "info")
        )
        self._key = NodeKey.load(directory / "hsm_secret")
        self._blocks = PracticeBlocks(options.path("practice-chain"))
        gossip = GossipBoard(options.path("practice-gossip"))
        latency_s = options.number("practice-latency-ms", LATENCY_MS) / 1000
        self._rpc = RpcServer(self._log)
        store = Store(directory / "practice.sqlite3")
        hook = HookChain("htlc_accepted", self._log)
        self._plugins = PluginHost(options, directory, self._rpc, {hook.name: hook}, self._log)
        self._peers = Peers(self._key.node_id, store, self._log, latency_s)
        self._channels = Channels(
            store,
            self._peers,
            gossip,
            options.number("fee-base", FEE_BASE_MSAT),
            options.number("fee-per-satoshi", FEE_PPM),
        )
        invoices = Invoices(store, self._key, self._plugins, self._rpc)
        payments = Payments(store, self._plugins, self._rpc)
        self._about = About(self._key, options, directory, store, self._channels, self._peers, self._plugins, self._rpc)
        self._funding = Funding(store, self._blocks, gossip, self._channels, self._peers, self._plugins, self._rpc)
        self._htlcs = Htlcs(
            self._key, store, self._channels, self._peers, invoices, payments, hook, self._height, self._log
        )
        routes = Routes(self._key.node_id, self._channels, gossip, self._rpc)
        allows_deprecated = options.text("allow-deprecated-apis") == "true"
        Strangers(self._key.node_id, routes, payments, self._height, self._rpc, allows_deprecated)
        hook.register(Registration(KEYSEND, Keysend(invoices, self._log).ask))
        self._peers.came = self._peer_came
        self._peers.went = self._peer_went
        self._rpc.add("stop", self._stop)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Raises OptionError when it cannot start like this."""
        sys.stderr.write(f"{WARNING}\n")
        self._log.unusual(WARNING)
        await self._plugins.load([Path(path) for path in self._options.all("plugin")])
        self._about.height = self._blocks.height
        self._funding.follow(self._about.height)
        await self._rpc.start(Path("lightning-rpc"))
        await self._plugins.initialise()
        self._htlcs.resume()
        host, _, port = self._options.text("addr").rpartition(":")
        await self._peers.listen(host, int(port))
        self._log.info(f"Server started with public key {self._key.node_id}, alias {self._options.text('alias')}")
        following = asyncio.ensure_future(self._follow_chain())
        await self._stopping.wait()
        following.cancel()
        await self._plugins.stop_all()

    def _height(self) -> int:
        return self._about.height

    async def _follow_chain(self) -> None:
        seen = self._blocks.version
        while True:
            await asyncio.sleep(CHAIN_POLL_S)
            if self._blocks.version == seen and self._blocks.height == self._about.height:
                continue
            seen = self._blocks.version
            for height in range(self._about.height + 1, self._blocks.height + 1):
                self._about.height = height
                self._log.debug(f"Adding block {height}")
                self._funding.follow(height)
                self._plugins.notify(
                    "block_added", {"hash": sha256(f"block {height}".encode()).hexdigest(), "height": height}
                )

    def _peer_came(self, connection: Connection) -> None:
        for channel in self._channels.with_peer(connection.node_id):
            if channel["state"] == "CHANNELD_NORMAL":
                self._channels.reconnected.add(channel["channel_id"])
        direction = "out" if connection.is_ours else "in"
        content = {"id": connection.node_id, "direction": direction, "address": connection.address}
        self._plugins.notify("connect", content)

    def _peer_went(self, node_id: str) -> None:
        self._plugins.notify("disconnect", {"id": node_id})

    async def _stop(self, given: Given, _: str) -> Json:
        Parameters(given)
        # The answer leaves first.
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)
        return {"result": "Shutdown complete"}
