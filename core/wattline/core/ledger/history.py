"""What is kept for people and never changed: what happened, which prices held since when, the statements and receipts
that cables were told, byte by byte; and sums over a period.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql import ColumnElement

from wattline.core.aggregate import MSAT_PER_SAT, lost_msat
from wattline.core.errors import StopError
from wattline.core.ledger.database import Store
from wattline.core.ledger.outgoing import IntentStatus, Purpose
from wattline.core.ledger.payment import Kind
from wattline.core.ledger.schema import (
    aggregate_versions,
    aggregates,
    events,
    intents,
    payments,
    receipts,
    sessions,
    statements,
    tariffs,
)
from wattline.core.ledger.session_record import records_in
from wattline.core.tariff import Tariff


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    number: int
    """Grows with every event."""
    at: int
    """Unix seconds."""
    session_id: str | None
    kind: str
    detail: Mapping[str, Any]


class EventStore(Store):
    """The log."""

    def append_event(self, at: int, session_id: str | None, kind: str, detail: Mapping[str, Any]) -> None:
        """Add an event; ``detail`` is anything that JSON can hold."""
        text = json.dumps(dict(detail), ensure_ascii=False, sort_keys=True)
        with self._database.unit() as connection:
            connection.execute(insert(events).values(at=at, session_id=session_id, kind=kind, detail=text))

    def last_event(self, kind: str, session_id: str | None = None) -> LoggedEvent | None:
        """The newest event of this kind (of one session), or None."""
        query = select(events).where(events.c.kind == kind)
        if session_id is not None:
            query = query.where(events.c.session_id == session_id)
        found = self._logged(query, 1)
        return found[0] if found else None

    def events(self, limit: int, session_id: str | None = None) -> Sequence[LoggedEvent]:
        """The last ``limit`` events (of one session), newest first."""
        query = select(events)
        if session_id is not None:
            query = query.where(events.c.session_id == session_id)
        return self._logged(query, limit)

    def _logged(self, query: Select[Any], limit: int) -> list[LoggedEvent]:
        with self._database.view() as connection:
            return [
                LoggedEvent(row.number, row.at, row.session_id, row.kind, json.loads(row.detail))
                for row in connection.execute(query.order_by(events.c.number.desc()).limit(limit))
            ]


@dataclass(frozen=True, slots=True)
class TariffEntry:
    """One change of prices."""

    tariff: Tariff
    effective_at: int
    """Unix seconds, for sessions opened from then on."""


class TariffStore(Store):
    """The history of the socket's prices."""

    def save_tariff(self, tariff: Tariff, effective_at: int) -> None:
        """From ``effective_at`` (Unix seconds) on these are the prices for new sessions."""
        with self._database.unit() as connection:
            connection.execute(insert(tariffs).values(**asdict(tariff), effective_at=effective_at))

    def current_tariff(self) -> Tariff | None:
        """The tariff saved last; None when there was none."""
        history = self.tariff_history(1)
        return history[0].tariff if history else None

    def tariff_history(self, limit: int) -> Sequence[TariffEntry]:
        """The last ``limit`` changes, newest first."""
        names = [field.name for field in fields(Tariff)]
        with self._database.view() as connection:
            rows = connection.execute(select(tariffs).order_by(tariffs.c.number.desc()).limit(limit))
            return [
                TariffEntry(Tariff(**{name: row._mapping[name] for name in names}), row.effective_at) for row in rows
            ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sessions *opened* in a period with all that belongs to them, whenever it was paid; and the orphans that were
    paid or given back in the period itself."""

    sessions: int
    energy_uwh: int
    delivered_ms: int
    payments: int
    """Keysend payments, and increments of aggregates."""
    credited_msat: int
    """By both methods."""
    onchain_credited_msat: int
    """The part of it that was handed over on-chain."""
    charged_msat: int
    refunded_msat: int
    refund_fees_msat: int
    lost_msat: int
    """Delivered and never paid for, because less was mined than was to be taken."""
    missing_msat: int
    """What was to be taken on-chain, credited and not given back, and was not mined."""
    orphans: int
    orphans_msat: int
    orphans_refunded_msat: int
    orphan_fees_msat: int

    @property
    def balance_msat(self) -> int:
        """credited - charged - refunded: credit in use, owed or kept, and the fees of refunds."""
        return self.credited_msat - self.charged_msat - self.refunded_msat


class ReportStore(Store):
    """What the socket earned."""

    def totals(self, start: int, end: int) -> Totals:
        """From ``start`` on and before ``end``, Unix seconds."""
        opened = (sessions.c.opened_at >= start) & (sessions.c.opened_at < end)
        paid = (payments.c.paid_at >= start) & (payments.c.paid_at < end) & (payments.c.kind == Kind.ORPHAN)
        given_back = (
            (intents.c.purpose == Purpose.ORPHAN_REFUND)
            & (intents.c.status == IntentStatus.COMPLETE)
            & (intents.c.resolved_at >= start)
            & (intents.c.resolved_at < end)
        )
        of_opened = select(sessions.c.session_id).where(opened)
        credits_of_opened = (payments.c.kind == Kind.CREDIT) & payments.c.session_id.in_(of_opened)
        increments = aggregate_versions.c.session_id.in_(of_opened) & aggregate_versions.c.is_final.is_(False)
        newest = (
            select(func.max(aggregate_versions.c.value_sat).label("value_sat"))
            .where(increments)
            .group_by(aggregate_versions.c.session_id)
            .subquery()
        )
        with self._database.view() as connection:

            def total(column: ColumnElement[int], where: ColumnElement[bool]) -> int:
                return _total(connection, column, where)

            missing = select(aggregates.c.session_id, aggregates.c.lost_msat).where(
                aggregates.c.lost_msat > 0, aggregates.c.session_id.in_(of_opened)
            )
            lost = sum(
                lost_msat(row.lost_msat, found[0].session.account.balance_msat)
                for row in connection.execute(missing).all()
                if (found := records_in(connection, sessions.c.session_id == row.session_id))
            )
            onchain_credited_msat = total(newest.c.value_sat, true()) * MSAT_PER_SAT
            return Totals(
                sessions=_count(connection, sessions.c.session_id, opened),
                energy_uwh=total(sessions.c.energy_uwh, opened),
                delivered_ms=total(sessions.c.delivered_ms, opened),
                payments=_count(connection, payments.c.payment_hash, credits_of_opened)
                + _count(connection, aggregate_versions.c.session_id, increments),
                credited_msat=total(payments.c.amount_msat, credits_of_opened) + onchain_credited_msat,
                onchain_credited_msat=onchain_credited_msat,
                charged_msat=total(sessions.c.charged_msat, opened),
                refunded_msat=total(sessions.c.refunded_msat, opened),
                refund_fees_msat=total(sessions.c.refund_fee_msat, opened),
                lost_msat=lost,
                missing_msat=total(aggregates.c.lost_msat, aggregates.c.session_id.in_(of_opened)),
                orphans=_count(connection, payments.c.payment_hash, paid),
                orphans_msat=total(payments.c.amount_msat, paid),
                orphans_refunded_msat=total(intents.c.amount_msat, given_back),
                orphan_fees_msat=total(intents.c.amount_sent_msat - intents.c.amount_msat, given_back),
            )


def _total(connection: Connection, column: ColumnElement[int], where: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.coalesce(func.sum(column), 0)).where(where)).scalar_one())


def _count(connection: Connection, column: ColumnElement[str], where: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.count(column)).where(where)).scalar_one())


@dataclass(frozen=True, slots=True)
class SavedStatement:
    session_id: str
    sequence: int
    at: int
    """Unix seconds."""
    statement: bytes
    """Serialized as it was sent."""


@dataclass(frozen=True, slots=True)
class SavedReceipt:
    session_id: str
    content: bytes
    """Serialized; exactly what is signed."""
    signature: str
    at: int
    """Unix seconds."""


class DocumentStore(Store):
    """Statements and receipts. The session must have been saved before, else StopError ``unknown_session``."""

    def save_statement(self, session_id: str, sequence: int, at: int, statement: bytes) -> None:
        """Keep a statement. Raises StopError ``statement_exists`` when the session has one of that number."""
        row = {"session_id": session_id, "sequence": sequence, "at": at, "statement": statement}
        with self._database.unit() as connection:
            _need_session(connection, session_id)
        try:
            with self._database.unit() as connection:
                connection.execute(insert(statements).values(row))
        except IntegrityError as error:
            raise StopError("statement_exists", f"session {session_id} has a statement {sequence} already") from error

    def statements(self, session_id: str, limit: int) -> Sequence[SavedStatement]:
        """The last ``limit`` statements of the session, newest first."""
        query = select(statements).where(statements.c.session_id == session_id)
        with self._database.view() as connection:
            rows = connection.execute(query.order_by(statements.c.sequence.desc()).limit(limit))
            return [SavedStatement(row.session_id, row.sequence, row.at, row.statement) for row in rows]

    def save_receipt(self, session_id: str, content: bytes, signature: str, at: int) -> int:
        """Keep one more receipt of the session; earlier ones stay. Its number, which grows with every receipt of this
        ledger."""
        with self._database.unit() as connection:
            _need_session(connection, session_id)
            row = {"session_id": session_id, "receipt": content, "signature": signature, "at": at}
            made = connection.execute(insert(receipts).values(row))
            assert made.inserted_primary_key is not None, "the database numbers its rows"
            return int(made.inserted_primary_key[0])

    def last_receipt_number(self) -> int:
        """Of the receipt saved last, of whatever session; 0 when there is none."""
        with self._database.view() as connection:
            return int(connection.execute(select(func.coalesce(func.max(receipts.c.number), 0))).scalar_one())

    def receipt(self, session_id: str) -> SavedReceipt | None:
        """The newest receipt of the session, or None."""
        found = self.receipts(session_id)
        return found[0] if found else None

    def receipts(self, session_id: str) -> Sequence[SavedReceipt]:
        """All receipts of the session, newest first."""
        query = select(receipts).where(receipts.c.session_id == session_id).order_by(receipts.c.number.desc())
        with self._database.view() as connection:
            return [
                SavedReceipt(row.session_id, row.receipt, row.signature, row.at) for row in connection.execute(query)
            ]


def _need_session(connection: Connection, session_id: str) -> None:
    if connection.execute(select(sessions.c.session_id).where(sessions.c.session_id == session_id)).first() is None:
        raise StopError("unknown_session", f"session {session_id} was never saved")
