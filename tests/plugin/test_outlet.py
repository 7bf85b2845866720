"""The loop of one outlet, with a meter and a relay that are wired to each other in memory."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from wattline.core.clock import Clock
from wattline.core.session.event import CableClosed, Effect, Refund, Settle, WriteReceipt
from wattline.core.session.machine import restored
from wattline.core.session.session import Session, Terms, opened
from wattline.core.session.state import Method, State, StopReason
from wattline.core.tariff import Tariff, cost_msat
from wattline.device.controller.client import RelayState
from wattline.device.meters.reading import MeterError, Reading
from wattline.device.relays.relay import RelayError
from wattline.plugin.outlet import OutletLoop
from wattline.plugin.outlet_hardware import OutletParts
from wattline.plugin.outlet_state import Condition, LoopEnded, OutletView
from wattline.plugin.reservations import Reservations

SESSION = "0123456789ABCDEFGHJKMNPQRS"
OTHER = "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
POWER_MW = 1_000_000
INTERVAL_MS = 20
PATIENCE_S = 10


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Wiring:
    """Relay and meter of one outlet: power flows while the lease lasts, energy adds up in real time."""

    def __init__(self) -> None:
        self.voltage_mv = 48_000
        self.backflow_uwh = 0
        self.counts_alone = True
        self.begins_uwh = 1_000_000
        self.power_mw = POWER_MW
        self.held_until_ms = 0
        self.energy_mwms = 0
        self.at_ms = now_ms()
        self.meter_error: MeterError | None = None
        self.relay_error: RelayError | None = None
        self.open_error: RelayError | None = None
        self.holds = 0
        self.opens = 0
        self.lock = threading.Lock()

    def flow(self) -> None:
        now = now_ms()
        self.energy_mwms += self.power_mw * max(0, min(now, self.held_until_ms) - self.at_ms)
        self.at_ms = now

    @property
    def closed(self) -> bool:
        return now_ms() < self.held_until_ms

    @property
    def energy_uwh(self) -> int:
        with self.lock:
            self.flow()
            return self.begins_uwh + self.energy_mwms // 3600

    def read(self) -> Reading:
        if self.meter_error is not None:
            raise self.meter_error
        energy_uwh = self.energy_uwh
        power_mw = self.power_mw if self.closed else 0
        return Reading(
            energy_uwh, power_mw, self.voltage_mv, power_mw // 48, now_ms(), self.backflow_uwh, self.counts_alone
        )

    def close(self) -> None:
        pass

    def hold(self, outlet_id: str, lease_ms: int) -> RelayState:
        if self.relay_error is not None:
            raise self.relay_error
        with self.lock:
            self.flow()
            self.held_until_ms = now_ms() + lease_ms
            self.holds += 1
        return self.state(outlet_id)

    def open(self, outlet_id: str) -> RelayState:
        if self.open_error is not None:
            raise self.open_error
        with self.lock:
            self.flow()
            self.held_until_ms = 0
            self.opens += 1
        return self.state(outlet_id)

    def state(self, outlet_id: str) -> RelayState:
        return RelayState(outlet_id, self.closed, confirmed=True, at_ms=now_ms(), lease_ends_ms=None, fault="")


class Sink:
    def __init__(self) -> None:
        self.views: list[OutletView] = []
        self.settled: list[Session] = []
        self.refunds: list[int] = []
        self.receipts: list[Session] = []

    def changed(self, view: OutletView, important: bool) -> None:
        self.views.append(view)

    def carry_out(self, session: Session, effect: Effect) -> None:
        match effect:
            case Settle():
                self.settled.append(session)
            case Refund(budget_msat):
                self.refunds.append(budget_msat)
            case WriteReceipt():
                self.receipts.append(session)


class Rig:
    """A running outlet and everything around it."""

    def __init__(self, *, is_before_relay: bool = False) -> None:
        self.wiring = Wiring()
        self.sink = Sink()
        self.reservations = Reservations()
        parts = OutletParts(lambda: self.wiring, self.wiring, is_meter_before_relay=is_before_relay)
        sink = self.sink
        self.loop = OutletLoop("A1", INTERVAL_MS, parts, self.reservations, sink.changed, sink.carry_out, Clock())

    @property
    def session(self) -> Session:
        view = self.loop.view
        assert view.session is not None or view.waiting
        return view.session or view.waiting[0]

    def wait(self, what: Callable[[], bool], timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline, f"still waiting; {self.loop.view}"
            threading.Event().wait(0.002)

    def serve(self, session: Session | None = None) -> None:
        self.wait(lambda: self.loop.view.condition is Condition.AVAILABLE)
        assert self.loop.attach(session or new_session()).result(PATIENCE_S)


def new_session(session_id: str = SESSION) -> Session:
    # 3.6 * 10^9 msat/kWh: a msat is a joule, so 1000 W cost 1 msat/ms.
    terms = Terms(
        tariff=Tariff.of(energy_msat_per_kwh=3_600_000_000),
        rated_power_mw=POWER_MW,
        meter_interval_ms=INTERVAL_MS,
        pause_max_s=60,
        open_timeout_s=60,
        cable_lost_s=60,
        credit_cap_msat=1_000_000,
        min_refund_msat=1,
    )
    return opened(session_id, "A1", Method.KEYSEND, terms, now_ms())


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.loop.start()
    yield rig
    rig.loop.stop()


def test_the_first_credit_closes_the_relay_and_the_last_of_it_opens_it_before_the_balance_is_negative(rig: Rig) -> None:
    rig.serve()
    assert not rig.wiring.closed
    assert rig.loop.credit(SESSION, "aa", 400_000).result(PATIENCE_S)
    rig.wait(lambda: rig.session.state is State.DELIVERING)
    assert rig.wiring.closed
    rig.wait(lambda: rig.session.state is State.PAUSED)
    assert not rig.wiring.closed
    assert rig.loop.view.max_unpaid_msat == 0
    assert all(v.session.account.balance_msat >= 0 for v in rig.sink.views if v.session)


def test_the_charge_is_the_exact_cost_of_the_energy(rig: Rig) -> None:
    rig.serve()
    rig.loop.credit(SESSION, "aa", 300_000).result(PATIENCE_S)
    rig.wait(lambda: rig.session.state is State.PAUSED)
    session = rig.session
    assert session.energy_uwh > 0
    assert session.account.charged_msat == cost_msat(
        session.terms.tariff, session.energy_uwh, session.delivered_ms, started=True
    )


def test_a_payment_told_by_hook_and_journal_is_credited_once_in_either_order(rig: Rig) -> None:
    rig.serve()
    rig.reservations.reserve("aa", SESSION, 100, lambda _: True)
    rig.loop.credit_reserved(SESSION, "aa", 100)
    assert rig.loop.credit(SESSION, "aa", 100).result(PATIENCE_S)
    rig.reservations.reserve("bb", SESSION, 100, lambda _: True)
    assert rig.loop.credit(SESSION, "bb", 100).result(PATIENCE_S)
    rig.loop.booked(["bb"])
    rig.loop.credit_reserved(SESSION, "bb", 100)
    rig.loop.credit(SESSION, "cc", 1).result(PATIENCE_S)
    assert rig.session.account.credited_msat == 201
    assert rig.reservations.in_flight_msat(SESSION) == 0


def test_a_credit_for_another_session_is_not_taken(rig: Rig) -> None:
    rig.serve()
    assert not rig.loop.credit(OTHER, "aa", 100).result(PATIENCE_S)
    assert rig.session.account.credited_msat == 0


def test_of_two_sessions_that_wait_the_one_that_pays_first_has_the_outlet_from_the_present_energy_on(rig: Rig) -> None:
    rig.serve()
    rig.serve(new_session(OTHER))
    rig.wiring.energy_mwms += 777 * 3600
    rig.wait(lambda: rig.loop.view.reading is not None and rig.loop.view.reading.energy_uwh == rig.wiring.energy_uwh)
    assert rig.loop.credit(OTHER, "aa", 100).result(PATIENCE_S)
    assert not rig.loop.credit(SESSION, "bb", 900).result(PATIENCE_S), "it is to be given back"
    assert rig.session.session_id == OTHER
    assert rig.session.account.credited_msat == 100
    assert rig.loop.view.meter_base_uwh == rig.wiring.energy_uwh
    (displaced,) = rig.sink.receipts
    assert (displaced.session_id, displaced.state) == (SESSION, State.CLOSED)
    assert displaced.stop_reason is StopReason.OUTLET_TAKEN
    assert not rig.loop.attach(new_session("7ZZZZZZZZZZZZZZZZZZZZZZZZZ")).result(PATIENCE_S)
    assert rig.loop.detach(SESSION).result(PATIENCE_S)
    assert rig.loop.view.waiting == ()
    assert rig.sink.settled == [], "there is nothing to settle"


def test_a_session_that_ends_while_its_first_payment_is_on_its_way_is_credited_and_leaves_the_outlet_to_others(
    rig: Rig,
) -> None:
    rig.serve()
    rig.serve(new_session(OTHER))
    rig.reservations.reserve("aa", SESSION, 100, lambda _: True)
    assert rig.loop.post(SESSION, CableClosed()).result(PATIENCE_S)
    assert [each.session_id for each in rig.sink.settled] == [SESSION]
    assert rig.loop.credit(SESSION, "aa", 100).result(PATIENCE_S)
    assert not rig.loop.close_books(SESSION).result(PATIENCE_S), "the ledger does not hold it yet"
    rig.loop.booked(["aa"])
    assert rig.loop.close_books(SESSION).result(PATIENCE_S)
    assert rig.sink.refunds == [100]
    assert rig.loop.view.session is None
    assert rig.loop.credit(OTHER, "bb", 100).result(PATIENCE_S)
    assert rig.session.session_id == OTHER


def test_a_meter_that_fails_opens_the_relay_and_ends_the_session_with_its_own_reason(rig: Rig) -> None:
    rig.serve()
    rig.loop.credit(SESSION, "aa", 500_000).result(PATIENCE_S)
    rig.wait(lambda: rig.session.state is State.DELIVERING)
    rig.wiring.meter_error = MeterError("meter_saturated", "at the end of its range")
    rig.wait(lambda: rig.session.state is State.SETTLING)
    assert rig.session.stop_reason is StopReason.METER_SATURATED
    assert not rig.wiring.closed
    rig.wait(lambda: [s.session_id for s in rig.sink.settled] == [SESSION])  # told after the state is shown


def test_a_relay_that_fails_ends_the_session(rig: Rig) -> None:
    rig.serve()
    rig.wiring.relay_error = RelayError("guard_lost", "the guard is gone")
    rig.loop.credit(SESSION, "aa", 500_000).result(PATIENCE_S)
    rig.wait(lambda: rig.session.state is State.SETTLING)
    assert rig.session.stop_reason is StopReason.GUARD_LOST


def test_the_last_energy_is_charged_before_the_books_are_closed(rig: Rig) -> None:
    rig.serve()
    rig.loop.credit(SESSION, "aa", 900_000).result(PATIENCE_S)
    rig.wait(lambda: rig.session.state is State.DELIVERING and rig.session.energy_uwh > 0)
    assert not rig.loop.close_books(SESSION).result(PATIENCE_S) or rig.session.state is State.DELIVERING
    rig.loop.booked(["aa"])
    assert rig.loop.post(SESSION, CableClosed()).result(PATIENCE_S)
    rig.wait(lambda: rig.loop.close_books(SESSION).result(PATIENCE_S))
    assert not rig.wiring.closed
    assert rig.session.energy_uwh == rig.wiring.energy_uwh - 1_000_000
    assert rig.sink.refunds == [rig.session.account.balance_msat]


def test_a_session_of_an_earlier_process_is_charged_for_what_flowed_meanwhile(rig: Rig) -> None:
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)
    before = replace(
        new_session(),
        state=State.PAUSED,
        started=True,
        energy_uwh=500,
        account=replace(new_session().account, credited_msat=900_000, payments=1),
    )
    session, effects = restored(before, now_ms())
    # The chip counted 200 uWh more since the last save, until the lease ran out.
    rig.loop.go_on(session, effects, chip_uwh=1_000_000 - 200).result(PATIENCE_S)
    rig.wait(lambda: rig.session.energy_uwh >= 700)
    assert rig.session.account.charged_msat >= 700 * 3600 // 1000


def test_a_session_that_was_paid_just_before_the_process_was_killed_is_charged_for_what_flowed_since(rig: Rig) -> None:
    """Neither credit nor base was saved: the ledger knows it as it was opened, the journal tells of the rest."""
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)
    for session_id in (OTHER, SESSION):
        session, effects = restored(new_session(session_id), now_ms())
        rig.loop.go_on(session, effects, chip_uwh=1_000_000 - 200).result(PATIENCE_S)
    assert rig.loop.credit(SESSION, "aa", 900_000).result(PATIENCE_S)
    rig.wait(lambda: rig.session.started)
    assert rig.session.energy_uwh >= 200
    assert rig.session.account.charged_msat >= 200 * 3600 // 1000


def test_current_through_an_open_relay_makes_the_outlet_faulted(rig: Rig) -> None:
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)
    with rig.wiring.lock:
        rig.wiring.held_until_ms = now_ms() + 60_000
    rig.wait(lambda: rig.loop.view.condition is Condition.FAULTED)
    assert "stuck" in rig.loop.view.fault
    assert not rig.loop.attach(new_session()).result(PATIENCE_S)


def test_a_free_outlet_whose_relay_does_not_answer_serves_nobody_until_it_does(rig: Rig) -> None:
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)
    rig.wiring.open_error = RelayError("relay_bus_error", "no chip answers")
    assert not rig.loop.attach(new_session()).result(PATIENCE_S), "the relay is asked before anybody pays"
    assert rig.loop.view.condition is Condition.FAULTED
    assert rig.loop.view.fault == "no chip answers"
    assert rig.loop.view.relay_closed, "nobody knows that it is open"
    rig.wiring.open_error = None
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)
    assert rig.loop.view.fault == ""
    assert not rig.loop.view.relay_closed
    assert rig.loop.attach(new_session()).result(PATIENCE_S)


def test_an_outlet_is_free_for_the_next_session_as_soon_as_the_last_one_has_left(rig: Rig) -> None:
    rig.serve()
    assert rig.loop.detach(SESSION).result(PATIENCE_S)
    assert rig.loop.attach(new_session(OTHER)).result(PATIENCE_S)


def test_an_outlet_whose_meter_failed_is_faulted_when_the_session_has_left(rig: Rig) -> None:
    rig.serve()
    rig.loop.credit(SESSION, "aa", 100).result(PATIENCE_S)
    rig.wiring.meter_error = MeterError("meter_frozen", "it stands still")
    rig.wait(lambda: rig.session.state is State.SETTLING)
    assert rig.loop.detach(SESSION).result(PATIENCE_S)
    assert rig.loop.view.condition is Condition.FAULTED
    assert rig.loop.view.fault == "it stands still"


def test_a_fault_that_counts_is_logged_once_and_shown_as_it_stands(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    overdue_ms = itertools.count(85, 80)

    def stands_still() -> Reading:
        raise MeterError("meter_frozen", f"no conversion for {next(overdue_ms)} ms")

    monkeypatch.setattr("wattline.plugin.outlet_hardware.REOPEN_METER_MS", 1)
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)
    monkeypatch.setattr(rig.wiring, "read", stands_still)
    rig.wait(lambda: "for 485 ms" in rig.loop.view.fault)
    assert [record.getMessage() for record in caplog.records] == ["outlet A1: meter_frozen: no conversion for 85 ms"]
    monkeypatch.undo()
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)
    rig.wiring.meter_error = MeterError("meter_frozen", "another thing")
    rig.wait(lambda: len(caplog.records) == 2)


def test_an_outlet_that_stops_keeps_nobody_waiting(rig: Rig) -> None:
    rig.serve()
    held, hold = threading.Event(), threading.Event()

    def read() -> Reading:
        held.set()
        assert hold.wait(PATIENCE_S)
        return Wiring.read(rig.wiring)

    rig.wiring.read = read  # type: ignore[method-assign]
    assert held.wait(PATIENCE_S)
    waiting = rig.loop.credit(SESSION, "aa", 100)
    rig.loop.leave()
    hold.set()
    with pytest.raises(LoopEnded, match="outlet A1 has stopped"):
        waiting.result(PATIENCE_S)
    with pytest.raises(LoopEnded):
        rig.loop.post(SESSION, CableClosed()).result(0)
    assert rig.session.account.credited_msat == 0


def test_an_outlet_whose_loop_fails_takes_no_payment_and_keeps_nobody_waiting(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.serve()

    def fails(view: OutletView, important: bool) -> None:
        raise RuntimeError("whatever is told, it is lost")

    assert rig.loop.credit(SESSION, "aa", 100).result(PATIENCE_S)
    vars(rig.loop)["_changed"] = vars(rig.loop._waiting)["_changed"] = fails
    rig.wait(lambda: "has ended" in rig.loop.view.fault)
    with pytest.raises(LoopEnded):
        rig.loop.attach(new_session(OTHER)).result(PATIENCE_S)
    rig.wait(lambda: not rig.wiring.closed)
    assert "whatever is told, it is lost" in caplog.text
