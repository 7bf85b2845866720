"""A regtest block chain: one bitcoind of our own, with a wallet that mines."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wattline.errors import RetryError, StopError
from wattline.practice.bitcoind import BitcoindPrograms, find_bitcoind
from wattline.practice.daemon import Daemon, free_port
from wattline.practice.waiting import wait_until

SAT_PER_BTC = 100_000_000
FIRST_BLOCKS = 101
"""So many that the first coinbase may be spent (coinbase maturity is 100)."""
_RPC_IN_WARMUP = -28


class BitcoindRefusedError(StopError):
    """bitcoind answered a call with an error; ``rpc_code`` is its own."""

    def __init__(self, message: str, rpc_code: int) -> None:
        super().__init__("bitcoind_refused", message)
        self.rpc_code = rpc_code


class Chain:
    """``with Chain() as chain:`` runs bitcoind on loopback with 101 blocks and coins to spend.

    ``directory`` is made when missing and kept when given; without it a temporary one is used, which is removed at the
    end unless the block raised. Raises RetryError or StopError when there is no bitcoind or it does not start.
    """

    def __init__(self, directory: Path | None = None, programs: BitcoindPrograms | None = None) -> None:
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
            "-printtoconsole=1",
            "-debuglogfile=0",
        )
        self._daemon = Daemon("bitcoind", [str(self.programs.daemon), *options], self.log_path, os.environ)
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
        """Start bitcoind, make its wallet and mine the first blocks."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._daemon.start()
        wait_until("bitcoind to answer", self._answers)
        self.call("createwallet", "regtest")
        self._mining_address = str(self.call("getnewaddress"))
        self.mine(FIRST_BLOCKS)

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
        """Pay ``value_sat`` to ``address``; the txid, in the mempool and not mined."""
        if value_sat <= 0:
            raise StopError("value_invalid", f"cannot send {value_sat} sat")
        return str(self.call("sendtoaddress", address, str(Decimal(value_sat) / SAT_PER_BTC)))

    def wait_for_tx(self, txid: str) -> None:
        """Wait until ``txid`` is in the mempool."""
        wait_until(f"transaction {txid} in the mempool", lambda: txid in self.call("getrawmempool"))

    def log_tail(self, lines: int = 40) -> str:
        return self._daemon.log_tail(lines)

    def call(self, method: str, *parameters: object) -> Any:
        """bitcoind's answer to a JSON-RPC call; amounts in BTC as Decimal, never as float.

        Raises BitcoindRefusedError, or RetryError when bitcoind does not answer (yet).
        """
        body = json.dumps({"jsonrpc": "1.0", "id": method, "method": method, "params": parameters})
        connection = http.client.HTTPConnection("127.0.0.1", self.rpc_port, timeout=60)
        try:
            cookie = (self.directory / "regtest" / ".cookie").read_bytes()
            headers = {"Authorization": "Basic " + base64.b64encode(cookie).decode("ascii")}
            connection.request("POST", "/", body, headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise RetryError("bitcoind_unreachable", f"bitcoind does not answer {method}: {error}") from error
        finally:
            connection.close()
        try:
            answer = json.loads(text, parse_float=Decimal)
        except ValueError as error:
            raise RetryError("bitcoind_unreachable", f"bitcoind answered {method} with {response.status}") from error
        if (failure := answer.get("error")) is not None:
            if failure["code"] == _RPC_IN_WARMUP:
                raise RetryError("bitcoind_starting", str(failure["message"]))
            raise BitcoindRefusedError(f"bitcoind {method}: {failure['message']}", int(failure["code"]))
        return answer["result"]

    def _answers(self) -> bool:
        self._daemon.check()
        return bool(self.call("getblockchaininfo")["chain"] == "regtest")
