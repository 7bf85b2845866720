"""Payments received, and how far the node's journal has been read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, select, update
from sqlalchemy.sql import ColumnElement

from wattline.core.errors import StopError
from wattline.core.ledger.database import Store
from wattline.core.ledger.schema import events, journal_cursor, payments, sessions

_SHA256 = re.compile(r"[0-9a-f]{64}")
ORPHAN_REFUNDED, ORPHAN_KEPT = "orphan_refunded", "orphan_kept"
"""The events with which an orphan is done with; their detail names its payment_hash."""
_LOOKUP = 500
"""Hashes per query; SQLite takes up to 32 766 values."""


class Kind(StrEnum):
    """What a payment became."""

    CREDIT = "credit"  # on the account of its session
    ORPHAN = "orphan"  # its session could not use it any more, or never existed; to be given back


class PaymentMismatch(StopError):
    """A payment_hash that is booked already is to be booked with another amount or session. Code
    ``payment_mismatch``; nothing of the unit of work was booked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """One payment that the node received. Raises StopError ``booking_invalid``."""

    payment_hash: str
    kind: Kind
    session_id: str
    """As its record says; of an orphan it may name a session that never was."""
    sequence: int
    amount_msat: int
    """What the node received (amount_received_msat)."""
    pay_index: int
    """Of the paid invoice; 0 when it has none."""
    updated_index: int
    paid_at: int

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.payment_hash):
            raise StopError("booking_invalid", f"payment_hash: 64 lower-case hex digits, not {self.payment_hash!r}")
        if isinstance(self.amount_msat, bool) or self.amount_msat <= 0:
            raise StopError("booking_invalid", f"amount_msat: at least 1, not {self.amount_msat!r}")


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the journal has been read. Both only ever grow."""

    updated_index: int = 0
    """Of the last row read."""
    pay_index: int = 0
    """The highest one seen."""


@dataclass(frozen=True, slots=True)
class Booked:
    """What became of the rows of one :meth:`PaymentStore.book`."""

    new: tuple[Booking, ...]
    known: tuple[Booking, ...]
    """Booked before and left alone, as they stand in the ledger."""


class PaymentStore(Store):
    """What came by keysend: one row per payment_hash, written once and never changed. What was handed over on-chain is
    in :class:`wattline.core.ledger.aggregate.AggregateStore`."""

    def book(self, rows: Sequence[Booking], cursor: Cursor) -> Booked:
        """Book payments and the journal's cursor in ONE unit of work. A payment_hash that is booked already changes
        nothing, whatever kind it is called now. The cursor never goes back.

        Raises PaymentMismatch when a hash comes again with another amount or session, StopError ``unknown_session`` for
        a credit of a session that was never saved; then nothing at all was booked.
        """
        with self._database.unit() as connection:
            known: dict[str, Booking] = _stored(connection, [row.payment_hash for row in rows])
            new: dict[str, Booking] = {}
            again: dict[str, Booking] = {}
            for row in rows:
                earlier = known.get(row.payment_hash) or new.get(row.payment_hash)
                if earlier is None:
                    new[row.payment_hash] = row
                    continue
                if (earlier.amount_msat, earlier.session_id) != (row.amount_msat, row.session_id):
                    raise PaymentMismatch(
                        "payment_mismatch",
                        f"payment {row.payment_hash} is booked with {earlier.amount_msat} msat for session"
                        f" {earlier.session_id}, now it has {row.amount_msat} msat for session {row.session_id}",
                    )
                if row.payment_hash in known:
                    again[row.payment_hash] = earlier
            _check_sessions(connection, {row.session_id for row in new.values() if row.kind is Kind.CREDIT})
            if new:
                connection.execute(insert(payments), [asdict(row) for row in new.values()])
            _advance(connection, cursor)
        return Booked(tuple(new.values()), tuple(again.values()))

    def cursor(self) -> Cursor:
        """How far the journal has been read; zeros at the beginning."""
        with self._database.view() as connection:
            return _cursor(connection) or Cursor()

    def booked(self, payment_hash: str) -> Booking | None:
        """The payment with this hash, or None when it is not booked."""
        with self._database.view() as connection:
            return _stored(connection, [payment_hash]).get(payment_hash)

    def credited_msat(self, session_id: str) -> int:
        """The sum of what is booked as credit of the session: by keysend alone."""
        return self.credited(session_id)[0]

    def credited(self, session_id: str) -> tuple[int, int]:
        """The sum of what is booked as credit of the session (msat), and in how many payments: by keysend alone. Both
        methods together are in its :class:`SessionRecord`."""
        query = select(func.coalesce(func.sum(payments.c.amount_msat), 0), func.count()).where(
            payments.c.session_id == session_id, payments.c.kind == Kind.CREDIT
        )
        with self._database.view() as connection:
            total_msat, number = connection.execute(query).one()
            return int(total_msat), int(number)

    def payments(self, session_id: str) -> Sequence[Booking]:
        """All payments whose record names the session, orphans too, in the order in which they were paid."""
        query = select(payments).where(payments.c.session_id == session_id)
        with self._database.view() as connection:
            rows = connection.execute(query.order_by(payments.c.pay_index, payments.c.updated_index))
            return [_booking(row) for row in rows]

    def orphans(self) -> Sequence[Booking]:
        """All orphans, oldest first, whatever became of them."""
        return self._orphans(payments.c.kind == Kind.ORPHAN)

    def orphans_to_return(self, session_id: str | None = None) -> Sequence[Booking]:
        """Those (of one session) that were neither given back nor kept, and of whose session the cable's node is known;
        oldest first."""
        done = exists().where(
            events.c.session_id == payments.c.session_id,
            events.c.kind.in_((ORPHAN_REFUNDED, ORPHAN_KEPT)),
            events.c.detail.contains(payments.c.payment_hash),
        )
        has_payer = exists().where(sessions.c.session_id == payments.c.session_id, sessions.c.cable_node_id != "")
        where = [payments.c.kind == Kind.ORPHAN, has_payer, ~done]
        return self._orphans(*where, *([payments.c.session_id == session_id] if session_id is not None else []))

    def _orphans(self, *where: ColumnElement[bool]) -> Sequence[Booking]:
        query = select(payments).where(*where)
        with self._database.view() as connection:
            rows = connection.execute(query.order_by(payments.c.pay_index, payments.c.updated_index))
            return [_booking(row) for row in rows]


def _stored(connection: Connection, hashes: Sequence[str]) -> dict[str, Booking]:
    found = {}
    for start in range(0, len(hashes), _LOOKUP):
        part = hashes[start : start + _LOOKUP]
        for row in connection.execute(select(payments).where(payments.c.payment_hash.in_(part))):
            found[row.payment_hash] = _booking(row)
    return found


def _check_sessions(connection: Connection, session_ids: set[str]) -> None:
    for session_id in session_ids:
        query = select(sessions.c.session_id).where(sessions.c.session_id == session_id)
        if connection.execute(query).first() is None:
            raise StopError("unknown_session", f"a credit names session {session_id}, which was never saved")


def _cursor(connection: Connection) -> Cursor | None:
    row = connection.execute(select(journal_cursor.c.updated_index, journal_cursor.c.pay_index)).first()
    return Cursor(row.updated_index, row.pay_index) if row is not None else None


def _advance(connection: Connection, cursor: Cursor) -> None:
    before = _cursor(connection)
    if before is None:
        connection.execute(insert(journal_cursor).values(id=1, **asdict(cursor)))
        return
    after = Cursor(max(before.updated_index, cursor.updated_index), max(before.pay_index, cursor.pay_index))
    if after != before:
        connection.execute(update(journal_cursor).values(**asdict(after)))


def _booking(row: Row[Any]) -> Booking:
    values = dict(row._mapping)
    return Booking(**{**values, "kind": Kind(values["kind"])})
