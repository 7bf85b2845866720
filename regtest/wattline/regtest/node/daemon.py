"""The node as a whole: put together, started, followed by the chain, ended."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from wattline.core.errors import WattlineError
from wattline.regtest.node.about import About
from wattline.regtest.node.channels import FEE_BASE_MSAT, FEE_PPM, Channels
from wattline.regtest.node.datastore import Datastore
from wattline.regtest.node.funding import Funding
from wattline.regtest.node.gossip import GossipBoard
from wattline.regtest.node.ground import ground_of
from wattline.regtest.node.hooks import HookChain, Registration
from wattline.regtest.node.htlcs import Htlcs
from wattline.regtest.node.invoices import Invoices
from wattline.regtest.node.keys import NodeKey
from wattline.regtest.node.keysend import NAME as KEYSEND
from wattline.regtest.node.keysend import Keysend
from wattline.regtest.node.log import Log
from wattline.regtest.node.options import Options
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.payments import Payments
from wattline.regtest.node.peers import Connection, Peers
from wattline.regtest.node.plugin_host import PluginHost
from wattline.regtest.node.routes import Routes
from wattline.regtest.node.rpc_server import Given, RpcServer
from wattline.regtest.node.store import Store
from wattline.regtest.node.strangers import Strangers

Json = dict[str, Any]
WARNING = "THIS IS A PRACTICE NODE: it is not Lightning, it holds no money, and nothing that it says is worth anything."
LATENCY_MS = 25
"""How long a message takes to a peer. A payment over one channel takes two of them and what is computed: 60 to 70 ms
on an idle machine, where two real nodes took 65 ms."""


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
        gossip = GossipBoard(options.path("practice-gossip"))
        self._rpc = RpcServer(self._log)
        store = Store(directory / "practice.sqlite3")
        self._ground = ground_of(options, store, self._height, lambda: bool(self._channels.all()), self._rpc, self._log)
        hook = HookChain("htlc_accepted", self._log)
        self._plugins = PluginHost(options, directory, self._rpc, {hook.name: hook}, self._log)
        self._peers = Peers(self._key.node_id, store, self._log, LATENCY_MS / 1000)
        self._channels = Channels(
            store,
            self._peers,
            gossip,
            options.number("fee-base", FEE_BASE_MSAT),
            options.number("fee-per-satoshi", FEE_PPM),
        )
        invoices = Invoices(store, self._key, self._plugins, self._rpc)
        payments = Payments(store, self._plugins, self._rpc)
        Datastore(store, self._rpc)
        self._about = About(self._key, options, directory, store, self._channels, self._peers, self._plugins, self._rpc)
        ground = self._ground
        self._funding = Funding(
            store, ground.chain, ground.funds, gossip, self._channels, self._peers, self._plugins, self._rpc
        )
        self._htlcs = Htlcs(
            self._key, store, self._channels, self._peers, invoices, payments, hook, self._height, self._log
        )
        routes = Routes(self._key.node_id, self._channels, gossip, self._rpc)
        allows_deprecated = options.text("allow-deprecated-apis") == "true"
        Strangers(self._key.node_id, routes, payments, self._height, self._rpc, allows_deprecated)
        if not self._options.is_disabled(KEYSEND):
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
        await self._ground.open(self._options.text("alias"))
        self._about.height = self._ground.chain.height
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
        await self._ground.close()

    def _height(self) -> int:
        return self._about.height

    async def _follow_chain(self) -> None:
        while True:
            await asyncio.sleep(self._ground.poll_s)
            try:
                news = await self._ground.chain.news()
            except WattlineError as error:
                # As lightningd waits for a bitcoind that was stopped; what came meanwhile is read later.
                self._log.unusual(f"the chain cannot be read now: {error.message}")
                continue
            self._about.height = self._ground.chain.height
            for block in news:
                self._log.debug(f"Adding block {block.height}")
                self._funding.follow(block.height)
                self._plugins.notify("block_added", {"hash": block.block_hash, "height": block.height})

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
