"""Do the books agree? Both nodes' own records against both ledgers, to the msat."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from wattline.core.ledger.ledger import open_ledger
from wattline.core.ledger.outgoing import IntentStatus, Purpose
from wattline.core.ledger.payment import Kind
from wattline.core.record import DESCRIPTION_PREFIX
from wattline.regtest.lightningd import Node


@dataclass(frozen=True, slots=True)
class Side:
    """One direction of payments of one session, as four independent records have it, in msat."""

    sent_by_node: int
    """``listsendpays`` of the payer's node, completed."""
    sent_by_ledger: int
    """The payer's durable intents, completed."""
    received_by_node: int
    """``listinvoices`` of the payee's node, paid."""
    received_by_ledger: int | None
    """The payee's ledger; None where it keeps none (a cable's refunds)."""

    @property
    def agrees(self) -> bool:
        values = {self.sent_by_node, self.sent_by_ledger, self.received_by_node}
        return len(values | ({self.received_by_ledger} - {None})) == 1


@dataclass(frozen=True, slots=True)
class Books:
    """The increments and the refunds of a session."""

    increments: Side
    refunds: Side

    @property
    def agree(self) -> bool:
        return self.increments.agrees and self.refunds.agrees

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def books_of(session_id: str, socket: Node, cable: Node, socket_ledger: Path, cable_ledger: Path) -> Books:
    """What all records say of one session. Raises LedgerError."""
    with open_ledger(socket_ledger) as sold, open_ledger(cable_ledger) as bought:
        refunds = [sold.outgoing.of(Purpose.REFUND, session_id, 0)]
        booked = sold.payments(session_id)
        orphans = [row for row in booked if row.kind is Kind.ORPHAN]
        refunds += [sold.outgoing.of(Purpose.ORPHAN_REFUND, session_id, row.pay_index) for row in orphans]
        increments = bought.outgoing.of_session(Purpose.INCREMENT, session_id)
    return Books(
        increments=Side(
            sent_by_node=_sent_msat(cable, session_id),
            sent_by_ledger=sum(i.amount_msat for i in increments if i.status is IntentStatus.COMPLETE),
            received_by_node=_received_msat(socket, session_id),
            received_by_ledger=sum(row.amount_msat for row in booked),
        ),
        refunds=Side(
            sent_by_node=_sent_msat(socket, session_id),
            sent_by_ledger=sum(i.amount_msat for i in refunds if i and i.status is IntentStatus.COMPLETE),
            received_by_node=_received_msat(cable, session_id),
            received_by_ledger=None,
        ),
    )


def _sent_msat(node: Node, session_id: str) -> int:
    rows = node.rpc.call("listsendpays", {"status": "complete"})["payments"]
    return sum(int(row["amount_msat"]) for row in rows if f":{session_id}:" in row.get("label", ""))


def _received_msat(node: Node, session_id: str) -> int:
    rows = node.rpc.call("listinvoices")["invoices"]
    mark = f"{DESCRIPTION_PREFIX}wattline:1:{session_id}:"
    return sum(
        int(row["amount_received_msat"])
        for row in rows
        if row["status"] == "paid" and row.get("description", "").startswith(mark)
    )
