"""One outlet: its meter, its relay, and the sessions that it serves, in one loop of one thread.

One session at the most has the outlet: the first whose payment comes (:mod:`wattline.core.session.occupancy`). Others
wait, without a relay or a meter.

All changes of a session happen in this thread, one event after the other, through the pure state machine; other
threads hand in events and read the last published :class:`OutletView`.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from wattline.core.clock import Clock
from wattline.core.session.event import (
    BooksClosed,
    CreditArrived,
    DeliveryFault,
    Effect,
    Event,
    HoldRelay,
    MeterValue,
    OnchainCredited,
    OpenRelay,
    SendStatement,
    Settle,
    Tick,
)
from wattline.core.session.machine import step
from wattline.core.session.occupancy import needs_outlet
from wattline.core.session.session import Session
from wattline.core.session.state import State, StopReason
from wattline.device.meters.reading import MeterError, Reading, next_look_ms
from wattline.device.relays.relay import RelayError
from wattline.plugin.outlet_hardware import OutletMeter, OutletParts
from wattline.plugin.outlet_state import CarryOut, Changed, Condition, Jobs, OutletView, WaitingSessions, carry_out
from wattline.plugin.reservations import Reservations

log = logging.getLogger(__name__)

T = TypeVar("T")

_LASTED = re.compile(r"\d+ ms")
IDLE_POWER_MW = 20_000
"""Power that may show on an outlet whose relay is open (offset of the shunt amplifier) before it counts as stuck."""
LAST_READING_INTERVALS = 4
"""After the relay has opened, the meter is read this many intervals later for the last energy of a session."""
STUCK_RELAY_MS = 10_000
"""A relay that has not opened by then will not: the books are closed all the same, the outlet stays faulted."""
RELAY_LOOK_MS = 1000
"""How often the relay of a free outlet is told to be open, so that one that does not answer sells nothing."""
MOST_UWH = 2**62
"""More than any chip has counted."""
STUCK_READINGS = 5
"""So many readings in a row with current through an open relay make it a stuck one."""


class OutletLoop:
    """The loop of one outlet."""

    def __init__(
        self,
        outlet_id: str,
        interval_ms: int,
        parts: OutletParts,
        reservations: Reservations,
        changed: Changed,
        carry_out: CarryOut,
        clock: Clock,
    ) -> None:
        self.outlet_id = outlet_id
        self._interval_ms = interval_ms
        self._relay = parts.relay
        self._meter = OutletMeter(parts.open_meter, clock)
        self._supply = parts.supply()
        self._reservations = reservations
        self._changed = changed
        self._carry_out = carry_out
        self._clock = clock
        self._jobs = Jobs(f"outlet {outlet_id}")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"outlet {outlet_id}", daemon=True)
        self._stuck_readings = 0
        self._relay_error = ""
        """What went wrong when the relay was last told to open; empty when it did."""
        self._relay_look_ms = 0
        self._settling_since_ms = 0
        self._credited: dict[str, str] = {}
        """Credited to a session and not yet in the ledger, by payment_hash."""
        self._bases: dict[str, int] = {}
        """Of sessions of an earlier process that wait here: the chip's energy when they were opened. The relay was open
        from then until one of them was paid, so whatever has flowed since is that one's."""
        self._is_base_due = False
        """The session took the outlet while its meter gave no reading: the next one is its base."""
        self.view = OutletView(outlet_id, Condition.STARTING, "", False, None, None, 0, 0, 0)
        self._waiting = WaitingSessions(lambda: self.view, self._show, changed, carry_out, reservations, clock)

    # What other threads may call.

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """Begin to end: no relay is held from now on, and that the guard goes is no fault of the session's."""
        self._stopping.set()
        self._jobs.wake()

    def stop(self) -> None:
        """End the loop; the relay is left to the guard."""
        self.leave()
        self._thread.join(timeout=5)

    def attach(self, session: Session) -> Future[bool]:
        """Let a new session wait for its first credit; False when another one has the outlet, or the meter does not
        answer."""
        return self._call(lambda: self._attach(session))

    def go_on(self, session: Session, effects: Sequence[Effect], chip_uwh: int | None) -> Future[None]:
        """Serve a session of an earlier process, whose last energy belongs to the chip's cumulative ``chip_uwh``; None:
        to what the chip shows now, whatever it has counted since. In whatever order they come, one that has been paid
        for has the outlet, and those that wait there are displaced."""
        return self._call(lambda: self._go_on(session, effects, chip_uwh))

    def detach(self, session_id: str) -> Future[bool]:
        """Forget a closed session; the outlet is free when it had it."""
        return self._call(lambda: self._detach(session_id))

    def post(self, session_id: str, event: Event) -> Future[bool]:
        """Let ``event`` happen to the session; False when this outlet serves another one by then."""
        return self._call(lambda: self._happen(session_id, event))

    def crowd_out(self, session_id: str) -> Future[bool]:
        """End a session that has paid nothing, because there are too many; False when it has, or is about to."""
        return self._call(lambda: self._waiting.crowd_out(session_id))

    def close_books(self, session_id: str) -> Future[bool]:
        """Once the relay is confirmed open: charge the last energy, then let BooksClosed happen. False: not yet."""
        return self._call(lambda: self._close_books(session_id))

    def credit_reserved(self, session_id: str, payment_hash: str, amount_msat: int) -> None:
        """The fast path: credit a payment that the hook let pass, unless the journal was quicker."""
        self._call(
            lambda: (
                self._reservations.session_of(payment_hash) == session_id
                and self._credit(session_id, payment_hash, amount_msat)
            )
        )

    def credit(self, session_id: str, payment_hash: str, amount_msat: int) -> Future[bool]:
        """The journal's path: credit a received payment once, whether or not the fast path did; False when the session
        can no longer use it."""
        return self._call(lambda: self._credit(session_id, payment_hash, amount_msat))

    def credit_onchain(self, session_id: str, txid: str, total_msat: int) -> Future[bool]:
        """The ledger holds a version with this txid: credit what the session lacks of ``total_msat`` from the chain;
        False when it can no longer use it. May be told again."""
        return self._call(lambda: self._credit_onchain(session_id, txid, total_msat))

    def booked(self, payment_hashes: Collection[str]) -> None:
        """The ledger holds them now: the journal will not tell of them again."""
        self._call(lambda: self._forget_credited(payment_hashes))

    def _call(self, work: Callable[[], T]) -> Future[T]:
        """Raises LoopEnded, in the future, when the loop has ended or ends before it."""
        return self._jobs.ask(work)

    # The loop's own thread from here on.

    def _run(self) -> None:
        due_ms = self._clock.monotonic_ms()
        try:
            while not self._stopping.is_set():
                self._jobs.work((due_ms - self._clock.monotonic_ms()) / 1000)
                if self._clock.monotonic_ms() >= due_ms:
                    wait_ms = next_look_ms(self.view.reading, self._interval_ms)
                    due_ms = max(due_ms + wait_ms, self._clock.monotonic_ms() + wait_ms // 2)
                    self._measure_or_fault()
        except Exception:
            log.exception("outlet %s: the loop has ended", self.outlet_id)
            # Its relay opens by itself: nobody holds it any more.
            self.view = replace(self.view, fault="the outlet's loop has ended, see the log")
        finally:
            self._jobs.end()
            self._meter.close()

    def _measure_or_fault(self) -> None:
        try:
            self._measure()
            self._waiting.tick()
        except Exception:
            log.exception("outlet %s: the loop failed; relay open", self.outlet_id)
            self._fault(StopReason.INTERNAL_ERROR, "internal error, see the log")

    def _measure(self) -> None:
        reading = self._read()
        if reading is None:
            return
        view = self.view
        if view.session is None:
            self._watch_idle(reading)
            return
        if view.session.state is State.CLOSED:
            self.view = replace(view, reading=reading)  # not free before its receipt is written
            return
        base_uwh = view.meter_base_uwh
        if self._is_base_due:
            base_uwh = reading.energy_uwh
        elif self._meter.is_count_new:
            base_uwh = self._base_uwh(view, view.session, reading)
        self._is_base_due = self._meter.is_count_new = False
        self.view = replace(view, reading=reading, meter_base_uwh=base_uwh, chip_uwh=reading.chip_uwh)
        has_voltage = self._supply.is_there(reading, relay_closed=view.relay_closed)
        self._step(MeterValue(reading.energy_uwh - base_uwh, reading.power_mw, has_voltage), Tick())
        session = self.view.session
        if session is not None and session.stop_reason is StopReason.NO_VOLTAGE and view.session.state.is_live:
            self._supply.ended_dark(self._clock.monotonic_ms())

    def _base_uwh(self, view: OutletView, session: Session, reading: Reading) -> int:
        """Where the session's energy counts from by a meter that was just opened: a chip that went on counting tells
        what flowed meanwhile. Of any other that is not known; what the session has counted stands."""
        went_on = reading.counts_alone and reading.chip_uwh >= view.chip_uwh
        now_uwh = view.chip_uwh - reading.backflow_uwh if went_on else reading.energy_uwh
        return now_uwh - session.energy_uwh

    def _read(self) -> Reading | None:
        """A reading that can be trusted; None after the fault was told to the session."""
        try:
            return self._meter.read()
        except MeterError as error:
            self._fault(StopReason(error.code), error.message)
            return None

    def _watch_idle(self, reading: Reading) -> None:
        """No session: the relay is open, so nothing may flow."""
        flows = abs(reading.power_mw) > IDLE_POWER_MW
        self._stuck_readings = self._stuck_readings + 1 if flows else 0
        stuck = self._stuck_readings >= STUCK_READINGS
        if self._relay_error or (stuck and not self.view.fault) or self._clock.monotonic_ms() >= self._relay_look_ms:
            self._open_relay()
        fault = self._relay_error
        if stuck:
            fault = f"{reading.power_mw / 1000:.0f} W flow although the relay is open: it is stuck"
        elif not fault:
            fault = self._supply.what_is_wrong(reading, self._clock.monotonic_ms())
        self.view = replace(
            self.view, reading=reading, fault=fault, condition=Condition.FAULTED if fault else Condition.AVAILABLE
        )
        if fault:
            self._waiting.fault(StopReason.RELAY_FAULT)

    def _attach(self, session: Session) -> bool:
        view = self.view
        if view.condition is not Condition.AVAILABLE or view.session is not None or view.reading is None:
            return False
        self._open_relay()
        if self._relay_error:
            self.view = replace(self.view, condition=Condition.FAULTED)
            return False  # nobody is to pay for a relay that does not obey
        self._waiting.join(session)
        return True

    def _go_on(self, session: Session, effects: Sequence[Effect], chip_uwh: int | None) -> None:
        if needs_outlet(session) and self.view.session is None:
            if chip_uwh is None:
                reading = self._read()
                # Unread, no later reading counts: it would be below this.
                chip_uwh = reading.chip_uwh if reading is not None else MOST_UWH
            self._serve(session, chip_uwh - session.energy_uwh, chip_uwh)
            self._meter.is_count_new = True
            self._perform(session, effects)
            self._waiting.displace([each.session_id for each in self.view.waiting])
            return
        if chip_uwh is not None:
            self._bases[session.session_id] = chip_uwh
        self._waiting.join(session)
        carry_out(self._carry_out, session, effects)
        if self.view.session is not None:
            self._waiting.displace([session.session_id])

    def _serve(self, session: Session, meter_base_uwh: int, chip_uwh: int) -> None:
        self.view = replace(
            self.view,
            session=session,
            condition=Condition.IN_USE,
            meter_base_uwh=meter_base_uwh,
            chip_uwh=chip_uwh,
            max_unpaid_msat=0,
        )
        self._changed(self.view, True)

    def _detach(self, session_id: str) -> bool:
        if self.view.occupancy.of(session_id) is None:
            return False
        self._credited = {each: owner for each, owner in self._credited.items() if owner != session_id}
        self._bases.pop(session_id, None)
        if self.view.session is None or self.view.session.session_id != session_id:
            self.view = replace(self.view, waiting=self.view.occupancy.without(session_id).waiting)
            return True
        self._is_base_due = False
        condition = Condition.FAULTED if self.view.fault else Condition.STARTING
        self.view = replace(self.view, session=None, condition=condition, reading=None)
        self._measure_or_fault()  # who has just been told that the session is over may open the next one at once
        return True

    def _credit(self, session_id: str, payment_hash: str, amount_msat: int) -> bool:
        session = self.view.occupancy.of(session_id)
        if session is None:
            return False
        if payment_hash in self._credited:
            return True
        if not self._can_use(session):
            return False
        self._credited[payment_hash] = session_id
        self._let_in(session, CreditArrived(amount_msat), payment_hash)
        return True

    def _credit_onchain(self, session_id: str, txid: str, total_msat: int) -> bool:
        session = self.view.occupancy.of(session_id)
        if session is None:
            return False
        if total_msat <= session.account.onchain_msat:
            return True
        if not self._can_use(session):
            return False
        self._let_in(session, OnchainCredited(total_msat), txid)
        return True

    def _can_use(self, session: Session) -> bool:
        """Whether a credit of this session, by either method, still serves it."""
        paying = self.view.session
        is_displaced = paying is not None and paying.session_id != session.session_id and session.state.is_live
        return session.takes_credit and not is_displaced

    def _let_in(self, session: Session, credit: CreditArrived | OnchainCredited, reserved_as: str) -> None:
        session_id = session.session_id

        def counted() -> None:
            # Released once the view counts it, so that the cap never sees less than there is.
            self._reservations.release(reserved_as)

        if self.view.session is not None and self.view.session.session_id == session_id:
            self._step(credit, counted=counted)
        elif session.state.is_live:
            others = self._take(session_id)
            self._step(credit, counted=counted)
            self._waiting.displace(others)
            self._measure_or_fault()  # a relay closes only on a meter that has just been read
        else:
            self._waiting.step(session_id, credit, counted=counted)

    def _forget_credited(self, payment_hashes: Collection[str]) -> None:
        for payment_hash in payment_hashes:
            self._credited.pop(payment_hash, None)

    def _take(self, session_id: str) -> Sequence[str]:
        """Give the outlet to the session that pays first, from the present energy on; those that wait in vain."""
        view = self.view
        occupancy, others = view.occupancy.taken(session_id)
        base_uwh = self._bases.pop(session_id, None)
        self._is_base_due = base_uwh is None and view.reading is None
        self._meter.is_count_new = base_uwh is not None
        chip_uwh = base_uwh or 0
        if base_uwh is None:
            base_uwh = view.reading.energy_uwh if view.reading is not None else 0
            chip_uwh = view.reading.chip_uwh if view.reading is not None else 0
        self.view = replace(
            view,
            session=occupancy.paying,
            waiting=occupancy.waiting,
            condition=Condition.IN_USE,
            meter_base_uwh=base_uwh,
            chip_uwh=chip_uwh,
            max_unpaid_msat=0,
        )
        return others

    def _close_books(self, session_id: str) -> bool:
        session = self.view.occupancy.of(session_id)
        if session is None or session.state is not State.SETTLING:
            return True
        if self.view.session is None or self.view.session.session_id != session_id:
            if session_id in self._credited.values():
                return False
            self._waiting.step(session_id, BooksClosed())
            return True
        self._open_relay()
        waited_ms = self._clock.monotonic_ms() - self._settling_since_ms
        if self.view.relay_closed and waited_ms < STUCK_RELAY_MS:
            return False
        if session_id in self._credited.values():
            return False  # the ledger must hold every credit first: what it does not hold now it would call an orphan
        if waited_ms < LAST_READING_INTERVALS * self._interval_ms:
            return False  # the meter averages: let it see the relay open
        if self.view.fault == "":
            self._measure()
        self._step(BooksClosed())
        return True

    def _happen(self, session_id: str, event: Event) -> bool:
        session = self.view.occupancy.of(session_id)
        if session is None:
            return False
        if session is self.view.session:
            self._step(event)
        else:
            self._waiting.step(session_id, event)
        return True

    def _fault(self, reason: StopReason, message: str) -> None:
        # One line for a fault, also for one that says anew at every look how long it has lasted.
        if _LASTED.sub("", self.view.fault) != _LASTED.sub("", message):
            log.error("outlet %s: %s: %s", self.outlet_id, reason, message)
        if self.view.session is not None:
            self.view = replace(self.view, fault=message)
            self._step(DeliveryFault(reason))
        else:
            self.view = replace(self.view, fault=message, condition=Condition.FAULTED, reading=None)
        self._waiting.fault(reason)

    def _step(self, *events: Event, counted: Callable[[], None] | None = None) -> None:
        """Let the events happen, then do what they ask for; of several holds of the relay in a row only the last.

        ``counted`` is called when the view holds what has happened and nobody has been told of it yet."""
        before = self.view.session
        if before is None:
            return
        session, effects, now_ms = before, list[Effect](), self._clock.monotonic_ms()
        for event in events:
            session, more = step(session, event, now_ms)
            effects.extend(more)
        unpaid_msat = max(self.view.max_unpaid_msat, session.account.charged_msat - session.account.credited_msat)
        self.view = replace(self.view, session=session, max_unpaid_msat=unpaid_msat)
        if counted is not None:
            counted()
        self._perform(session, effects)
        if session != before:
            important = session.state is not before.state or any(isinstance(e, SendStatement) for e in effects)
            self._changed(self.view, important)

    def _perform(self, session: Session, effects: Sequence[Effect]) -> None:
        for number, effect in enumerate(effects):
            match effect:
                case HoldRelay(lease_ms):
                    if not any(isinstance(later, HoldRelay | OpenRelay) for later in effects[number + 1 :]):
                        self._hold_relay(lease_ms)
                case OpenRelay():
                    self._open_relay()
                case SendStatement():
                    pass  # the view is published at the end of the step
                case Settle():
                    self._settling_since_ms = self._clock.monotonic_ms()
        carry_out(self._carry_out, session, effects)

    def _hold_relay(self, lease_ms: int) -> None:
        if self._stopping.is_set():
            return
        try:
            state = self._relay.hold(self.outlet_id, lease_ms)
        except RelayError as error:
            self.view = replace(self.view, relay_closed=False)
            if self._stopping.is_set():
                return  # it is we who sent the guard away; the session goes on in the next process
            self._fault(_relay_reason(error), error.message)
        else:
            self.view = replace(self.view, relay_closed=state.closed)

    def _open_relay(self) -> None:
        try:
            state = self._relay.open(self.outlet_id)
        except RelayError as error:
            if error.message != self._relay_error:
                log.error("outlet %s: the relay could not be opened: %s", self.outlet_id, error.message)
            self._relay_error = error.message
            # Whether it is closed nobody knows; it must not be called open.
            self.view = replace(self.view, fault=error.message, relay_closed=True)
            session = self.view.session
            if session is not None and session.state.is_live:
                self._step(DeliveryFault(_relay_reason(error)))
            self._waiting.fault(_relay_reason(error))
        else:
            self._relay_error = ""
            self.view = replace(self.view, relay_closed=state.closed)
        self._relay_look_ms = self._clock.monotonic_ms() + RELAY_LOOK_MS

    def _show(self, view: OutletView) -> None:
        self.view = view


def _relay_reason(error: RelayError) -> StopReason:
    return StopReason.GUARD_LOST if error.code == "guard_lost" else StopReason.RELAY_FAULT
