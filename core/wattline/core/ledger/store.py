"""What all stores of the ledger have in common."""

from __future__ import annotations

from wattline.core.ledger.database import Database


class Store:
    """A part of the ledger, by concern. Every method is a unit of work of its own, or a part of the caller's; each may
    raise LedgerBusy and LedgerError."""

    def __init__(self, database: Database) -> None:
        self._database = database
