"""The durable record, in SQLite by default and in PostgreSQL for a fleet: sessions, payments, the journal's cursor,
tariffs, statements, receipts, events, and the intents of whoever pays. Socket and cable use the same schema."""

from wattline.ledger.cable_session import CableSession, CableSessionStore
from wattline.ledger.database import LedgerBusy, LedgerError
from wattline.ledger.document import SavedReceipt, SavedStatement
from wattline.ledger.event import LoggedEvent
from wattline.ledger.ledger import Ledger, open_ledger
from wattline.ledger.outgoing import AlreadyPaying, Intent, IntentStatus, Outgoing, Purpose
from wattline.ledger.payment import Booked, Booking, Cursor, Kind, PaymentMismatch
from wattline.ledger.report import Totals
from wattline.ledger.session_record import SessionRecord
from wattline.ledger.tariff_history import TariffEntry

__all__ = [
    "AlreadyPaying",
    "Booked",
    "Booking",
    "CableSession",
    "CableSessionStore",
    "Cursor",
    "Intent",
    "IntentStatus",
    "Kind",
    "Ledger",
    "LedgerBusy",
    "LedgerError",
    "LoggedEvent",
    "Outgoing",
    "PaymentMismatch",
    "Purpose",
    "SavedReceipt",
    "SavedStatement",
    "SessionRecord",
    "TariffEntry",
    "Totals",
    "open_ledger",
]
