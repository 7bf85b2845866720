"""The sessions that live: where each is served, what the ledger has to know of it, and whether it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from wattline.ledger import Ledger, SessionRecord
from wattline.plugin.outlet import OutletLoop, OutletView
from wattline.session import Event, State
from wattline.v1 import charging_pb2 as pb

CALL_TIMEOUT_S = 5.0
"""How long an outlet's loop may take to answer."""
UNSAVED_STATEMENTS = 1000
"""More than a session can have sent between two saves."""
REMEMBERED_SESSIONS = 1000


class LiveSessions:
    """Thread-safe. A session is live from its open until its receipt is written."""

    def __init__(self, ledger: Ledger, now: Callable[[], int] = lambda: int(time.time())) -> None:
        self._ledger = ledger
        self._now = now
        self._lock = threading.RLock()
        self._saving = threading.RLock()
        """Held from the look at a live session until it is written, and taken before the ledger's own lock: an older
        look never overwrites a newer one."""
        self._records: dict[str, SessionRecord] = {}
        """What does not change, or changes with a save."""
        self._outlets: dict[str, OutletLoop] = {}
        self._sequences: dict[str, int] = {}
        self._changed: set[str] = set()
        self._statements: list[tuple[pb.Statement, int]] = []
        self._max_unpaid_msat: dict[str, int] = {}
        self._onchain_msat: dict[str, int] = {}
        self.unsaved = False
        """The ledger could not be written the last time: no money may be taken."""

    def add(self, record: SessionRecord, outlet: OutletLoop, *, restored: bool = False) -> None:
        """Served by ``outlet`` from now on. Statements of a restored session that were sent after its last save are not
        in the ledger; no number is used twice."""
        session_id = record.session.session_id
        with self._lock:
            self._records[session_id] = record
            self._outlets[session_id] = outlet
            self._sequences[session_id] = record.statement_sequence + (UNSAVED_STATEMENTS if restored else 0)
            self._onchain_msat[session_id] = self._ledger.onchain_credited_msat(session_id) if restored else 0

    def never_opened(self, session_id: str) -> None:
        """It did not come about: the ledger does not know it."""
        self.drop(session_id)
        with self._lock:
            self._statements = [kept for kept in self._statements if kept[0].session_id != session_id]

    def drop(self, session_id: str) -> None:
        """It is over."""
        with self._lock:
            outlet = self._outlets.pop(session_id, None)
            if outlet is not None and outlet.view.session is not None:
                while len(self._max_unpaid_msat) >= REMEMBERED_SESSIONS:
                    del self._max_unpaid_msat[next(iter(self._max_unpaid_msat))]
                self._max_unpaid_msat[session_id] = outlet.view.max_unpaid_msat
            self._records.pop(session_id, None)
            self._sequences.pop(session_id, None)
            self._onchain_msat.pop(session_id, None)
            self._changed.discard(session_id)

    def outlet_of(self, session_id: str) -> OutletLoop | None:
        with self._lock:
            return self._outlets.get(session_id)

    def view_of(self, session_id: str) -> OutletView | None:
        """The outlet's view while it serves this very session."""
        outlet = self.outlet_of(session_id)
        view = outlet.view if outlet is not None else None
        return view if view and view.session and view.session.session_id == session_id else None

    def post(self, session_id: str, event: Event) -> bool:
        """Let ``event`` happen to a live session; False when it is none."""
        outlet = self.outlet_of(session_id)
        return outlet is not None and outlet.post(session_id, event).result(CALL_TIMEOUT_S)

    def live(self, session_id: str) -> SessionRecord | None:
        """A live session as it is at this moment."""
        view = self.view_of(session_id)
        with self._lock:
            record = self._records.get(session_id)
        if record is None or view is None or view.session is None:
            return record
        return replace(record, session=view.session, meter_base_uwh=view.meter_base_uwh, chip_uwh=view.chip_uwh)

    def record(self, session_id: str) -> SessionRecord | None:
        """A session, live or over; None when there never was one of that id."""
        return self.live(session_id) or self._ledger.session(session_id)

    def max_unpaid_msat(self, session_id: str) -> int | None:
        """The worst (charged - credited) of a session that this process served lately; None when it did not."""
        view = self.view_of(session_id)
        return view.max_unpaid_msat if view is not None else self._max_unpaid_msat.get(session_id)

    def credited_onchain(self, session_id: str, amount_msat: int) -> None:
        """So much more of a live session's credit is one on the chain."""
        with self._lock:
            self._onchain_msat[session_id] = self._onchain_msat.get(session_id, 0) + amount_msat

    def onchain_credited_msat(self, session_id: str) -> int:
        """The part of a live session's credit that was handed over on the chain."""
        with self._lock:
            return self._onchain_msat.get(session_id, 0)

    def next_sequence(self, session_id: str) -> int:
        """The number of the session's next statement."""
        with self._lock:
            self._sequences[session_id] = self._sequences.get(session_id, 0) + 1
            return self._sequences[session_id]

    def keep(self, statement: pb.Statement) -> None:
        """This statement goes into the ledger with the next save."""
        with self._lock:
            self._statements.append((statement, self._now()))

    def mark_changed(self, session_id: str) -> None:
        with self._lock:
            self._changed.add(session_id)

    def save(self, session_id: str) -> None:
        """Write a live session to the ledger now."""
        with self._saving:
            record = self.live(session_id)
            if record is None:
                return
            with self._lock:
                sequence = self._sequences.get(session_id, 0)
            closed_at = record.closed_at
            if record.session.state is State.CLOSED:
                closed_at = closed_at or self._now()  # a session that is CLOSED in the ledger is not taken up again
            self._ledger.save_session(replace(record, statement_sequence=sequence, closed_at=closed_at))

    def save_over(self, record: SessionRecord) -> None:
        """Write a session that is over to the ledger now."""
        with self._saving:
            self._ledger.save_session(record)

    def save_changed(self) -> None:
        """Write what has moved on since the last time. When that fails no money is taken until it works."""
        with self._lock:
            changed, self._changed = self._changed, set()
            statements, self._statements = self._statements, []
        try:
            with self._saving, self._ledger.unit():
                for session_id in changed:
                    self.save(session_id)
                for statement, at in statements:
                    content = statement.SerializeToString(deterministic=True)
                    self._ledger.save_statement(statement.session_id, statement.sequence, at, content)
        except BaseException:
            with self._lock:
                self._changed |= changed
                self._statements = statements + self._statements
            self.unsaved = True
            raise
        self.unsaved = False
