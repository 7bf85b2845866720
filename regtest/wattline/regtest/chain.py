"""A regtest block chain: one bitcoind of our own, with a wallet that mines."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wattline.core.errors import StopError
from wattline.regtest.bitcoind import BitcoindPrograms, find_bitcoind
from wattline.regtest.bitcoind_rpc import SAT_PER_BTC, BitcoindRpc
from wattline.regtest.daemon import Daemon, free_port
from wattline.regtest.waiting import wait_until

FIRST_BLOCKS = 101
"""So many that the first coinbase may be spent (coinbase maturity is 100)."""
CONFIG = "[regtest]\nrejectparasites=0\n"
"""The ``bitcoin.conf`` of every chain; more lines may follow. Knots takes a transaction with locktime 21 for a token's
and refuses it. Wallets set the locktime up to 100 blocks below the tip, against fee sniping, so on a short chain one
would be refused now and then. From a file, Bitcoin Core passes over an option that it does not know."""
_WALLET = "regtest"


class Chain:
    """``with Chain() as chain:`` runs bitcoind on loopback with 101 blocks and coins to spend.

    ``directory`` is made when missing and kept when given, with the ``bitcoin.conf`` that lies in it; without it a
    temporary one is used, which is removed at the end unless the block raised. Raises RetryError or StopError when
    there is no bitcoind or it does not start. ``arguments``: further ones of bitcoind.
    """

    def __init__(
        self,
        directory: Path | None = None,
        programs: BitcoindPrograms | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.programs = programs or find_bitcoind()
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="wattline-chain-"))
        self.rpc_port = free_port()
        self.log_path = self.directory / "bitcoind.log"
        options = (
            f"-datadir={self.directory}",
            "-regtest",
            f"-rpcport={self.rpc_port}",
            "-rpcbind=127.0.0.1",
            "-rpcallowip=127.0.0.1",
            "-rpcthreads=8",
            "-listen=0",
            "-dnsseed=0",
            "-txindex=1",
            "-fallbackfee=0.00002",
            # A wallet of a node needs few keys, and bitcoind makes this many when it makes the wallet.
            "-keypool=20",
            "-printtoconsole=1",
            "-debuglogfile=0",
            # bitcoind's tests of itself, which regtest alone has on: after every block and every transaction, of all
            # blocks and of the whole mempool.
            "-checkblockindex=0",
            "-checkmempool=0",
            # Of several the last one counts.
            *arguments,
        )
        self._daemon = Daemon("bitcoind", [str(self.programs.daemon), *options], self.log_path, os.environ)
        self._wallet = ""
        self._mining_address = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._daemon.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=error is not None)

    def start(self) -> None:
        """Start bitcoind; the first time make its wallet and mine the first blocks."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "bitcoin.conf"
        if not config.exists():
            config.write_text(CONFIG, encoding="ascii")
        self._daemon.start()
        wait_until("bitcoind to answer", self._answers)
        if not self._mining_address:
            # Loaded again at every start.
            self.call("createwallet", _WALLET, False, False, "", False, True, True)
            self._wallet = _WALLET
            self._mining_address = str(self.call("getnewaddress"))
            self.mine(FIRST_BLOCKS)

    def stop(self) -> None:
        """End bitcoind in order; ``start`` goes on with the same chain, wallets and port. The mempool is kept."""
        self._daemon.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash or a power cut."""
        self._daemon.kill()

    def close(self, keep: bool = False) -> None:
        """End bitcoind; a temporary directory is removed unless ``keep``, whose path is then written to stderr."""
        self._daemon.close()
        if keep:
            sys.stderr.write(f"bitcoind's log is kept: {self.log_path}\n")
        elif self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self._daemon.pid

    @property
    def height(self) -> int:
        """The height of the newest block."""
        return int(self.call("getblockcount"))

    def mine(self, blocks: int) -> int:
        """Mine ``blocks`` blocks with what is in the mempool; the new height."""
        self.call("generatetoaddress", blocks, self._mining_address)
        return self.height

    def send(self, address: str, value_sat: int) -> str:
        """Pay ``value_sat`` to ``address``; the txid, in the mempool and not mined. Raises StopError with bitcoind's
        reason when its mempool does not take it; the wallet keeps it all the same, so do not send it again."""
        if value_sat <= 0:
            raise StopError("value_invalid", f"cannot send {value_sat} sat")
        txid = str(self.call("sendtoaddress", address, str(Decimal(value_sat) / SAT_PER_BTC)))
        # The wallet keeps what its own mempool refuses, and says nothing.
        self.call("sendrawtransaction", self.call("gettransaction", txid)["hex"])
        return txid

    def send_many(self, addresses: Sequence[str], value_sat: int) -> str:
        """One transaction that pays ``value_sat`` to each of these different addresses, in this order, before its
        change; its txid, not mined."""
        if value_sat <= 0 or len(set(addresses)) != len(addresses):
            raise StopError("value_invalid", f"cannot send {value_sat} sat to each of {addresses}")
        value_btc = str(Decimal(value_sat) / SAT_PER_BTC)
        outputs = [{address: value_btc} for address in addresses]
        sent = self.call("send", outputs, None, "unset", None, {"change_position": len(outputs)})
        return str(sent["txid"])

    def wait_for_tx(self, txid: str) -> None:
        """Wait until ``txid`` is in the mempool."""
        wait_until(f"transaction {txid} in the mempool", lambda: txid in self.call("getrawmempool"))

    def log_tail(self, lines: int = 40) -> str:
        return self._daemon.log_tail(lines)

    def call(self, method: str, *parameters: object) -> Any:
        """bitcoind's answer to a JSON-RPC call; amounts in BTC as Decimal, never as float.

        Raises BitcoindRefusedError, or RetryError when bitcoind does not answer (yet).
        """
        return BitcoindRpc(self.rpc_port, self.directory, self._wallet).call(method, *parameters)

    def _answers(self) -> bool:
        self._daemon.check()
        return bool(self.call("getblockchaininfo")["chain"] == "regtest")
