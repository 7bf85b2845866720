"""The sessions that wait for an outlet: in its loop's thread, without its relay and its meter."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from wattline.core.session.event import (
    BooksClosed,
    Displaced,
    Effect,
    Event,
    Fault,
    Refund,
    SendStatement,
    Settle,
    Tick,
    WriteReceipt,
)
from wattline.core.session.machine import step
from wattline.core.session.session import Session
from wattline.core.session.state import State, StopReason
from wattline.plugin.keysend import Reservations
from wattline.plugin.outlet_view import OutletView, SessionSink


class Viewed(Protocol):
    """The outlet's loop, whose view they stand in."""

    view: OutletView


class WaitingSessions:
    """See the module."""

    def __init__(self, outlet: Viewed, sink: SessionSink, reservations: Reservations) -> None:
        self._outlet = outlet
        self._sink = sink
        self._reservations = reservations

    def join(self, session: Session) -> None:
        """One more."""
        view = self._outlet.view
        self._outlet.view = replace(view, waiting=view.occupancy.joined(session).waiting)
        self._tell(session.session_id, important=True)

    def tick(self) -> None:
        for session in self._outlet.view.waiting:
            self.step(session.session_id, Tick())

    def fault(self, reason: StopReason) -> None:
        """Nobody is to pay for an outlet that cannot deliver."""
        for session in self._outlet.view.waiting:
            if session.state.is_live:
                self.step(session.session_id, Fault(reason))

    def displace(self, session_ids: Sequence[str]) -> None:
        """Another one has the outlet."""
        for session_id in session_ids:
            self.step(session_id, Displaced(StopReason.OUTLET_TAKEN))

    def crowd_out(self, session_id: str) -> bool:
        """End one of them because there are too many; False when it does not wait here, or claims the
        outlet just now."""
        session = next((each for each in self._outlet.view.waiting if each.session_id == session_id), None)
        if session is None or not session.state.is_live or session.account.payments:
            return False
        now_ms = time.monotonic_ns() // 1_000_000
        ended, _ = step(session, Displaced(StopReason.CROWDED_OUT), now_ms)
        closed, effects = step(ended, BooksClosed(), now_ms)
        if not self._reservations.when_unclaimed(session_id, lambda: self._become(closed)):
            return False
        settle(self._sink, closed, effects)
        return True

    def step(self, session_id: str, *events: Event, counted: Callable[[], None] | None = None) -> None:
        """Let the events happen to one of them, and do what they ask for. One that ends without having paid, and
        without a payment on its way, is over at once: there is nothing to settle.

        ``counted`` is called when the view holds what has happened and nobody has been told of it yet."""
        before = next((each for each in self._outlet.view.waiting if each.session_id == session_id), None)
        if before is None:
            return
        session, effects, now_ms = before, list[Effect](), time.monotonic_ns() // 1_000_000
        for event in events:
            session, more = step(session, event, now_ms)
            effects.extend(more)
        if before.state.is_live and session.state is State.SETTLING and not session.account.payments:
            closed, last = step(session, BooksClosed(), now_ms)
            if self._reservations.when_idle(session_id, lambda: self._become(closed)):
                settle(self._sink, closed, last)
                return
        self._become(session)
        if counted is not None:
            counted()
        settle(self._sink, session, effects)
        if session != before:
            important = session.state is not before.state or any(isinstance(e, SendStatement) for e in effects)
            self._tell(session_id, important=important)

    def _become(self, session: Session) -> None:
        view = self._outlet.view
        self._outlet.view = replace(view, waiting=view.occupancy.became(session).waiting)

    def _tell(self, session_id: str, *, important: bool) -> None:
        view = self._outlet.view.of(session_id)
        if view is not None:
            self._sink.changed(view, important=important)


def settle(sink: SessionSink, session: Session, effects: Sequence[Effect]) -> None:
    """What the effects say about the money, told to who settles."""
    for effect in effects:
        match effect:
            case Settle():
                sink.settle(session)
            case Refund(budget_msat):
                sink.refund(session, budget_msat)
            case WriteReceipt():
                sink.receipt_due(session)
