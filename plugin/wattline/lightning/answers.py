"""lightningd's answers as wattline's own types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pyln.client import Millisatoshi

from wattline.lightning.node import Hop, NodeRefused, PaidInvoice, Route, SendStatus, SentPayment
from wattline.wire import printable


def version_numbers(version: str) -> tuple[int, int]:
    """``v26.06.6`` or ``v25.12-modded`` as (26, 6); a build without a number counts as new."""
    match = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (9999, 0)


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
