"""The books side by side: what both nodes recorded of payments for sessions, and what the socket's ledger says.

lightningd's own tables are the judges: ``listinvoices`` of who was paid, ``listsendpays`` of who paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.ledger.outgoing import Purpose
from wattline.core.ledger.payment import Kind
from wattline.core.record import DESCRIPTION_PREFIX, Record, RecordError, parse_record
from wattline.core.session.state import RefundStatus, State
from wattline.regtest.lightningd import Node
from wattline.regtest.scene import Scene
from wattline.regtest.waiting import wait_until

REFUND_SEQUENCE = 0


@dataclass(frozen=True, slots=True)
class Payment:
    """One payment that arrived, as a node tells it."""

    record: Record
    payment_hash: str
    amount_msat: int
    """What the payee received."""
    fee_msat: int
    """What its way cost; 0 as told by the payee."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What the books of all sessions come to."""

    sessions: int
    credited_msat: int
    charged_msat: int
    refunded_msat: int
    refund_fees_msat: int
    balance_msat: int
    energy_uwh: int
    payments: int


def received(node: Node) -> list[Payment]:
    """The paid keysends of ``node`` that carried a wattline record."""
    rows = [row for row in node.rpc.listinvoices()["invoices"] if row["status"] == "paid"]
    return [
        Payment(record, row["payment_hash"], int(row["amount_received_msat"]), 0)
        for row in rows
        if row["label"].startswith("keysend-")
        and (record := _record(row.get("description", "").removeprefix(DESCRIPTION_PREFIX))) is not None
    ]


def sent(node: Node) -> list[Payment]:
    """The payments of ``node`` that arrived and were labelled with a wattline record."""
    rows = [row for row in node.rpc.listsendpays()["payments"] if row["status"] == "complete"]
    return [
        Payment(record, row["payment_hash"], int(row["amount_msat"]), _fee_msat(row))
        for row in rows
        if (record := _record(row.get("label", ""))) is not None
    ]


def check_books(scene: Scene, wallets: Sequence[Node]) -> Sums:
    """That ledger, socket and wallets tell the same story to the msat, once all that was paid is booked and every
    session is closed. Raises AssertionError or DeadlineError."""
    with open_ledger(scene.directory / "socket.sqlite3") as ledger:
        increments = [p for p in received(scene.node) if p.record.sequence != REFUND_SEQUENCE]
        wait_until("every payment is booked", lambda: all(ledger.booked(p.payment_hash) for p in increments))
        wait_until("every session is closed", lambda: not ledger.live_sessions())
        _check_credits(ledger, increments, [p for wallet in wallets for p in sent(wallet)])
        refunds = {p.payment_hash: p for p in sent(scene.node)}
        arrived = {p.payment_hash: p for wallet in wallets for p in received(wallet)}
        assert refunds.keys() == arrived.keys(), "every refund that left has arrived, and none came from elsewhere"
        assert all(refunds[key].amount_msat == arrived[key].amount_msat for key in refunds)
        return _sums(ledger, list(refunds.values()))


def _check_credits(ledger: Ledger, increments: list[Payment], paid: list[Payment]) -> None:
    assert {p.payment_hash: p.amount_msat for p in increments} == {p.payment_hash: p.amount_msat for p in paid}
    for payment in increments:
        booked = ledger.booked(payment.payment_hash)
        assert booked is not None
        assert (booked.session_id, booked.amount_msat) == (payment.record.session_id, payment.amount_msat)
    for session_id in {p.record.session_id for p in increments}:
        of_session = [p.amount_msat for p in increments if p.record.session_id == session_id]
        assert sum(booking.amount_msat for booking in ledger.payments(session_id)) == sum(of_session)


def _sums(ledger: Ledger, refunds: list[Payment]) -> Sums:
    records = ledger.sessions(10_000)
    for record in records:
        session = record.session
        account = session.account
        assert session.state is State.CLOSED
        increments = [b for b in ledger.payments(session.session_id) if b.kind is Kind.CREDIT]
        assert account.credited_msat == sum(b.amount_msat for b in increments)
        assert account.payments == len(increments)
        assert account.balance_msat == account.credited_msat - account.charged_msat - account.refunded_msat
        mine = [
            p for p in refunds if p.record.session_id == session.session_id and p.record.sequence == REFUND_SEQUENCE
        ]
        assert len(mine) == (session.refund_status is RefundStatus.SENT), "a refund is paid exactly once"
        assert account.refunded_msat == sum(p.amount_msat for p in mine)
        assert session.refund_fee_msat == sum(p.fee_msat for p in mine)
        if mine:
            intent = ledger.outgoing.of(Purpose.REFUND, session.session_id, REFUND_SEQUENCE)
            assert intent is not None
            assert (intent.payment_hash, intent.destination) == (mine[0].payment_hash, record.cable_node_id)
            assert account.charged_msat + account.refunded_msat + session.refund_fee_msat <= account.credited_msat
    accounts = [record.session.account for record in records]
    return Sums(
        sessions=len(records),
        credited_msat=sum(a.credited_msat for a in accounts),
        charged_msat=sum(a.charged_msat for a in accounts),
        refunded_msat=sum(a.refunded_msat for a in accounts),
        refund_fees_msat=sum(record.session.refund_fee_msat for record in records),
        balance_msat=sum(a.balance_msat for a in accounts),
        energy_uwh=sum(record.session.energy_uwh for record in records),
        payments=sum(a.payments for a in accounts),
    )


def _record(text: str) -> Record | None:
    try:
        return parse_record(text)
    except RecordError:
        return None


def _fee_msat(row: dict[str, Any]) -> int:
    return int(row["amount_sent_msat"]) - int(row["amount_msat"])
