"""Sessions, as they are kept over restarts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Row, ScalarSelect, Select, delete, exists, func, insert, select, update
from sqlalchemy.sql import ColumnElement

from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.errors import StopError
from wattline.core.ledger.database import Store
from wattline.core.ledger.payment import Kind
from wattline.core.ledger.schema import aggregate_versions, aggregates, payments, receipts, sessions, statements
from wattline.core.session.session import Account, Session, Terms
from wattline.core.session.state import Method, RefundStatus, State, StopReason
from wattline.core.tariff import Tariff

_LOOKUP = 500
"""Sessions per statement; SQLite takes up to 32 766 values."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RULES = [field.name for field in fields(Terms) if field.name != "tariff"]
_SESSION_COLUMNS = [
    "session_id",
    "outlet_id",
    "energy_uwh",
    "delivered_ms",
    "started",
    "refund_budget_msat",
    "refund_fee_msat",
    "returned_msat",
]
_RECORD_COLUMNS = [
    "token_sha256",
    "cable_node_id",
    "opened_at",
    "closed_at",
    "meter_base_uwh",
    "chip_uwh",
    "statement_sequence",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A session with what the shell has to know of it. Raises StopError ``record_invalid``."""

    session: Session
    """What is saved of it is all but its monotonic times, its momentary power, and its credit: as read from the
    ledger, credit and payments are what is booked for it (by keysend, and the newest version of its aggregate with
    every version as a payment; a final one is none). Hand it to ``restored`` before use."""
    token_sha256: str
    """SHA-256 of the cable's token, hex."""
    cable_node_id: str
    """Where a refund goes, hex; empty when the cable named none."""
    opened_at: int
    closed_at: int | None = None
    meter_base_uwh: int = 0
    """The chip's cumulative energy at the open: chip - base is the session's energy. Negative when the chip was reset
    during the session."""
    chip_uwh: int = 0
    """The chip's cumulative energy at the latest reading that counts in the session's energy."""
    statement_sequence: int = 0
    """Of the latest statement; the next one is larger also after a restart."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.token_sha256):
            raise StopError("record_invalid", f"token_sha256: 64 lower-case hex digits, not {self.token_sha256!r}")
        if self.statement_sequence < 0:
            raise StopError("record_invalid", f"statement_sequence: at least 0, not {self.statement_sequence}")


class SessionStore(Store):
    """All sessions that were ever opened."""

    def save_session(self, record: SessionRecord) -> None:
        """Insert or replace the session's row. Its credit is not saved: see :meth:`PaymentStore.book` and
        :meth:`VersionStore.store_version`. Raises StopError ``token_in_use`` when another session has the same
        token."""
        values = _values(record)
        with self._database.unit() as connection:
            holder = connection.execute(
                select(sessions.c.session_id).where(sessions.c.token_sha256 == record.token_sha256)
            ).scalar()
            if holder is not None and holder != record.session.session_id:
                raise StopError("token_in_use", f"session {holder} has the same token")
            known = sessions.c.session_id == record.session.session_id
            if connection.execute(update(sessions).where(known).values(values)).rowcount == 0:
                connection.execute(insert(sessions).values(values))

    def unpaid_over(self, opened_since: int = 0) -> Sequence[str]:
        """CLOSED sessions of which nothing tells but their own row, those closed last first: never paid for, no orphan
        names them, no address was given to them. Only those opened since then (Unix seconds) are looked at."""
        query = select(sessions.c.session_id).where(sessions.c.opened_at >= opened_since, *_unpaid_over())
        with self._database.view() as connection:
            return [row.session_id for row in connection.execute(query.order_by(sessions.c.closed_at.desc()))]

    def forget_unpaid(self, session_ids: Sequence[str]) -> None:
        """Delete the rows of such sessions; of others, nothing."""
        for start in range(0, len(session_ids), _LOOKUP):
            part = session_ids[start : start + _LOOKUP]
            with self._database.unit() as connection:
                connection.execute(delete(sessions).where(sessions.c.session_id.in_(part), *_unpaid_over()))

    def session(self, session_id: str) -> SessionRecord | None:
        """The session, or None when there is none of that id."""
        found = self._records(_with_credit().where(sessions.c.session_id == session_id))
        return found[0] if found else None

    def session_by_token(self, token_sha256: str) -> SessionRecord | None:
        """The session whose token has this SHA-256 (hex), or None."""
        found = self._records(_with_credit().where(sessions.c.token_sha256 == token_sha256))
        return found[0] if found else None

    def live_sessions(self) -> Sequence[SessionRecord]:
        """Sessions that are not CLOSED, oldest first."""
        query = _with_credit().where(sessions.c.state != State.CLOSED)
        return self._records(query.order_by(sessions.c.opened_at, sessions.c.session_id))

    def sessions(self, limit: int) -> Sequence[SessionRecord]:
        """The ``limit`` sessions opened last, newest first."""
        query = _with_credit().order_by(sessions.c.opened_at.desc(), sessions.c.session_id.desc())
        return self._records(query.limit(limit))

    def owed_refunds(self) -> Sequence[SessionRecord]:
        """CLOSED sessions whose refund could not be sent yet, oldest first."""
        query = _with_credit().where(sessions.c.refund_status == RefundStatus.OWED)
        return self._records(query.order_by(sessions.c.opened_at, sessions.c.session_id))

    def without_receipt(self) -> Sequence[SessionRecord]:
        """CLOSED sessions of which no receipt was saved, oldest first."""
        has_receipt = select(receipts.c.number).where(receipts.c.session_id == sessions.c.session_id).exists()
        query = _with_credit().where(sessions.c.state == State.CLOSED, ~has_receipt)
        return self._records(query.order_by(sessions.c.opened_at, sessions.c.session_id))

    def _records(self, query: Select[Any]) -> list[SessionRecord]:
        with self._database.view() as connection:
            return [_record(row) for row in connection.execute(query)]


def records_in(connection: Connection, where: ColumnElement[bool]) -> list[SessionRecord]:
    """The sessions for which ``where`` holds, within the caller's view or unit of work."""
    return [_record(row) for row in connection.execute(_with_credit().where(where))]


def _unpaid_over() -> list[ColumnElement[bool]]:
    tells = [
        exists().where(table.c.session_id == sessions.c.session_id)
        for table in (payments, aggregates, statements, receipts)
    ]
    return [
        sessions.c.state == State.CLOSED,
        sessions.c.started.is_(False),
        sessions.c.refund_status == RefundStatus.NONE,
        *[~each for each in tells],
    ]


def _with_credit() -> Select[Any]:
    paid = (payments.c.session_id == sessions.c.session_id) & (payments.c.kind == Kind.CREDIT)
    handed_over = (aggregate_versions.c.session_id == sessions.c.session_id) & aggregate_versions.c.is_final.is_(False)

    def one(query: Select[Any]) -> ScalarSelect[int]:
        return query.correlate(sessions).scalar_subquery()

    paid_msat = one(select(func.coalesce(func.sum(payments.c.amount_msat), 0)).where(paid))
    # Versions grow: the newest is the largest.
    newest_sat = one(select(func.coalesce(func.max(aggregate_versions.c.value_sat), 0)).where(handed_over))
    number_paid = one(select(func.count()).select_from(payments).where(paid))
    increments = one(select(func.count()).select_from(aggregate_versions).where(handed_over))
    return select(
        sessions,
        (paid_msat + newest_sat * MSAT_PER_SAT).label("credited_msat"),
        (newest_sat * MSAT_PER_SAT).label("onchain_msat"),
        (number_paid + increments).label("payments"),
    )


def _values(record: SessionRecord) -> dict[str, Any]:
    session, tariff = record.session, record.session.terms.tariff
    return {
        **{name: getattr(session, name) for name in _SESSION_COLUMNS},
        **{name: getattr(session.terms, name) for name in _RULES},
        **{name: getattr(record, name) for name in _RECORD_COLUMNS},
        **{field.name: getattr(tariff, field.name) for field in fields(Tariff)},
        "method": session.method.value,
        "state": session.state.value,
        "stop_reason": session.stop_reason.value if session.stop_reason is not None else None,
        "refund_status": session.refund_status.value,
        "charged_msat": session.account.charged_msat,
        "refunded_msat": session.account.refunded_msat,
    }


def _record(row: Row[Any]) -> SessionRecord:
    values = row._mapping
    account = Account(
        credited_msat=int(values["credited_msat"]),
        charged_msat=values["charged_msat"],
        refunded_msat=values["refunded_msat"],
        payments=int(values["payments"]),
        onchain_msat=int(values["onchain_msat"]),
    )
    session = Session(
        **{name: values[name] for name in _SESSION_COLUMNS},
        method=Method(values["method"]),
        terms=Terms(
            tariff=Tariff(**{field.name: values[field.name] for field in fields(Tariff)}),
            **{name: values[name] for name in _RULES},
        ),
        state=State(values["state"]),
        account=account,
        stop_reason=StopReason(values["stop_reason"]) if values["stop_reason"] is not None else None,
        refund_status=RefundStatus(values["refund_status"]),
        metered_ms=values["delivered_ms"],
    )
    return SessionRecord(session=session, **{name: values[name] for name in _RECORD_COLUMNS})
