"""Practice nodes in the place of real ones: the harness of :mod:`wattline.regtest.network` over stand-ins.

Only what runs is different: the program behind a node, and the chain, which is a file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wattline.core.errors import StopError
from wattline.regtest.bitcoind import BitcoindPrograms
from wattline.regtest.bitcoind_rpc import BitcoindRefusedError
from wattline.regtest.chain import Chain
from wattline.regtest.lightningd import LightningdProgram, Node, OptionValue
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.node.about import VERSION
from wattline.regtest.node.blocks import PracticeBlocks
from wattline.regtest.waiting import wait_until

_UNKNOWN_METHOD = -32601
PROGRAM = LightningdProgram(Path(sys.executable), (26, 6, 0), f"{VERSION} (practice)")


class PracticeChain(Chain):
    """A chain without bitcoind. Transactions are believed; ``call`` refuses everything."""

    def __init__(self, directory: Path | None = None) -> None:
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="wattline-chain-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / "chain.sqlite3"
        self.log_path = self.directory / "chain.log"
        self.rpc_port = 0
        # Options of lightningd name them; nobody runs them.
        self.programs = BitcoindPrograms(Path(sys.executable), Path(sys.executable))
        self._blocks = PracticeBlocks(self.path)

    def __enter__(self) -> PracticeChain:
        return self

    def start(self) -> None:
        """Nothing runs."""

    def close(self, keep: bool = False) -> None:
        self._blocks.close()
        if self._temporary and not keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def height(self) -> int:
        return self._blocks.height

    def mine(self, blocks: int) -> int:
        return self._blocks.mine(blocks)

    def send(self, address: str, value_sat: int) -> str:
        return self.send_many([address], value_sat)

    def send_many(self, addresses: Sequence[str], value_sat: int) -> str:
        return self._blocks.pay([(address, value_sat) for address in addresses])

    def stop(self) -> None:
        """Nothing runs."""

    def kill(self) -> None:
        """Nothing runs."""

    def wait_for_tx(self, txid: str) -> None:
        wait_until(f"transaction {txid} in the mempool", lambda: txid in self._blocks.waiting())

    def log_tail(self, lines: int = 40) -> str:
        return ""

    def call(self, method: str, *parameters: object) -> Any:
        raise BitcoindRefusedError(f"there is no bitcoind behind a practice node ({method})", _UNKNOWN_METHOD)


class PracticeLightningd(Node):
    """One practice node; it takes lightningd's options."""

    def _command(self) -> list[str]:
        return [str(self.program.path), "-P", "-m", "wattline.regtest.node", *super()._command()[1:]]

    def _defaults(self) -> dict[str, OptionValue]:
        # The chain may be shared with other networks; gossip stays among the nodes of one.
        gossip = self.lightning_dir.parent / "gossip.sqlite3"
        options = {**super()._defaults(), "practice-gossip": gossip}
        if isinstance(self._chain, PracticeChain):
            # There is no bitcoind that a plugin could be told of.
            none = dict.fromkeys(("bitcoin-cli", "bitcoin-datadir", "bitcoin-rpcport"), False)
            options |= {**none, "practice-chain": self._chain.path}
        return options


class PracticeNetwork(RegtestNetwork):
    """``with PracticeNetwork() as network:`` gives practice nodes; nothing needs to be installed, and no money is
    held.

    With ``bitcoind``, or on a ``chain`` that is one, every node has a wallet on a real bitcoind of regtest and answers
    what lightningd answers of its on-chain wallet; channels are as pretended as without. Raises RetryError or StopError
    when there is no bitcoind to be had.
    """

    def __init__(self, chain: Chain | None = None, bitcoind: bool = False) -> None:
        self._program = PROGRAM
        self.directory = Path(tempfile.mkdtemp(prefix="wattline-"))
        self.keep_logs = False
        self._own_chain = chain is None
        self._nodes = {}
        self._handlers = {}
        try:
            self.chain = chain or _own_chain(self.directory, bitcoind)
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def _make(self, name: str, options: dict[str, OptionValue]) -> Node:
        if name in self._nodes:
            raise StopError("node_exists", f"there is a node {name} already")
        directory = self.directory / name
        node = PracticeLightningd(name, self.chain, directory, options, self._program, self.environment)
        self._nodes[name] = node
        return node


def _own_chain(directory: Path, bitcoind: bool) -> Chain:
    return Chain(directory / "bitcoind") if bitcoind else PracticeChain(directory / "chain")
