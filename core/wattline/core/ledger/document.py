"""What the socket has told its cables: statements and receipts, byte by byte. Append-only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import IntegrityError

from wattline.core.errors import StopError
from wattline.core.ledger.schema import receipts, sessions, statements
from wattline.core.ledger.store import Store


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
