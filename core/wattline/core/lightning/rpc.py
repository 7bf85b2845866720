"""lightningd's JSON-RPC socket: one connection per call, with a deadline, every error in wattline's own terms.

lightningd's answers as wattline's own types.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyln.client import LightningRpc, Millisatoshi, RpcError

from wattline.core.lightning import checked_calls as gate
from wattline.core.lightning.node import Hop, NodeRefused, NodeUnavailable, PaidInvoice, Route, SendStatus, SentPayment
from wattline.core.text import printable

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
        parameter is not one that lightningd may be handed (:mod:`wattline.core.lightning.checked_calls`): nothing was
        sent then.
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


def version_numbers(version: str) -> tuple[int, int, int]:
    """``v26.06.6`` as (26, 6, 6), ``v25.12-modded`` as (25, 12, 0); a build without a number counts as new."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (9999, 0, 0)


def route_of(answer: Mapping[str, Any], destination: str) -> Route:
    """One element of getroutes' ``routes``. Before v26.06 a hop tells only what it starts with; its end is then the
    start of the next one. Raises KeyError, TypeError or ValueError for anything else."""
    amount_msat = msat_of(answer["amount_msat"])
    starts = [
        (
            msat_of(hop["amount_in_msat"] if "amount_in_msat" in hop else hop["amount_msat"]),
            int(hop["cltv_in"] if "cltv_in" in hop else hop["delay"]),
        )
        for hop in answer["path"]
    ]
    ends = [*starts[1:], (amount_msat, int(answer["final_cltv"]))]
    hops = tuple(
        Hop(
            hop["short_channel_id_dir"],
            hop["node_id_out"] if "node_id_out" in hop else hop["next_node_id"],
            start[0],
            start[1],
            msat_of(hop["amount_out_msat"]) if "amount_out_msat" in hop else end[0],
            int(hop["cltv_out"]) if "cltv_out" in hop else end[1],
        )
        for hop, start, end in zip(answer["path"], starts, ends, strict=True)
    )
    if not hops:
        raise ValueError("the route has no hops")
    return Route(destination, amount_msat, hops)


def sent_payment_of(payment_hash: str, rows: Sequence[Mapping[str, Any]]) -> SentPayment:
    """What all attempts at one hash come to: complete if any is, else pending if any is, else failed."""
    statuses = [SendStatus(row["status"]) for row in rows]
    for status in (SendStatus.COMPLETE, SendStatus.PENDING, SendStatus.FAILED):
        chosen = [row for row, own in zip(rows, statuses, strict=True) if own is status]
        if chosen:
            break
    if any(row["payment_hash"] != payment_hash for row in rows):
        raise ValueError("the answer is about another payment")
    amounts = [msat_of(row["amount_msat"]) for row in chosen if "amount_msat" in row]
    return SentPayment(
        payment_hash,
        status,
        sum(amounts) if len(amounts) == len(chosen) else None,
        sum(msat_of(row["amount_sent_msat"]) for row in chosen),
        next((row["payment_preimage"] for row in chosen if "payment_preimage" in row), None),
    )


def paid_invoice_of(row: Mapping[str, Any]) -> PaidInvoice:
    is_paid = row["status"] == "paid"
    return PaidInvoice(
        int(row["updated_index"]),
        int(row["pay_index"]) if is_paid else None,
        row["label"],
        row.get("description") or "",
        row["payment_hash"],
        msat_of(row["amount_received_msat"]) if is_paid else 0,
        int(row["paid_at"]) if is_paid else 0,
        is_paid,
    )


def msat_of(value: object) -> int:
    return int(Millisatoshi(value))


@contextmanager
def reading(method: str) -> Iterator[None]:
    """Turns a missing or wrong field of lightningd's answer into NodeRefused (``unexpected_answer``)."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NodeRefused("unexpected_answer", f"{method}: {type(error).__name__}: {printable(error)}") from error
