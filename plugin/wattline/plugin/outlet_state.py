"""An outlet as others see it.

The sessions that wait for an outlet: in its loop's thread, without its relay and its meter.

What other threads ask of a loop: done in the loop's own thread, one after the other, and not after its end.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from wattline.core.clock import Clock
from wattline.core.errors import RetryError
from wattline.core.session.event import (
    BooksClosed,
    DeliveryFault,
    Displaced,
    Effect,
    Event,
    Refund,
    SendStatement,
    Settle,
    Tick,
    WriteReceipt,
)
from wattline.core.session.machine import step
from wattline.core.session.occupancy import Occupancy
from wattline.core.session.session import Session
from wattline.core.session.state import State, StopReason
from wattline.device.meters.reading import Reading
from wattline.plugin.reservations import Reservations


class Condition(StrEnum):
    """What an outlet is doing, for people and for cables that ask for it."""

    STARTING = "starting"  # the meter has not been read yet
    AVAILABLE = "available"  # nobody has paid for it, meter and relay answer
    IN_USE = "in_use"  # a session that has paid has it
    FAULTED = "faulted"  # the meter or the relay cannot be trusted


@dataclass(frozen=True, slots=True)
class OutletView:
    """What the loop last knew; replaced as a whole, so that any thread may read it."""

    outlet_id: str
    condition: Condition
    fault: str
    """Empty, or what is wrong, for people."""
    relay_closed: bool
    reading: Reading | None
    session: Session | None
    """The one that has the outlet: its first payment has come."""
    meter_base_uwh: int
    """The chip's cumulative energy when the session took the outlet."""
    chip_uwh: int
    """The chip's cumulative energy of the last reading that counted for the session."""
    max_unpaid_msat: int
    """The worst (charged - credited) that this process saw in the session; 0 when it never was above."""
    waiting: tuple[Session, ...] = ()
    """Sessions that have paid nothing (yet)."""

    @property
    def occupancy(self) -> Occupancy:
        return Occupancy(self.session, self.waiting)

    def of(self, session_id: str) -> OutletView | None:
        """The outlet as one of its sessions sees it, which is ``session`` then; None when it serves no such session.
        What flows for another one is not told."""
        if self.session is not None and self.session.session_id == session_id:
            return self
        session = self.occupancy.of(session_id)
        if session is None:
            return None
        reading = self.reading if self.session is None else None
        base_uwh = reading.energy_uwh if reading is not None else 0
        return replace(
            self,
            session=session,
            waiting=(),
            relay_closed=self.relay_closed and self.session is None,
            reading=reading,
            meter_base_uwh=base_uwh,
            chip_uwh=reading.chip_uwh if reading is not None else 0,
            max_unpaid_msat=0,
        )


Changed = Callable[[OutletView, bool], None]
"""Told at once of a session that moved on, as the view has it; True when a statement is due now."""
CarryOut = Callable[[Session, Effect], None]
"""Told at once of what a step asks for beside the relay: settle, refund, write the receipt."""


class WaitingSessions:
    """See the module."""

    def __init__(
        self,
        view: Callable[[], OutletView],
        show: Callable[[OutletView], None],
        changed: Changed,
        carry_out: CarryOut,
        reservations: Reservations,
        clock: Clock,
    ) -> None:
        """``view`` and ``show``: the outlet as its loop knows it, of which they are a part, and how to change that."""
        self._view = view
        self._show = show
        self._changed = changed
        self._carry_out = carry_out
        self._reservations = reservations
        self._clock = clock

    def join(self, session: Session) -> None:
        """One more."""
        view = self._view()
        self._show(replace(view, waiting=view.occupancy.joined(session).waiting))
        self._tell(session.session_id, important=True)

    def tick(self) -> None:
        for session in self._view().waiting:
            self.step(session.session_id, Tick())

    def fault(self, reason: StopReason) -> None:
        """Nobody is to pay for an outlet that cannot deliver."""
        for session in self._view().waiting:
            if session.state.is_live:
                self.step(session.session_id, DeliveryFault(reason))

    def displace(self, session_ids: Sequence[str]) -> None:
        """Another one has the outlet."""
        for session_id in session_ids:
            self.step(session_id, Displaced(StopReason.OUTLET_TAKEN))

    def crowd_out(self, session_id: str) -> bool:
        """End one of them because there are too many; False when it does not wait here, or claims the
        outlet just now."""
        session = next((each for each in self._view().waiting if each.session_id == session_id), None)
        if session is None or not session.state.is_live or session.account.payments:
            return False
        now_ms = self._clock.monotonic_ms()
        ended, _ = step(session, Displaced(StopReason.CROWDED_OUT), now_ms)
        closed, effects = step(ended, BooksClosed(), now_ms)
        if not self._reservations.when_unclaimed(session_id, lambda: self._become(closed)):
            return False
        carry_out(self._carry_out, closed, effects)
        return True

    def step(self, session_id: str, *events: Event, counted: Callable[[], None] | None = None) -> None:
        """Let the events happen to one of them, and do what they ask for. One that ends without having paid, and
        without a payment on its way, is over at once: there is nothing to settle.

        ``counted`` is called when the view holds what has happened and nobody has been told of it yet."""
        before = next((each for each in self._view().waiting if each.session_id == session_id), None)
        if before is None:
            return
        session, effects, now_ms = before, list[Effect](), self._clock.monotonic_ms()
        for event in events:
            session, more = step(session, event, now_ms)
            effects.extend(more)
        if before.state.is_live and session.state is State.SETTLING and not session.account.payments:
            closed, last = step(session, BooksClosed(), now_ms)
            if self._reservations.when_idle(session_id, lambda: self._become(closed)):
                carry_out(self._carry_out, closed, last)
                return
        self._become(session)
        if counted is not None:
            counted()
        carry_out(self._carry_out, session, effects)
        if session != before:
            important = session.state is not before.state or any(isinstance(e, SendStatement) for e in effects)
            self._tell(session_id, important=important)

    def _become(self, session: Session) -> None:
        view = self._view()
        self._show(replace(view, waiting=view.occupancy.became(session).waiting))

    def _tell(self, session_id: str, *, important: bool) -> None:
        view = self._view().of(session_id)
        if view is not None:
            self._changed(view, important)


def carry_out(how: CarryOut, session: Session, effects: Sequence[Effect]) -> None:
    """What the effects say about the money; the relay is its outlet's own."""
    for effect in effects:
        if isinstance(effect, Settle | Refund | WriteReceipt):
            how(session, effect)


T = TypeVar("T")


class LoopEnded(RetryError):
    """The loop does nothing any more; the next process takes it up. Code ``shutting_down``."""


class Jobs:
    """Thread-safe; :meth:`work` and :meth:`end` are for the loop's thread."""

    def __init__(self, name: str) -> None:
        """``name``: of the loop, for people."""
        self._name = name
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._has_ended = False

    def ask(self, work: Callable[[], T]) -> Future[T]:
        """What comes of ``work``; LoopEnded when the loop ends before it, or has ended."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                if self._has_ended:
                    raise LoopEnded("shutting_down", f"{self._name} has stopped; its sessions go on after a restart")
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - belongs to whoever waits for it
                future.set_exception(error)

        self._waiting.put(job)
        if self._has_ended:
            self._work_off()  # the loop may have looked for the last time before this was there
        return future

    def wake(self) -> None:
        """Let the loop go round once."""
        self._waiting.put(lambda: None)

    def work(self, timeout_s: float) -> None:
        """One job, if one comes in time."""
        try:
            job = self._waiting.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return
        job()

    def end(self) -> None:
        """Nothing is done any more, and nobody waits for it."""
        self._has_ended = True
        self._work_off()

    def _work_off(self) -> None:
        while True:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return
            job()
