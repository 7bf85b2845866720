"""What holds for a session whatever happens to it in whatever order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.session.event import (
    BooksClosed,
    CableClosed,
    CableLost,
    CableSeen,
    CreditArrived,
    CreditReturned,
    CreditTooLateError,
    DeliveryFault,
    Effect,
    Event,
    HoldRelay,
    MeterValue,
    OpenRelay,
    OperatorStopped,
    Refund,
    RefundKept,
    RefundNotDueError,
    RefundOwed,
    RefundSent,
    RefundTooLargeError,
    Settle,
    Tick,
    WriteReceipt,
)
from wattline.core.session.machine import restored, step
from wattline.core.session.session import MAX_LEASE_MS, Session, Terms, opened
from wattline.core.session.state import FAULTS, Method, RefundStatus, State
from wattline.core.tariff import Tariff, cost_msat, worth_msat

RATED_MW = 1_000_000
tariffs = st.builds(
    Tariff.of, st.integers(100_000, 3_000_000) | st.just(0), st.sampled_from([0, 1, 50_000_000]), st.integers(0, 500)
)
all_terms = st.builds(
    Terms,
    tariff=tariffs,
    rated_power_mw=st.just(RATED_MW),
    meter_interval_ms=st.integers(20, 400),
    pause_max_s=st.integers(1, 9),
    open_timeout_s=st.integers(3, 9),
    cable_lost_s=st.integers(1, 9),
    credit_cap_msat=st.just(10**9),
    min_refund_msat=st.integers(1, 2000),
)


class Restart:
    """Not an event: the process stops and a new one takes the saved session."""


amounts_msat = st.one_of(st.integers(1, 3_000), st.integers(1, 3_000), st.integers(1, 10**6))
# Meter values count from the one before them, so that most of them are plausible.
readings = st.integers(0, 39).flatmap(
    lambda number: (
        st.builds(MeterValue, st.integers(0, 80_000), st.integers(-20_000, 50_000), st.just(number > 5))
        if number
        else st.builds(MeterValue, st.integers(-5, 80_000), st.integers(-1_060_000, 1_060_000))
    )
)
ordinary = st.one_of(readings, readings, st.builds(Tick), st.builds(CreditArrived, amounts_msat))
rare = st.one_of(
    st.builds(CableSeen),
    st.builds(CableLost),
    st.builds(CableClosed),
    st.builds(OperatorStopped),
    st.builds(DeliveryFault, st.sampled_from(sorted(FAULTS))),
    st.builds(BooksClosed),
    st.builds(CreditReturned, amounts_msat),
    st.builds(RefundSent, amounts_msat, st.integers(0, 500)),
    st.builds(RefundOwed),
    st.builds(RefundKept),
    st.builds(Restart),
)
ending = st.one_of(
    st.builds(BooksClosed),
    st.builds(CreditReturned, st.integers(1, 3000)),
    st.builds(RefundSent, st.integers(1, 3000), st.integers(0, 9)),
    rare,
)
happenings = st.integers(0, 19).flatmap(lambda number: ordinary if number else rare)
delays_ms = st.integers(0, 29).flatmap(lambda number: st.integers(0, 300) if number else st.integers(-50, 6_000))
histories = st.builds(
    lambda beginning, end: [*beginning, *end],
    st.lists(st.tuples(delays_ms, happenings), min_size=10, max_size=40),
    st.lists(st.tuples(st.integers(0, 50), ending), max_size=5),
)


def new(terms: Terms) -> Session:
    return opened("7" + "Z" * 25, "A1", Method.KEYSEND, terms, 0)


def happen(session: Session, happening: Event | Restart, now_ms: int) -> tuple[Session, tuple[Effect, ...], bool]:
    """The next session, its effects, and whether the event was taken (False: a money error)."""
    if isinstance(happening, Restart):
        return *restored(session, now_ms), True
    if isinstance(happening, MeterValue):
        happening = replace(happening, energy_uwh=session.energy_uwh + happening.energy_uwh)
    try:
        return *step(session, happening, now_ms), True
    except CreditTooLateError:
        assert isinstance(happening, CreditArrived)
        assert not session.takes_credit
    except RefundTooLargeError:
        assert isinstance(happening, (RefundSent, CreditReturned))
        if isinstance(happening, RefundSent):
            assert happening.amount_msat + happening.fee_msat > session.account.balance_msat
        else:
            assert happening.total_msat > session.account.balance_msat
    except RefundNotDueError:
        assert isinstance(happening, (RefundSent, CreditReturned))
        if isinstance(happening, RefundSent):
            assert session.refund_status is not RefundStatus.OWED
        else:
            assert session.returned_msat or session.state is not State.SETTLING or not session.refund_issued
    return session, (), False


@settings(max_examples=100, deadline=None)
@given(all_terms, histories)
def test_the_rules_hold_in_every_history(terms: Terms, history: list[tuple[int, Event | Restart]]) -> None:
    prove(terms, history)


@pytest.mark.long
@settings(max_examples=1000, deadline=None)
@given(all_terms, histories)
def test_the_same_of_a_thousand_histories(terms: Terms, history: list[tuple[int, Event | Restart]]) -> None:
    prove(terms, history)


def prove(terms: Terms, history: list[tuple[int, Event | Restart]]) -> None:
    session = new(terms)
    now_ms = 0
    relay_held = False
    credited_msat = payments = refunds = 0
    for delay_ms, happening in history:
        now_ms += delay_ms
        before = session
        session, effects, taken = happen(before, happening, now_ms)
        account = session.account

        # Money: what came in is what is on the account, and the charge is the exact cost of what was delivered.
        if taken and isinstance(happening, CreditArrived):
            credited_msat += happening.amount_msat
            payments += 1
        assert (account.credited_msat, account.payments) == (credited_msat, payments)
        assert account.balance_msat == account.credited_msat - account.charged_msat - account.refunded_msat
        exact_msat = cost_msat(terms.tariff, session.energy_uwh, session.delivered_ms, True)
        assert account.charged_msat == (exact_msat if session.started else 0)
        if account.refunded_msat:
            unused_msat = account.credited_msat - account.charged_msat
            assert account.refunded_msat + session.refund_fee_msat <= unused_msat
        assert (account.refunded_msat > session.returned_msat) == (session.refund_status is RefundStatus.SENT)
        if not (taken and isinstance(happening, CreditReturned)):
            assert session.returned_msat == before.returned_msat
        elif before.returned_msat != happening.total_msat:
            assert (before.returned_msat, session.returned_msat) == (0, happening.total_msat)
            assert account.refunded_msat == before.account.refunded_msat + happening.total_msat

        # The relay: held exactly in DELIVERING, by bounded leases.
        for effect in effects:
            if isinstance(effect, HoldRelay):
                relay_held = True
                assert session.state is State.DELIVERING
                assert 1 <= effect.lease_ms <= min(MAX_LEASE_MS, session.left_ms)
            elif isinstance(effect, OpenRelay):
                relay_held = False
        assert relay_held == (session.state is State.DELIVERING)
        if isinstance(happening, (MeterValue, Tick)) and session.state is State.DELIVERING:
            assert any(isinstance(effect, HoldRelay) for effect in effects)

        # Time: forwards, and delivered only while delivering.
        delivered_ms = session.delivered_ms - before.delivered_ms
        if isinstance(happening, Restart):
            assert delivered_ms == 0
        else:
            assert 0 <= delivered_ms <= max(0, now_ms - before.at_ms)
            assert before.state is State.DELIVERING or delivered_ms == 0
            assert delivered_ms <= max(0, before.held_until_ms - before.at_ms)

        # The end is the end.
        order = [State.SETTLING, State.CLOSED]
        if before.state in order:
            assert session.state in order[order.index(before.state) :]
            assert session.stop_reason is before.stop_reason is not None
        if before.state is State.CLOSED and before.refund_status is not RefundStatus.OWED:
            assert (session, effects) == (before, ())
        assert (Settle() in effects) <= (session.state is State.SETTLING)
        if (session.state, session.refund_status) != (before.state, before.refund_status):
            assert (WriteReceipt() in effects) == (session.state is State.CLOSED)
        else:
            assert WriteReceipt() not in effects
        if before.state is not State.SETTLING:
            refunds += sum(isinstance(effect, Refund) for effect in effects)
        assert refunds == 0


@given(all_terms, histories, delays_ms)
def test_a_step_depends_on_nothing_but_its_arguments(
    terms: Terms, history: list[tuple[int, Event | Restart]], delay_ms: int
) -> None:
    first = second = new(terms)
    now_ms = delay_ms
    for pause_ms, happening in history:
        now_ms += pause_ms
        first, effects, _ = happen(first, happening, now_ms)
        second, same, _ = happen(second, happening, now_ms)
        assert (first, effects) == (second, same)


class World:
    """A relay behind a guard, a load that takes what it likes up to the rated power, and a meter that is read late.

    ``true_mw_ms`` is the energy that really flowed, per ms of the world.
    """

    def __init__(self, power_mw: int) -> None:
        self.power_mw = power_mw
        self.now_ms = 0
        self.lease_ends_ms = 0
        self.closed_ms = 0
        self.true_mw_ms = [0]
        self.sampled_ms = 0

    def pass_time(self, duration_ms: int) -> None:
        for _ in range(duration_ms):
            flowing = self.now_ms < self.lease_ends_ms
            self.now_ms += 1
            self.closed_ms += flowing
            self.true_mw_ms.append(self.true_mw_ms[-1] + (self.power_mw if flowing else 0))

    def read(self, late_ms: int) -> MeterValue:
        """A reading that was sampled ``late_ms`` ago (but never before an earlier one)."""
        self.sampled_ms = max(self.sampled_ms, self.now_ms - late_ms)
        flowed = self.true_mw_ms[self.sampled_ms] > self.true_mw_ms[max(0, self.sampled_ms - 1)]
        return MeterValue(self.true_mw_ms[self.sampled_ms] // 3600, self.power_mw if flowed else 0)

    def obey(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, HoldRelay):
                self.lease_ends_ms = self.now_ms + effect.lease_ms
            elif isinstance(effect, OpenRelay):
                self.lease_ends_ms = self.now_ms


loads_mw = st.sampled_from([RATED_MW, RATED_MW, RATED_MW // 2, 0]) | st.integers(0, RATED_MW)
acts = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 399)),
    st.tuples(st.just("read"), st.just(0)),
    st.tuples(st.just("tick"), st.just(0)),
    st.tuples(st.just("tick"), st.just(0)),
    st.tuples(st.just("pay"), st.integers(1, 400)),
    st.tuples(st.just("pay"), st.integers(1, 400)),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("close"), st.just(0)),
)


@settings(max_examples=150, deadline=None)
@given(all_terms, st.lists(st.tuples(st.integers(0, 150), loads_mw, acts), min_size=5, max_size=40), st.data())
def test_what_is_delivered_unpaid_is_never_worth_more_than_one_meter_interval_at_rated_power(
    terms: Terms, story: list[tuple[int, int, tuple[str, int]]], data: st.DataObject
) -> None:
    terms = replace(terms, pause_max_s=3600, open_timeout_s=3600, cable_lost_s=3600)
    interval_ms = terms.meter_interval_ms
    session, effects = step(new(terms), MeterValue(0, 0), 0)
    world = World(RATED_MW)
    lost_ms = 0
    first_credit_msat = terms.start_msat + data.draw(st.integers(1, 300), "first credit")
    session, effects = step(session, CreditArrived(first_credit_msat), 0)
    world.obey(effects)
    for pause_ms, world.power_mw, (act, number) in story:
        world.pass_time(pause_ms)
        match act:
            case "read":
                session, effects = step(session, world.read(min(number, interval_ms - 1)), world.now_ms)
            case "tick":
                session, effects = step(session, Tick(), world.now_ms)
            case "pay":
                session, effects = step(session, CreditArrived(number), world.now_ms)
            case "close":
                session, effects = step(session, CableClosed(), world.now_ms)
            case _:
                # Killed right after a hold; the guard keeps the relay closed until the lease ends.
                if session.state is State.DELIVERING:
                    lost_ms += max(0, world.lease_ends_ms - session.at_ms)
                world.pass_time(max(0, world.lease_ends_ms - world.now_ms))
                session, effects = restored(session, world.now_ms)
        world.obey(effects)

        # Should the process stop just here, the load take all it may, and the lease run out:
        rest_ms = max(0, world.lease_ends_ms - world.now_ms)
        energy_uwh = -(-(world.true_mw_ms[-1] + rest_ms * RATED_MW) // 3600)
        true_cost_msat = cost_msat(terms.tariff, energy_uwh, world.closed_ms + rest_ms, session.started)
        # A killed process forgets up to one lease of time price (not of energy: the meter counts on).
        forgotten_msat = worth_msat(terms.tariff, 0, lost_ms)
        interval_msat = worth_msat(terms.tariff, RATED_MW, interval_ms)
        assert true_cost_msat <= session.account.credited_msat + interval_msat + forgotten_msat
