"""The cable's side of its sessions, so that a restarted cable resumes instead of paying for another one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import Row, Select, insert, select, update

from wattline.clock import Moment
from wattline.errors import StopError
from wattline.ledger.schema import cable_sessions
from wattline.ledger.store import Store
from wattline.tariff import Tariff

_TOKEN = re.compile(r"[0-9a-f]{64}")
_TARIFF = [field.name for field in fields(Tariff)]


@dataclass(frozen=True, slots=True)
class CableSession:
    """One session as its buyer knows it. To be saved before the socket is asked to open it, and again when the socket
    has named it. Raises StopError ``record_invalid``."""

    token: str
    """32 secret bytes, hex: who holds them owns the session."""
    address: str
    """``host:port`` of the socket."""
    node_id: str
    """The socket's node, which signed the offer."""
    outlet_id: str
    tariff: Tariff
    rated_power_mw: int
    created_at: int
    """Unix seconds."""
    session_id: str | None = None
    """None until the socket has named it."""
    opened_at: int | None = None
    """Unix seconds."""
    base_uwh: int = 0
    """Count of the own meter's chip at the open."""
    extra_uwh: int = 0
    """Own energy of the session that is no longer in the chip."""
    energy_uwh: int = 0
    """Own energy at ``saved_at``."""
    saved_at: int = 0
    """Unix seconds of the last write."""
    stop_reason: str = ""
    """Empty while the session may go on."""
    closed_at: int | None = None
    receipt: bytes = b""
    """Serialized, as the socket signed it; empty before."""
    receipt_signature: str = ""
    delivered_ms: int | None = None
    """The longest that delivery can have lasted by ``saved_at``; None when it is not known."""
    min_refund_msat: int = 0
    """Unused credit below this the socket keeps, by its offer."""
    saved_boot_id: str = ""
    """Which boot of the machine ``saved_at`` was in; empty when that is not known."""
    saved_boot_ms: int = 0
    """Since that boot."""
    cable_lost_s: int = 60
    """So long the socket goes on without a word of its cable, by its offer as far as that is believed."""

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.token):
            raise StopError("record_invalid", "token: 64 lower-case hex digits")  # a secret: not shown
        if bool(self.receipt) is not bool(self.receipt_signature):
            raise StopError("record_invalid", "a receipt comes with its signature")

    @property
    def saved(self) -> Moment:
        """When it was written last."""
        return Moment(self.saved_at, self.saved_boot_id, self.saved_boot_ms)

    def saved_now(self, now: Moment) -> CableSession:
        """The same, to be written ``now``."""
        return replace(self, saved_at=now.wall_s, saved_boot_id=now.boot_id, saved_boot_ms=now.boot_ms)


_OWN = [field.name for field in fields(CableSession) if field.name != "tariff"]


class CableSessionStore(Store):
    """All sessions of a cable, by token."""

    def save(self, session: CableSession) -> None:
        """Insert or replace by token; committed when it returns, unless inside a larger unit of work."""
        values = {name: getattr(session, name) for name in _OWN}
        values |= {name: getattr(session.tariff, name) for name in _TARIFF}
        with self._database.unit() as connection:
            known = cable_sessions.c.token == session.token
            if connection.execute(update(cable_sessions).where(known).values(values)).rowcount == 0:
                connection.execute(insert(cable_sessions).values(values))

    def unfinished(self) -> CableSession | None:
        """The newest session without ``closed_at``; None when all are over."""
        found = self._records(select(cable_sessions).where(cable_sessions.c.closed_at.is_(None)), 1)
        return found[0] if found else None

    def without_receipt(self, node_id: str, limit: int) -> Sequence[CableSession]:
        """Sessions at this socket that are over, and for which it gave no receipt; newest first."""
        is_over = (cable_sessions.c.node_id == node_id) & cable_sessions.c.closed_at.is_not(None)
        named = cable_sessions.c.session_id.is_not(None) & (cable_sessions.c.receipt == b"")
        return self._records(select(cable_sessions).where(is_over & named), limit)

    def of(self, session_id: str) -> CableSession | None:
        """The newest session of that id, or None."""
        found = self._records(select(cable_sessions).where(cable_sessions.c.session_id == session_id), 1)
        return found[0] if found else None

    def latest(self, limit: int) -> Sequence[CableSession]:
        """The ``limit`` sessions made last, newest first."""
        return self._records(select(cable_sessions), limit)

    def _records(self, query: Select[Any], limit: int) -> list[CableSession]:
        # Of the same second the one written last: it is the one that is alive.
        newest_first = query.order_by(cable_sessions.c.created_at.desc(), cable_sessions.c.saved_at.desc())
        with self._database.view() as connection:
            return [_cable_session(row) for row in connection.execute(newest_first.limit(limit))]


def _cable_session(row: Row[Any]) -> CableSession:
    values = row._mapping
    tariff = Tariff(**{name: values[name] for name in _TARIFF})
    return CableSession(tariff=tariff, **{name: values[name] for name in _OWN})
