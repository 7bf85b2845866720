"""The sessions that live: where each is served, what the ledger has to know of it, and whether it does."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from wattline.core.clock import DAY_S, Clock
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.session.event import Event, OperatorStopped
from wattline.core.session.session import Session
from wattline.core.session.state import State
from wattline.plugin.outlet import OutletLoop
from wattline.plugin.outlet_state import OutletView
from wattline.v1 import charging_pb2 as pb

CALL_TIMEOUT_S = 5.0
"""How long an outlet's loop may take to answer."""
UNPAID_KEPT_S = 3600
"""So long it is known that a session was there which was never paid for: a payment of it may still be on its way."""
UNPAID_KEPT = 1000
UNSAVED_STATEMENTS = 1000
"""More than a session can have sent between two saves."""
REMEMBERED_SESSIONS = 1000


class Sessions:
    """Thread-safe. A session is live from its open until its receipt is written."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._now = clock.now_s
        self._clock = clock.monotonic
        self._began_s = self._clock()
        self._over_unpaid: dict[str, float] = {}
        """When sessions ended that were never paid for, the oldest first."""
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
        self._notes: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
        """By session that has paid nothing yet: events that are written once it has."""
        self._max_unpaid_msat: dict[str, int] = {}
        self._has_forgotten = False
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

    def never_opened(self, session_id: str) -> None:
        """It did not come about: the ledger does not know it."""
        self.drop(session_id, has_been=False)
        with self._lock:
            self._statements = [kept for kept in self._statements if kept[0].session_id != session_id]

    def note(self, session_id: str, kind: str, detail: dict[str, Any]) -> None:
        """An event of a live session, written with the next save after its first payment: what was never paid for
        leaves none. Of one that is over by now nothing is noted."""
        with self._lock:
            if session_id in self._records:
                self._notes.setdefault(session_id, []).append((self._now(), kind, detail))

    def drop(self, session_id: str, *, has_been: bool = True) -> None:
        """It is over, or has never been."""
        with self._lock:
            outlet = self._outlets.pop(session_id, None)
            view = outlet.view.of(session_id) if outlet is not None else None
            if view is not None and view.session is not None and view.session.was_paid:
                while len(self._max_unpaid_msat) >= REMEMBERED_SESSIONS:
                    del self._max_unpaid_msat[next(iter(self._max_unpaid_msat))]
                self._max_unpaid_msat[session_id] = view.max_unpaid_msat
            elif has_been and session_id in self._records:
                while len(self._over_unpaid) >= UNPAID_KEPT:
                    del self._over_unpaid[next(iter(self._over_unpaid))]
                self._over_unpaid[session_id] = self._clock()
            self._records.pop(session_id, None)
            self._sequences.pop(session_id, None)
            self._changed.discard(session_id)
            self._notes.pop(session_id, None)

    def outlet_of(self, session_id: str) -> OutletLoop | None:
        with self._lock:
            return self._outlets.get(session_id)

    def view_of(self, session_id: str) -> OutletView | None:
        """The outlet as this session sees it, paying or waiting; None when no outlet serves it."""
        outlet = self.outlet_of(session_id)
        return outlet.view.of(session_id) if outlet is not None else None

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

    def session(self, session_id: str) -> Session | None:
        """A session as it stands, live or over."""
        record = self.record(session_id)
        return record.session if record is not None else None

    def is_served(self, session_id: str) -> bool:
        """Whether an outlet still has it: its end is not written yet."""
        return self.outlet_of(session_id) is not None

    def max_unpaid_msat(self, session_id: str) -> int | None:
        """The worst (charged - credited) of a session that this process served lately; None when it did not."""
        view = self.view_of(session_id)
        return view.max_unpaid_msat if view is not None else self._max_unpaid_msat.get(session_id)

    def next_sequence(self, session_id: str) -> int:
        """The number of the session's next statement."""
        with self._lock:
            sequence = self._sequences.get(session_id, 0) + 1
            if session_id in self._records:
                self._sequences[session_id] = sequence
            return sequence

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
            self._write_notes(record)

    def forget_unpaid(self) -> None:
        """Delete what is left of sessions that were never paid for and have been over for long; those that ended
        before this process began, when it has run for so long. The first time all are looked at, then the newest."""
        now_s = self._clock()
        is_young = now_s - self._began_s < UNPAID_KEPT_S
        with self._lock:
            kept = {each for each, at_s in self._over_unpaid.items() if now_s - at_s < UNPAID_KEPT_S}
            self._over_unpaid = {each: at_s for each, at_s in self._over_unpaid.items() if each in kept}
        over = self._ledger.unpaid_over(0 if is_young or not self._has_forgotten else self._now() - 2 * DAY_S)
        gone = [each for number, each in enumerate(over) if number >= UNPAID_KEPT or not (is_young or each in kept)]
        self._ledger.forget_unpaid(gone)
        self._has_forgotten = not is_young

    def close_books(self, session_id: str) -> bool:
        """Relay confirmed open and the last energy charged? Then BooksClosed happens; False: try again."""
        outlet = self.outlet_of(session_id)
        return outlet is None or outlet.close_books(session_id).result(CALL_TIMEOUT_S)

    def stop(self, session_id: str) -> Session | None:
        """The operator ends a session that is not over; how it stands then: one that was ending already goes on doing
        so. None when it is over, or there never was one of that id."""
        record = self.live(session_id)
        if record is None or record.session.state is State.CLOSED:
            return None
        if record.session.state.is_live:
            self.post(session_id, OperatorStopped())
        record = self.record(session_id)
        return record.session if record is not None else None

    def booked(self, payment_hashes: Collection[str]) -> None:
        """The ledger holds these payments now: the journal will not tell of them again."""
        with self._lock:
            outlets = {id(outlet): outlet for outlet in self._outlets.values()}
        for outlet in outlets.values():
            outlet.booked(payment_hashes)

    def write_over(self, session: Session) -> SessionRecord | None:
        """Write a session that is over to the ledger now; None when it is not known (any more)."""
        record = self.record(session.session_id)
        if record is None:
            return None
        record = replace(record, session=session, closed_at=record.closed_at or self._now())
        self.save_over(record)
        return record

    def release(self, record: SessionRecord) -> None:
        """It is over, its receipt is signed: it leaves its outlet."""
        session = record.session
        if session.was_paid:
            detail = {"stop_reason": session.stop_reason, "balance_msat": session.account.balance_msat}
            self._ledger.append_event(self._now(), session.session_id, "closed", detail)
        outlet = self.outlet_of(session.session_id)
        self.drop(session.session_id)
        if outlet is not None:
            outlet.detach(session.session_id).result(CALL_TIMEOUT_S)

    def save_over(self, record: SessionRecord) -> None:
        """Write a session that is over to the ledger now."""
        with self._saving:
            self._ledger.save_session(record)
            self._write_notes(record)

    def _write_notes(self, record: SessionRecord) -> None:
        """Of a session that has been saved just now. What cannot be written with it is lost: they are for people."""
        if not record.session.was_paid:
            return
        session_id = record.session.session_id
        with self._lock:
            notes = self._notes.pop(session_id, [])
        for at, kind, detail in notes:
            self._ledger.append_event(at, session_id, kind, detail)

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
