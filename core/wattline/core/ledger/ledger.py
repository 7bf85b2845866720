"""The ledger as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from wattline.core.ledger.aggregate import AggregateStore
from wattline.core.ledger.cable import CableAggregateStore, CableSessionStore
from wattline.core.ledger.database import Database, open_database
from wattline.core.ledger.history import DocumentStore, EventStore, ReportStore, TariffStore
from wattline.core.ledger.outgoing import Outgoing
from wattline.core.ledger.payment import PaymentStore
from wattline.core.ledger.session_record import SessionStore


class Ledger(SessionStore, PaymentStore, AggregateStore, TariffStore, DocumentStore, EventStore, ReportStore):
    """Everything that must not be forgotten. May be used from several threads."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.outgoing = Outgoing(database)
        self.cable_sessions = CableSessionStore(database)
        self.cable_aggregates = CableAggregateStore(database)

    @contextmanager
    def unit(self) -> Iterator[None]:
        """Makes all calls of this thread within the block one unit of work: all of them are kept, or, when the block
        raises, none."""
        with self._database.unit():
            yield

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_ledger(where: str | Path) -> Ledger:
    """The ledger at ``where``: the path of a SQLite file (made when missing, its folder too), or a SQLAlchemy URL such
    as ``postgresql+psycopg://...``. Every socket and every cable needs its own database (or schema).

    Raises UsageError ``ledger_url``, ``ledger_too_new``, ``ledger_foreign``; LedgerError; LedgerBusy.
    """
    return Ledger(open_database(where))
