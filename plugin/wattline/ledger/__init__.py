"""The durable record, in SQLite by default and in PostgreSQL for a fleet: sessions, payments, the journal's cursor,
aggregates and their versions, tariffs, statements, receipts, events, and the intents of whoever pays. Socket and cable
use the same schema."""

from wattline.ledger.aggregate import AggregateStore
from wattline.ledger.aggregate_record import Aggregate, AggregateInput, AggregateStatus, Version
from wattline.ledger.cable_aggregate import CableAggregate, CableAggregateStatus, CableAggregateStore
from wattline.ledger.cable_session import CableSession, CableSessionStore
from wattline.ledger.database import LedgerBusy, LedgerError
from wattline.ledger.document import SavedReceipt, SavedStatement
from wattline.ledger.event import LoggedEvent
from wattline.ledger.ledger import Ledger, open_ledger
from wattline.ledger.outgoing import AlreadyPaying, Intent, IntentStatus, Outgoing, Purpose
from wattline.ledger.payment import ORPHAN_KEPT, ORPHAN_REFUNDED, Booked, Booking, Cursor, Kind, PaymentMismatch
from wattline.ledger.refused_cable import RefusedCable
from wattline.ledger.report import Totals
from wattline.ledger.session_record import SessionRecord
from wattline.ledger.tariff_history import TariffEntry

__all__ = [
    "ORPHAN_KEPT",
    "ORPHAN_REFUNDED",
    "Aggregate",
    "AggregateInput",
    "AggregateStatus",
    "AggregateStore",
    "AlreadyPaying",
    "Booked",
    "Booking",
    "CableAggregate",
    "CableAggregateStatus",
    "CableAggregateStore",
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
    "RefusedCable",
    "SavedReceipt",
    "SavedStatement",
    "SessionRecord",
    "TariffEntry",
    "Totals",
    "Version",
    "open_ledger",
]
