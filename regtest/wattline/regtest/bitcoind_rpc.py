"""bitcoind's JSON-RPC, as the harness and the practice node's wallet call it: one connection per call."""

from __future__ import annotations

import base64
import http.client
import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from wattline.core.errors import RetryError, StopError

SAT_PER_BTC = 100_000_000
ANSWER_TIMEOUT_S = 60
_IN_WARMUP = -28


class BitcoindRefusedError(StopError):
    """bitcoind answered a call with an error; ``rpc_code`` and ``reason`` are its own."""

    def __init__(self, message: str, rpc_code: int, reason: str = "") -> None:
        super().__init__("bitcoind_refused", message)
        self.rpc_code = rpc_code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BitcoindRpc:
    """One bitcoind on loopback, or one ``wallet`` of it."""

    port: int
    directory: Path
    """Its data directory, with the cookie of its present run."""
    wallet: str = ""

    def call(self, method: str, *parameters: object) -> Any:
        """The result; amounts in BTC as Decimal, never as float.

        Raises BitcoindRefusedError, or RetryError when bitcoind does not answer (yet).
        """
        body = json.dumps({"jsonrpc": "1.0", "id": method, "method": method, "params": parameters})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_TIMEOUT_S)
        try:
            cookie = (self.directory / "regtest" / ".cookie").read_bytes()
            headers = {"Authorization": "Basic " + base64.b64encode(cookie).decode("ascii")}
            connection.request("POST", f"/wallet/{self.wallet}" if self.wallet else "/", body, headers)
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
            if failure["code"] == _IN_WARMUP:
                raise RetryError("bitcoind_starting", str(failure["message"]))
            reason = str(failure["message"])
            raise BitcoindRefusedError(f"bitcoind {method}: {reason}", int(failure["code"]), reason)
        return answer["result"]
