"""The log of what happened, for people. Append-only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, insert, select

from wattline.ledger.schema import events
from wattline.ledger.store import Store


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    number: int
    """Grows with every event."""
    at: int
    """Unix seconds."""
    session_id: str | None
    kind: str
    detail: Mapping[str, Any]


class EventStore(Store):
    """The log."""

    def append_event(self, at: int, session_id: str | None, kind: str, detail: Mapping[str, Any]) -> None:
        """Add an event; ``detail`` is anything that JSON can hold."""
        text = json.dumps(dict(detail), ensure_ascii=False, sort_keys=True)
        with self._database.unit() as connection:
            connection.execute(insert(events).values(at=at, session_id=session_id, kind=kind, detail=text))

    def last_event(self, kind: str, session_id: str | None = None) -> LoggedEvent | None:
        """The newest event of this kind (of one session), or None."""
        query = select(events).where(events.c.kind == kind)
        if session_id is not None:
            query = query.where(events.c.session_id == session_id)
        found = self._logged(query, 1)
        return found[0] if found else None

    def events(self, limit: int, session_id: str | None = None) -> Sequence[LoggedEvent]:
        """The last ``limit`` events (of one session), newest first."""
        query = select(events)
        if session_id is not None:
            query = query.where(events.c.session_id == session_id)
        return self._logged(query, limit)

    def _logged(self, query: Select[Any], limit: int) -> list[LoggedEvent]:
        with self._database.view() as connection:
            return [
                LoggedEvent(row.number, row.at, row.session_id, row.kind, json.loads(row.detail))
                for row in connection.execute(query.order_by(events.c.number.desc()).limit(limit))
            ]
