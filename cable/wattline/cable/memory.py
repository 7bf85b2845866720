"""What the cable must not forget while a session lives: written before it is relied on, read after a crash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wattline.cable.policy.account import SentRecord
from wattline.core.ledger.cable import CableAggregate, CableSession
from wattline.core.ledger.outgoing import Intent


class SessionMemory(Protocol):
    """The durable record of the cable's sessions; ``Ledger.cable_sessions``. A method has committed when it returns,
    and may raise LedgerBusy and LedgerError."""

    def save(self, session: CableSession) -> None:
        """Insert or replace by token."""

    def unfinished(self) -> CableSession | None:
        """The newest session without ``closed_at``."""

    def of(self, session_id: str) -> CableSession | None:
        """The newest session of that id."""

    def without_receipt(self, node_id: str, limit: int) -> Sequence[CableSession]:
        """Those at this socket that are over, and for which it gave no receipt; newest first."""


class OutgoingRecord(Protocol):
    """The durable record of payments; ``Ledger.outgoing``."""

    def of(self, purpose: str, session_id: str, sequence: int) -> Intent | None:
        """The intent for this payment that has not failed, else the one that failed last."""

    def of_session(self, purpose: str, session_id: str) -> Sequence[Intent]:
        """All intents of a session, whatever became of them."""

    def pending(self) -> Sequence[Intent]:
        """All intents whose fate is not known."""

    def intent(self, payment_hash: str) -> Intent | None:
        """The intent with this hash."""

    def newest_at(self, purpose: str) -> int | None:
        """When the newest intent was made, Unix seconds."""

    def add(self, intent: Intent) -> None:
        """Raises AlreadyPaying when one that has not failed exists for the same purpose, session and sequence."""

    def complete(self, payment_hash: str, amount_sent_msat: int, at: int) -> None:
        """It arrived."""

    def sent_msat(self, session_id: str | None = None, since: int | None = None) -> int:
        """What left or may leave the wallet, fees (while pending: their limit) included."""


class AggregateMemory(Protocol):
    """The durable record of what was signed on-chain; ``Ledger.cable_aggregates``. A method has committed when it
    returns, and may raise LedgerBusy and LedgerError."""

    def save(self, row: CableAggregate) -> None:
        """Insert or replace by session."""

    def of(self, session_id: str) -> CableAggregate | None:
        """The aggregate of a session."""

    def unfinished(self) -> Sequence[CableAggregate]:
        """Those of which it is not known what was mined, oldest first."""

    def cheating_socket(self, node_id: str) -> CableAggregate | None:
        """The aggregate of which this socket had more mined than agreed."""

    def unanswered(self, node_id: str | None = None) -> Sequence[CableAggregate]:
        """Those of which more was mined than is due, and has not come back, oldest first; of this socket or of any."""

    def sent_msat(self, session_id: str | None = None, since: int | None = None) -> int:
        """What left or may leave the wallet, the miner's fee included."""


class AllSent:
    """Over Lightning and on-chain together."""

    def __init__(self, *records: SentRecord) -> None:
        self._records = records

    def sent_msat(self, session_id: str | None = None, since: int | None = None) -> int:
        """The sum of all records."""
        return sum(record.sent_msat(session_id, since) for record in self._records)
