"""Real nodes with real channels: a chain and as many lightningds as wanted, gone when the block ends."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from pyln.client import RpcError

from wattline.core.errors import StopError
from wattline.device.i2c.simulated import DIRECTORY_VARIABLE
from wattline.regtest.chain import Chain
from wattline.regtest.lightningd import LightningdProgram, Node, OptionValue, find_lightningd
from wattline.regtest.waiting import wait_until

ANNOUNCE_BLOCKS = 6
"""Confirmations after which a channel may be announced (BOLT #7)."""
FUNDING_MARGIN_SAT = 100_000
"""Beyond the channel: the funding transaction's fee, change, and an anchor channel's emergency reserve."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A funded channel, usable in both directions where both sides have something to spend."""

    opener: Node
    peer: Node
    short_channel_id: str
    channel_id: str
    capacity_sat: int
    funding_txid: str


class RegtestNetwork:
    """``with RegtestNetwork() as network:`` gives nodes on a regtest chain; all of them end with the block.

    Everything lives in one temporary directory, the simulated worlds too. It is removed at the end unless something
    failed; then its path is written to stderr. A ``chain`` that is handed in is used and left running. Raises
    RetryError or StopError when lightningd or bitcoind are not to be had.
    """

    def __init__(self, chain: Chain | None = None) -> None:
        self._program: LightningdProgram = find_lightningd()
        self.directory = Path(tempfile.mkdtemp(prefix="wattline-"))
        self.keep_logs = False
        """Set it to keep the directory at the end even though the block did not raise."""
        self._own_chain = chain is None
        self._nodes: dict[str, Node] = {}
        self._handlers: dict[signal.Signals, signal.Handlers] = {}
        try:
            self.chain = chain or Chain(self.directory / "bitcoind")
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def __enter__(self) -> Self:
        self._catch_termination()
        if self._own_chain:
            try:
                self.chain.start()
            except BaseException as error:
                self.close(keep=_is_failure(error))
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=_is_failure(error))

    def close(self, keep: bool = False) -> None:
        """End all nodes at the same time, then the own chain; with ``keep`` the logs stay and their path is written."""
        # A second Ctrl-C here must not leave the rest running: every step is taken whatever the others raise.
        with ExitStack() as steps:
            for number, handler in self._handlers.items():
                steps.callback(signal.signal, number, handler)
            steps.callback(self._keep_directory if keep or self.keep_logs else self._remove_directory)
            if self._own_chain:
                steps.callback(self.chain.close)
            for node in self._nodes.values():
                steps.callback(node.close)
                node.terminate()
        self._handlers.clear()

    @property
    def worlds(self) -> Path:
        """The directory of the simulated worlds that are played with here; it goes with the network's."""
        return self.directory / "worlds"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs besides to find these worlds."""
        return {DIRECTORY_VARIABLE: str(self.worlds)}

    @property
    def all_nodes(self) -> tuple[Node, ...]:
        """All nodes made so far, running or not."""
        return tuple(self._nodes.values())

    def node(self, name: str, **options: OptionValue) -> Node:
        """A new running node; ``options`` are lightningd's, with ``_`` for ``-`` (``plugin=…``, ``log_level=…``)."""
        node = self._make(name, options)
        node.start()
        return node

    def nodes(self, *names: str, **options: OptionValue) -> list[Node]:
        """Several new nodes with the same options, started at the same time."""
        made = [self._make(name, options) for name in names]
        for node in made:
            node.launch()
        for node in made:
            node.wait_ready()
        return made

    def mine(self, blocks: int = 1) -> int:
        """Mine ``blocks`` and wait until every running node has processed them; the new height."""
        height = self.chain.mine(blocks)
        for node in self._nodes.values():
            if node.is_running:
                node.wait_for_height(height)
        return height

    def fund(self, node: Node, value_sat: int) -> None:
        """Give ``node`` a confirmed output of ``value_sat`` in its on-chain wallet."""
        self._fund([(node, value_sat)])

    def fund_wallet(self, node: Node, value_sat: int, outputs: int = 1) -> str:
        """Give ``node`` as many confirmed P2TR outputs of ``value_sat`` each, in one transaction; its txid. Returns
        when ``listfunds`` shows them confirmed."""
        txid = self.chain.send_many([str(node.rpc.newaddr("p2tr")["p2tr"]) for _ in range(outputs)], value_sat)
        self.chain.wait_for_tx(txid)
        self.mine(1)
        wait_until(f"{node.name} to see its deposit {txid}", partial(_has_output, node, txid, outputs))
        return txid

    def connect(self, first: Node, second: Node) -> None:
        """Connect ``first`` to ``second`` and wait until both say so."""
        first.rpc.connect(second.node_id, "127.0.0.1", second.port)
        for one, other in ((first, second), (second, first)):
            wait_until(f"{one.name} connected to {other.name}", partial(_is_connected, one, other))

    def open_channel(
        self, opener: Node, peer: Node, value_sat: int, push_msat: int = 0, announce: bool = True
    ) -> Channel:
        """A channel of ``value_sat`` paid by ``opener``, of which ``push_msat`` start on the peer's side.

        Returns when both ends are in CHANNELD_NORMAL, an announced channel is in both ends' gossip in both directions,
        and ``getroutes`` finds it from each end that has something to spend.
        """
        return self._open([(opener, peer, value_sat, push_msat, announce)])[0]

    def wait_for_channel(self, channel: Channel) -> None:
        """Wait until ``channel`` is usable again at both ends, as after a restart (not before its peer reconnected)."""
        for one, other in ((channel.opener, channel.peer), (channel.peer, channel.opener)):
            wait_until(
                f"{one.name}'s channel {channel.short_channel_id} with {other.name} to be usable",
                partial(_usable_scid, one, other, channel.channel_id),
            )

    def line(self, *nodes: Node, value_sat: int = 1_000_000, push_msat: int | None = None) -> list[Channel]:
        """Announced channels from each node to the next, opened at the same time, half of each on either side unless
        ``push_msat`` says otherwise. Returns when every node routes to both ends that it can pay."""
        if len(nodes) < 2:
            raise StopError("line_too_short", "a line needs at least two nodes")
        push = value_sat * 500 if push_msat is None else push_msat
        wanted = [(one, other, value_sat, push, True) for one, other in pairwise(nodes)]
        channels = self._open(wanted)
        for node in nodes:
            for channel in channels:
                _wait_for_gossip(node, channel.short_channel_id)
        self.wait_for_route(nodes[0], nodes[-1])
        if push > 0:
            self.wait_for_route(nodes[-1], nodes[0])
        return channels

    def wait_for_route(self, source: Node, destination: Node, amount_msat: int = 1_000) -> None:
        """Wait until ``source``'s getroutes finds a way to pay ``destination``."""
        parameters = {
            "source": source.node_id,
            "destination": destination.node_id,
            "amount_msat": amount_msat,
            "layers": ["auto.localchans", "auto.sourcefree"],
            "maxfee_msat": 100_000,
            "final_cltv": 18,
        }

        def routed() -> bool:
            try:
                return bool(source.rpc.call("getroutes", parameters)["routes"])
            except RpcError:
                return False

        wait_until(f"a route for {amount_msat} msat from {source.name} to {destination.name}", routed)

    def _keep_directory(self) -> None:
        sys.stderr.write(f"the nodes' logs are kept: {self.directory}\n")

    def _remove_directory(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _catch_termination(self) -> None:
        """While the block runs, SIGTERM and SIGHUP unwind it as Ctrl-C does, so that no node is left running."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _unwind)
                self._handlers[number] = signal.SIG_DFL

    def _make(self, name: str, options: dict[str, OptionValue]) -> Node:
        if name in self._nodes:
            raise StopError("node_exists", f"there is a node {name} already")
        node = Node(name, self.chain, self.directory / name, options, self._program, self.environment)
        self._nodes[name] = node
        return node

    def _fund(self, wanted: Sequence[tuple[Node, int]]) -> None:
        sent = [(node, self.chain.send(_fresh_address(node), value_sat)) for node, value_sat in wanted]
        for _, txid in sent:
            self.chain.wait_for_tx(txid)
        self.mine(1)
        for node, txid in sent:
            wait_until(f"{node.name} to see its deposit {txid}", partial(_has_output, node, txid))

    def _open(self, wanted: Sequence[tuple[Node, Node, int, int, bool]]) -> list[Channel]:
        self._fund([(opener, value_sat + FUNDING_MARGIN_SAT) for opener, _, value_sat, _, _ in wanted])
        opened: list[tuple[str, str]] = []
        for opener, peer, value_sat, push_msat, announce in wanted:
            self.connect(opener, peer)
            parameters = {"id": peer.node_id, "amount": value_sat, "push_msat": push_msat, "announce": announce}
            answer = opener.rpc.call("fundchannel", parameters)
            opened.append((answer["channel_id"], answer["txid"]))
        for _, txid in opened:
            self.chain.wait_for_tx(txid)
        self.mine(ANNOUNCE_BLOCKS)
        channels = []
        for (opener, peer, value_sat, push_msat, announce), (channel_id, txid) in zip(wanted, opened, strict=True):
            scid = ""
            for one, other in ((opener, peer), (peer, opener)):
                scid = wait_until(
                    f"{one.name}'s channel with {other.name} to be usable",
                    partial(_usable_scid, one, other, channel_id),
                )
                if announce:
                    _wait_for_gossip(one, scid)
            channels.append(Channel(opener, peer, scid, channel_id, value_sat, txid))
            self.wait_for_route(opener, peer)
            if push_msat > _reserve_msat(value_sat):
                self.wait_for_route(peer, opener)
        return channels


def _is_failure(error: BaseException | None) -> bool:
    """Whether the logs may tell why. Who interrupts, or reads no further, knows why."""
    return error is not None and not isinstance(error, KeyboardInterrupt | SystemExit | BrokenPipeError)


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _fresh_address(node: Node) -> str:
    return str(node.rpc.newaddr("bech32")["bech32"])


def _has_output(node: Node, txid: str, count: int = 1) -> bool:
    outputs: list[dict[str, Any]] = node.rpc.listfunds()["outputs"]
    confirmed = [output for output in outputs if output["txid"] == txid and output["status"] == "confirmed"]
    return len(confirmed) >= count


def _is_connected(node: Node, peer: Node) -> bool:
    return any(entry["connected"] for entry in node.rpc.listpeers(peer.node_id)["peers"])


def _usable_scid(node: Node, peer: Node, channel_id: str) -> str | None:
    """The short channel id once the channel is normal and its peer connected."""
    channels: list[dict[str, Any]] = node.rpc.listpeerchannels(peer.node_id)["channels"]
    for channel in channels:
        # Between the connection and channel_reestablish (BOLT #2) a payment would still fail; older nodes do not tell.
        usable = channel["peer_connected"] and channel.get("reestablished", True)
        if channel["channel_id"] == channel_id and channel["state"] == "CHANNELD_NORMAL" and usable:
            return channel.get("short_channel_id")
    return None


def _wait_for_gossip(node: Node, scid: str) -> None:
    def both_active() -> bool:
        entries = node.rpc.listchannels(scid)["channels"]
        return sum(1 for entry in entries if entry["active"]) == 2

    wait_until(f"{node.name} to have {scid} in its gossip, active in both directions", both_active)


def _reserve_msat(value_sat: int) -> int:
    """What the peer must keep on its side (1 %, BOLT #2), and a bit: below it there is nothing to route with."""
    return value_sat * 10 + 2_000_000
