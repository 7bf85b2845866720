"""What the node keeps for wattline in its own database, beside what it keeps for itself.

lightningd's database is never put back to an older copy (its channels would be lost), so what stands there tells
whether ours was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wattline.core.lightning.node import SendStatus, SentPayment
from wattline.core.lightning.rpc import NodeRpc, msat_of, reading

FOLDER = "wattline"
PAGE = 500
FURTHEST_INDEX = 2**62


@dataclass(frozen=True, slots=True)
class LabelledPayment:
    """One payment that the node sent, with the label that its payer gave it."""

    label: str
    destination: str
    """Node id, hex; empty when the node does not know it any more."""
    created_at: int
    """Unix seconds."""
    sent: SentPayment


class NodeNotes(Protocol):
    """Every method raises NodeUnavailable, NodeRefused."""

    def note(self, name: str) -> str | None:
        """What was written down last under this name; None when nothing was."""

    def write_note(self, name: str, text: str) -> None:
        """In place of what stood there."""

    def sent_since(self, created_at: int) -> Sequence[LabelledPayment]:
        """All payments with a label that the node was told to send from ``created_at`` (Unix seconds) on, whatever
        became of them, in their order."""


class CoreLightningNotes:
    """lightningd's datastore, and its list of sent payments. Thread-safe."""

    def __init__(self, rpc: NodeRpc) -> None:
        self._rpc = rpc

    def note(self, name: str) -> str | None:
        answer = self._rpc.call("listdatastore", {"key": [FOLDER, name]})
        with reading("listdatastore"):
            rows = [row for row in answer["datastore"] if row["key"] == [FOLDER, name]]
            return str(rows[0]["string"]) if rows and "string" in rows[0] else None

    def write_note(self, name: str, text: str) -> None:
        self._rpc.call("datastore", {"key": [FOLDER, name], "string": text, "mode": "create-or-replace"})

    def sent_since(self, created_at: int) -> Sequence[LabelledPayment]:
        found: list[LabelledPayment] = []
        start = self._first_index(created_at)
        while rows := self._rows(start, PAGE):
            with reading("listsendpays"):
                found += [_labelled(row) for row in rows if row.get("label")]
                start = int(rows[-1]["created_index"]) + 1
        return [each for each in found if each.created_at >= created_at]

    def _first_index(self, created_at: int) -> int:
        """Of the first payment made from then on: rows are numbered as they are made, with holes where some were
        deleted. A node that pays for months has millions of them, so they are not read one after the other."""
        low, step = 1, 1
        while step < FURTHEST_INDEX and self._is_before(low + step, created_at):
            low, step = low + step, step * 2
        high = low + step
        while low < high:
            middle = (low + high) // 2
            if self._is_before(middle, created_at):
                low = middle + 1
            else:
                high = middle
        return low

    def _is_before(self, index: int, created_at: int) -> bool:
        """Whether a row of this number, or the next one after it, was made before then."""
        rows = self._rows(index, 1)
        with reading("listsendpays"):
            return bool(rows) and int(rows[0]["created_at"]) < created_at

    def _rows(self, start: int, limit: int) -> list[dict[str, Any]]:
        answer = self._rpc.call("listsendpays", {"index": "created", "start": start, "limit": limit})
        with reading("listsendpays"):
            return list(answer["payments"])


def _labelled(row: dict[str, Any]) -> LabelledPayment:
    return LabelledPayment(
        str(row["label"]),
        str(row.get("destination", "")),
        int(row["created_at"]),
        SentPayment(
            row["payment_hash"],
            SendStatus(row["status"]),
            msat_of(row["amount_msat"]) if "amount_msat" in row else None,
            msat_of(row["amount_sent_msat"]),
            row.get("payment_preimage"),
        ),
    )
