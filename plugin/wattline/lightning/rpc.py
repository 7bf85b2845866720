"""lightningd's JSON-RPC socket: one connection per call, with a deadline, every error in wattline's own terms."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyln.client import LightningRpc, RpcError

from wattline.lightning import gate
from wattline.lightning.node import NodeRefused, NodeUnavailable
from wattline.wire import printable

ANSWER_TIMEOUT_S = 60.0
"""How long lightningd may be silent before it counts as unavailable (getroutes itself gives up after 10 s)."""

# Core Lightning's codes (common/jsonrpc_errors.h) for a request that was cut short by a shutdown or a dying plugin.
_CUT_SHORT = frozenset({-4, -5})


class RpcRefused(NodeRefused):
    """lightningd's error object; ``data`` holds its further fields (of a failed payment: BOLT #4's failure)."""

    def __init__(self, method: str, message: str, rpc_code: int | None, data: Mapping[str, Any]) -> None:
        code = _failcode(data) or _CODES.get(rpc_code or 0, "node_refused")
        super().__init__(code, f"{method}: {message}", rpc_code)
        self.data = data


_CODES = {
    -32601: "unknown_method",
    -32602: "invalid_parameter",
    200: "payment_in_progress",
    201: "payment_hash_used",
    208: "payment_unknown",
}


_FAILCODE = re.compile(r"[A-Za-z0-9_]{1,60}")


def failcode_name(name: str) -> str:
    """BOLT #4's name of a failure without ``WIRE_``, in lower case."""
    return name.removeprefix("WIRE_").lower()


def _failcode(data: Mapping[str, Any]) -> str | None:
    name = data.get("failcodename")
    return failcode_name(name) if isinstance(name, str) and _FAILCODE.fullmatch(name) else None


class NodeRpc:
    """Calls to one lightningd. Thread-safe: calls share nothing."""

    def __init__(self, rpc_path: Path | str, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.path = Path(rpc_path)
        self._answer_timeout_s = answer_timeout_s

    def call(self, method: str, params: Mapping[str, Any] | None = None, takes_s: float = 0.0) -> dict[str, Any]:
        """The result of ``method``. ``takes_s`` is how long lightningd was itself asked to wait.

        Raises NodeUnavailable when no answer came (whether the request was carried out is then unknown), RpcRefused
        when the answer is an error, NodeRefused when the socket is not ours to use, or ``call_refused`` when a
        parameter is not one that lightningd may be handed (:mod:`wattline.lightning.gate`): nothing was sent then.
        """
        fault = gate.fault(method, params or {})
        if fault is not None:
            raise NodeRefused("call_refused", fault)
        rpc = _Connection(str(self.path), takes_s + self._answer_timeout_s)
        try:
            result = rpc.call(method, dict(params or {}))
        except RpcError as error:
            raise self._refusal(method, error.error) from error
        except PermissionError as error:
            raise NodeRefused("node_not_permitted", f"{self.path}: {error.strerror}: not our socket") from error
        except OSError as error:
            raise NodeUnavailable(
                "node_unavailable", f"{self.path}: no answer to {method}: {self._why(error)}"
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise NodeUnavailable(
                "node_unavailable", f"{self.path}: garbled answer to {method}: {printable(error)}"
            ) from error
        if not isinstance(result, dict):
            raise NodeRefused("unexpected_answer", f"{method}: the answer is not an object")
        return result

    def _why(self, error: OSError) -> str:
        """What the system says, but for the one mistake that it calls a refused connection."""
        if self.path.is_dir():
            return "it is a directory; the socket in it is called lightning-rpc"
        if self.path.is_file():
            return "it is no socket but a plain file"
        return error.strerror or str(error)

    def _refusal(self, method: str, error: object) -> NodeRefused | NodeUnavailable:
        if not isinstance(error, dict):
            # pyln's own text for a connection that ended before the answer.
            return NodeUnavailable("node_unavailable", f"{self.path}: no answer to {method}: {printable(error)}")
        rpc_code = error.get("code")
        # A peer's error, an onion's failure, a plugin's words: lightningd passes on what others have said.
        message = printable(error.get("message", "no message"))
        if rpc_code in _CUT_SHORT:
            return NodeUnavailable("node_unavailable", f"{self.path}: {method} was cut short: {message}")
        data = error.get("data")
        return RpcRefused(
            method,
            message,
            rpc_code if isinstance(rpc_code, int) else None,
            data if isinstance(data, dict) else {},
        )


class _Connection(LightningRpc):  # type: ignore[misc]
    """pyln's client with a deadline on the socket, which it does not have itself."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__(path, logger=logging.getLogger(__name__))
        self.caller_name = "wattline"
        self._timeout_s = timeout_s

    def _writeobj(self, sock: Any, obj: Any) -> None:
        sock.sock.settimeout(self._timeout_s)
        super()._writeobj(sock, obj)
