"""Sums over a period, for the operator."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select, true
from sqlalchemy.sql import ColumnElement

from wattline.ledger.outgoing import IntentStatus, Purpose
from wattline.ledger.payment import Kind
from wattline.ledger.schema import aggregate_versions, aggregates, intents, payments, sessions
from wattline.ledger.session_record import records_in
from wattline.ledger.store import Store
from wattline.payment.aggregate import MSAT_PER_SAT, lost_msat


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
