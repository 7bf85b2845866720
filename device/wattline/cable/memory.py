"""What the cable must not forget while a session lives: written before it is relied on, read after a crash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wattline.ledger import CableSession, Intent


class SessionMemory(Protocol):
    """The durable record of the cable's sessions; ``Ledger.cable_sessions``. A method has committed when it returns,
    and may raise LedgerBusy and LedgerError."""

    def save(self, session: CableSession) -> None:
        """Insert or replace by token."""

    def unfinished(self) -> CableSession | None:
        """The newest session without ``closed_at``."""


class OutgoingRecord(Protocol):
    """The durable record of payments; ``Ledger.outgoing``."""

    def of(self, purpose: str, session_id: str, sequence: int) -> Intent | None:
        """The intent for this payment that has not failed, else the one that failed last."""

    def of_session(self, purpose: str, session_id: str) -> Sequence[Intent]:
        """All intents of a session, whatever became of them."""

    def sent_msat(self, session_id: str | None = None, since: int | None = None) -> int:
        """What left or may leave the wallet, fees (while pending: their limit) included."""
