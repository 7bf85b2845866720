"""What a session does, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from wattline.core.errors import StopError, UsageError
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
    SendStatement,
    Settle,
    Tick,
    WriteReceipt,
)
from wattline.core.session.machine import restored, step
from wattline.core.session.session import Session, Terms, opened
from wattline.core.session.state import FAULTS, Method, RefundStatus, State, StopReason
from wattline.core.tariff import Tariff, cost_msat

SESSION_ID = "0" * 26
# 1 kW at 360 000 msat/kWh is 100 msat/s, so 10 msat per meter interval; 1 kW is 1 000 000 uWh in 3.6 s.
TERMS = Terms(
    tariff=Tariff.of(360_000, 0, 40),
    rated_power_mw=1_000_000,
    meter_interval_ms=100,
    pause_max_s=30,
    open_timeout_s=20,
    cable_lost_s=10,
    credit_cap_msat=100_000,
    min_refund_msat=1000,
)
START_MSAT = 40 + 50
STOP = (OpenRelay(), SendStatement(), Settle())


def run(session: Session, *events: tuple[int, Event]) -> tuple[Session, list[Effect]]:
    effects: list[Effect] = []
    for now_ms, event in events:
        session, more = step(session, event, now_ms)
        effects += more
    return session, effects


def new() -> Session:
    return opened(SESSION_ID, "A1", Method.KEYSEND, TERMS, 0)


def delivering(credit_msat: int = 10_000) -> Session:
    """Delivering since 0 ms, with nothing used."""
    session, _ = run(new(), (0, MeterValue(0, 0)), (0, CreditArrived(credit_msat)), (0, MeterValue(0, 0)))
    assert session.state is State.DELIVERING
    return session


def settling(credit_msat: int = 10_000) -> Session:
    session, effects = run(delivering(credit_msat), (0, CableClosed()))
    assert effects == list(STOP)
    return session


def refunding() -> Session:
    session, effects = run(settling(), (0, BooksClosed()))
    assert effects == [Refund(9960)]
    return session


def closed() -> Session:
    return run(refunding(), (0, RefundSent(9900, 60)))[0]


def owing() -> Session:
    return run(refunding(), (0, RefundOwed()))[0]


def paused() -> Session:
    """Paused at 350 ms: of 90 msat, 40 are the fee and 35 are used."""
    session, _ = run(delivering(START_MSAT), (200, MeterValue(55_556, 1_000_000)), (350, MeterValue(97_222, 1_000_000)))
    assert session.state is State.PAUSED
    return session


# Beginning


def test_delivery_begins_when_the_credit_pays_the_fee_and_five_meter_intervals_at_rated_power() -> None:
    session, effects = run(new(), (0, MeterValue(0, 0)), (1, CreditArrived(START_MSAT - 1)))
    assert (session.state, effects) == (State.OPEN, [SendStatement()])
    session, effects = run(session, (2, CreditArrived(1)))
    assert (session.state, effects) == (State.DELIVERING, [HoldRelay(500), SendStatement()])
    assert session.account.charged_msat == 0, "not before the meter has seen the supply with the relay held"
    session, _ = run(session, (2, MeterValue(0, 0)))
    assert session.account.charged_msat == 40


def test_the_relay_never_closes_on_a_meter_that_has_not_just_been_read() -> None:
    session, effects = run(new(), (0, CreditArrived(10_000)), (1, Tick()))
    assert (session.state, effects) == (State.OPEN, [SendStatement()])
    session, _ = run(new(), (0, MeterValue(0, 0)), (TERMS.stale_ms + 1, CreditArrived(10_000)))
    assert session.state is State.OPEN
    session, effects = run(session, (TERMS.stale_ms + 2, MeterValue(0, 0)))
    assert (session.state, effects) == (State.DELIVERING, [HoldRelay(1000), SendStatement()])


def test_even_free_electricity_waits_for_a_first_payment() -> None:
    free = replace(TERMS, tariff=Tariff.of(0))
    session, _ = run(opened(SESSION_ID, "A1", Method.KEYSEND, free, 0), (0, MeterValue(0, 0)), (1, Tick()))
    assert session.state is State.OPEN
    session, effects = run(session, (2, CreditArrived(1)))
    assert effects == [HoldRelay(1000), SendStatement()]


def test_a_session_that_never_began_owes_nothing() -> None:
    session, _ = run(new(), (0, CreditArrived(50)), (1, MeterValue(3, 0)), (2, CableClosed()), (3, BooksClosed()))
    assert session.account.charged_msat == 0


def test_an_open_session_that_is_not_paid_ends() -> None:
    session, effects = run(new(), (19_999, Tick()))
    assert session.state is State.OPEN
    session, effects = run(session, (20_000, Tick()))
    assert (session.stop_reason, effects) == (StopReason.NOT_PAID, list(STOP))


def test_an_open_session_that_was_paid_but_never_metered_ends_as_the_meters_fault() -> None:
    session, _ = run(new(), (0, CreditArrived(10_000)), (20_000, Tick()))
    assert session.stop_reason is StopReason.METER_BUS_ERROR


# Delivering


def test_every_meter_value_and_every_tick_renews_the_lease() -> None:
    session, effects = run(delivering(), (50, Tick()), (100, MeterValue(27_777, 1_000_000)), (150, Tick()))
    assert session.state is State.DELIVERING
    assert effects == [HoldRelay(1000)] * 3


def test_no_lease_outlasts_the_credit_counting_what_may_have_flowed_unmetered() -> None:
    session = delivering(40 + 80)  # 800 ms at rated power
    assert step(session, Tick(), 0)[1] == (HoldRelay(800),)
    assert step(session, Tick(), 100)[1] == (HoldRelay(700),)
    # Nothing was taken, so the reading gives the time back.
    assert step(session, MeterValue(0, 0), 100)[1] == (HoldRelay(800),)


def test_a_load_above_the_rating_but_within_tolerance_shortens_the_lease() -> None:
    assert step(delivering(40 + 84), MeterValue(0, 1_050_000), 0)[1] == (HoldRelay(800),)


def test_delivery_pauses_while_the_credit_still_lasts_two_meter_intervals() -> None:
    session, effects = run(delivering(START_MSAT), (300, Tick()))
    assert (session.state, effects) == (State.DELIVERING, [HoldRelay(200)])
    session, effects = run(session, (301, Tick()))
    assert (session.state, effects) == (State.PAUSED, [OpenRelay(), SendStatement()])
    assert session.account.balance_msat > 0


def test_power_above_the_rating_by_more_than_five_percent_stops_delivery() -> None:
    assert step(delivering(), MeterValue(0, 1_050_000), 10)[0].state is State.DELIVERING
    for power_mw in (1_050_001, -1_050_001):
        session, effects = step(delivering(), MeterValue(0, power_mw), 10)
        assert (session.stop_reason, effects) == (StopReason.OVER_POWER, STOP)


def test_a_reading_that_goes_backwards_stops_delivery() -> None:
    session, _ = run(delivering(), (10, MeterValue(500, 0)))
    session, effects = step(session, MeterValue(499, 0), 20)
    assert (session.stop_reason, effects) == (StopReason.METER_BACKWARDS, STOP)
    assert session.energy_uwh == 500


def test_a_reading_below_that_of_the_open_stops_delivery() -> None:
    assert step(delivering(), MeterValue(-1, 0), 10)[0].stop_reason is StopReason.METER_BACKWARDS


def test_a_missing_meter_value_stops_delivery() -> None:
    session = delivering()
    for now_ms in range(0, TERMS.stale_ms + 1, 50):
        session, _ = step(session, Tick(), now_ms)
    assert session.state is State.DELIVERING
    session, effects = step(session, Tick(), TERMS.stale_ms + 1)
    assert (session.stop_reason, effects) == (StopReason.METER_BUS_ERROR, STOP)


@pytest.mark.parametrize("reason", sorted(FAULTS))
@pytest.mark.parametrize("before", [new(), delivering(), paused()], ids=lambda s: str(s.state))
def test_every_fault_opens_the_relay_for_good_and_is_the_stop_reason(reason: StopReason, before: Session) -> None:
    session, effects = step(before, DeliveryFault(reason), 400)
    assert (session.state, session.stop_reason, effects) == (State.SETTLING, reason, STOP)


def test_the_operator_can_stop_delivery() -> None:
    session, effects = step(delivering(), OperatorStopped(), 10)
    assert (session.stop_reason, effects) == (StopReason.OPERATOR_STOPPED, STOP)


def test_time_runs_while_delivering_and_only_as_far_as_the_lease() -> None:
    session, _ = run(delivering(), (0, Tick()), (400, Tick()))
    assert session.delivered_ms == 400
    # A stall of 10 s: the relay had opened at 1400.
    session, _ = run(session, (10_400, CableClosed()))
    assert session.delivered_ms == 1400
    session, _ = run(session, (20_000, Tick()))
    assert session.delivered_ms == 1400


def test_a_stall_that_the_lease_ended_is_not_taken_for_a_broken_meter() -> None:
    session, _ = run(delivering(), (0, Tick()), (1100, Tick()))
    assert session.state is State.DELIVERING


def test_a_clock_that_goes_backwards_takes_nothing_back() -> None:
    session, _ = run(delivering(), (400, Tick()), (100, Tick()), (400, Tick()))
    assert (session.delivered_ms, session.at_ms) == (400, 400)


def test_many_small_readings_cost_what_one_large_one_costs() -> None:
    terms = replace(TERMS, tariff=Tariff.of(123_457, 0, 0), pause_max_s=0)
    start = opened(SESSION_ID, "A1", Method.KEYSEND, terms, 0)
    start, _ = run(start, (0, MeterValue(0, 0)), (0, CreditArrived(10**9)))
    many = start
    for number in range(1, 10_001):
        many, _ = step(many, MeterValue(7 * number, 0), 0)
    one, _ = step(start, MeterValue(70_000, 0), 0)
    assert many == one
    assert one.account.charged_msat == cost_msat(terms.tariff, 70_000, 0, True) == 9


# Pausing


def test_time_costs_nothing_while_paused() -> None:
    timed = replace(TERMS, tariff=Tariff.of(0, 3_600_000, 0))  # 1 msat per ms
    session = opened(SESSION_ID, "A1", Method.KEYSEND, timed, 0)
    session, _ = run(session, (0, MeterValue(0, 0)), (0, CreditArrived(500)), (400, Tick()))
    assert (session.state, session.account.charged_msat) == (State.PAUSED, 400)
    session, _ = run(session, (5000, MeterValue(0, 0)), (9000, Tick()))
    assert session.account.charged_msat == 400
    session, _ = run(session, (9000, MeterValue(0, 0)), (9000, CreditArrived(1000)), (9010, Tick()))
    assert (session.state, session.account.charged_msat) == (State.DELIVERING, 410)


def test_a_trickle_of_payments_does_not_make_the_relay_chatter() -> None:
    session = paused()
    credited_msat = session.account.credited_msat
    session, effects = run(session, (360, CreditArrived(10)), (370, Tick()))
    assert (session.state, effects) == (State.PAUSED, [SendStatement()])
    session, effects = run(session, (380, CreditArrived(25)))
    assert (session.state, effects) == (State.DELIVERING, [HoldRelay(500), SendStatement()])
    assert session.account.credited_msat == credited_msat + 35


def test_the_session_fee_is_due_once() -> None:
    session, _ = run(paused(), (360, CreditArrived(1000)))
    assert session.state is State.DELIVERING
    assert session.account.charged_msat == cost_msat(TERMS.tariff, 97_222, 350, True)


def test_a_pause_that_is_too_long_ends_the_session() -> None:
    session, _ = run(paused(), (30_349, Tick()))
    assert session.state is State.PAUSED
    session, effects = run(session, (30_350, Tick()))
    assert (session.stop_reason, effects) == (StopReason.PAUSE_TIMEOUT, list(STOP))


def test_the_energy_that_flowed_until_the_relay_opened_is_charged_in_the_pause() -> None:
    session, _ = run(paused(), (400, MeterValue(98_000, 0)))
    assert session.account.charged_msat == cost_msat(TERMS.tariff, 98_000, 350, True)


def test_power_through_an_open_relay_is_a_relay_fault_once_the_relay_had_time_to_open() -> None:
    session, _ = run(paused(), (360, MeterValue(100_000, 1_000_000)))
    assert session.state is State.PAUSED
    late_ms = 350 + TERMS.stale_ms + 1
    assert step(session, MeterValue(200_000, 50_000), late_ms)[0].state is State.PAUSED
    session, effects = step(session, MeterValue(200_000, 50_001), late_ms)
    assert (session.stop_reason, effects) == (StopReason.RELAY_FAULT, STOP)


# The cable


def test_a_lost_cable_may_come_back_in_time() -> None:
    session, _ = run(new(), (0, CableLost()), (9_999, Tick()), (9_999, CableSeen()), (19_000, Tick()))
    assert session.state is State.OPEN


def test_a_cable_that_stays_away_ends_the_session() -> None:
    # Told twice that it is gone, the time counts from the first.
    session, _ = run(new(), (0, CableLost()), (5_000, CableLost()), (9_999, Tick()))
    assert session.state is State.OPEN
    session, effects = step(session, Tick(), 10_000)
    assert (session.stop_reason, effects) == (StopReason.CABLE_LOST, STOP)


def test_delivery_goes_on_while_the_cable_is_only_away() -> None:
    session, effects = run(delivering(), (0, CableLost()), (50, Tick()))
    assert (session.state, effects) == (State.DELIVERING, [HoldRelay(1000)])


# The end


def test_the_last_energy_is_charged_while_settling() -> None:
    session, effects = run(settling(), (100, MeterValue(1_000, 1_000_000)), (110, MeterValue(900, 0)))
    assert effects == []
    assert session.energy_uwh == 1_000
    assert session.account.charged_msat == 41
    assert session.stop_reason is StopReason.CABLE_CLOSED


def test_a_credit_that_comes_while_settling_is_refunded_too() -> None:
    session, effects = run(settling(), (10, CreditArrived(5)), (20, BooksClosed()))
    assert effects == [Refund(9965)]
    assert session.state is State.SETTLING


def test_nothing_left_means_no_refund() -> None:
    session, effects = run(settling(START_MSAT), (1, MeterValue(138_889, 0)), (2, BooksClosed()))
    assert session.account.balance_msat == -1
    assert (session.state, session.refund_status) == (State.CLOSED, RefundStatus.NONE)
    assert effects == [WriteReceipt()]


def test_even_what_is_too_little_to_be_sent_may_be_given_back_in_another_way() -> None:
    session, effects = run(settling(1039), (0, BooksClosed()))
    assert effects == [Refund(999)]
    session, effects = run(session, (0, RefundKept()))
    assert (session.refund_status, session.account.balance_msat) == (RefundStatus.KEPT, 999)
    assert effects == [WriteReceipt()]


def test_a_refund_that_was_sent_closes_the_session() -> None:
    session, effects = step(refunding(), RefundSent(9900, 60), 10)
    assert (session.state, session.refund_status, effects) == (State.CLOSED, RefundStatus.SENT, (WriteReceipt(),))
    assert (session.account.refunded_msat, session.refund_fee_msat, session.account.balance_msat) == (9900, 60, 60)


def test_a_refund_that_cannot_be_sent_is_owed_and_may_be_sent_later() -> None:
    session, effects = step(refunding(), RefundOwed(), 10)
    assert (session.state, session.refund_status, effects) == (State.CLOSED, RefundStatus.OWED, (WriteReceipt(),))
    assert step(session, RefundOwed(), 15) == (session, ())
    session, effects = step(session, RefundSent(9960, 0), 20)
    assert (session.state, session.refund_status, effects) == (State.CLOSED, RefundStatus.SENT, (WriteReceipt(),))


@pytest.mark.parametrize("before", [refunding(), owing()], ids=["issued", "owed"])
def test_a_refund_whose_fee_would_exceed_it_is_kept(before: Session) -> None:
    session, effects = step(before, RefundKept(), 10)
    assert (session.state, session.refund_status, effects) == (State.CLOSED, RefundStatus.KEPT, (WriteReceipt(),))


@pytest.mark.parametrize("before", [refunding(), owing()], ids=["issued", "owed"])
def test_a_refund_with_its_fee_never_exceeds_the_unused_credit(before: Session) -> None:
    with pytest.raises(RefundTooLargeError, match="9960"):
        step(before, RefundSent(9900, 61), 10)


@pytest.mark.parametrize(
    ("total_msat", "status"), [(9960, RefundStatus.NONE), (9600, RefundStatus.KEPT)], ids=["all", "all but a rest"]
)
def test_credit_that_was_never_taken_is_given_back_without_a_payment(total_msat: int, status: RefundStatus) -> None:
    session, effects = step(refunding(), CreditReturned(total_msat), 10)
    assert (session.state, session.refund_status, effects) == (State.CLOSED, status, (WriteReceipt(),))
    assert (session.returned_msat, session.account.refunded_msat) == (total_msat, total_msat)
    assert session.account.balance_msat == 9960 - total_msat
    assert step(session, CreditReturned(total_msat), 20) == (session, ())


def test_what_is_left_of_the_credit_after_a_return_is_refunded_as_ever() -> None:
    session, effects = step(refunding(), CreditReturned(5000), 10)
    assert (session.state, effects) == (State.SETTLING, ())
    session, effects = step(session, RefundSent(4900, 60), 20)
    assert (session.state, session.refund_status, effects) == (State.CLOSED, RefundStatus.SENT, (WriteReceipt(),))
    assert (session.returned_msat, session.account.refunded_msat) == (5000, 9900)
    assert step(session, RefundSent(4900, 60), 30) == (session, ())


def test_a_return_of_more_than_is_unused_or_of_something_else_is_an_error() -> None:
    with pytest.raises(RefundTooLargeError):
        step(refunding(), CreditReturned(9961), 10)
    for before in (new(), delivering(), settling(), closed(), owing(), step(refunding(), CreditReturned(5000), 10)[0]):
        with pytest.raises(RefundNotDueError):
            step(before, CreditReturned(4000), 10)


@pytest.mark.parametrize("before", [new(), delivering(), paused(), settling()], ids=lambda s: str(s.state))
def test_a_refund_that_nobody_asked_for_is_an_error(before: Session) -> None:
    with pytest.raises(RefundNotDueError):
        step(before, RefundSent(1, 0), 10)


def test_a_second_refund_is_an_error_and_the_same_told_twice_is_not() -> None:
    assert step(closed(), RefundSent(9900, 60), 20) == (closed(), ())
    for second in (RefundSent(9900, 59), RefundSent(1, 60)):
        with pytest.raises(RefundNotDueError):
            step(closed(), second, 20)


@pytest.mark.parametrize("before", [refunding(), closed(), owing()], ids=["issued", "closed", "owed"])
def test_a_credit_after_the_refund_was_issued_is_an_orphan(before: Session) -> None:
    assert not before.takes_credit
    with pytest.raises(CreditTooLateError) as caught:
        step(before, CreditArrived(1), 10)
    assert caught.value.code == "session_closed"


SENSELESS: Sequence[tuple[Session, Sequence[Event]]] = [
    (new(), [BooksClosed(), RefundOwed(), RefundKept(), CableSeen()]),
    (delivering(), [BooksClosed(), RefundOwed(), RefundKept(), CableSeen()]),
    (
        settling(),
        [Tick(), CableClosed(), CableLost(), OperatorStopped(), DeliveryFault(StopReason.GUARD_LOST), RefundOwed()],
    ),
    (refunding(), [Tick(), MeterValue(999, 9), BooksClosed(), CableClosed(), DeliveryFault(StopReason.OVER_POWER)]),
    (
        closed(),
        [
            Tick(),
            MeterValue(9, 9),
            BooksClosed(),
            CableSeen(),
            CableClosed(),
            CableLost(),
            OperatorStopped(),
            DeliveryFault(StopReason.GUARD_LOST),
            RefundOwed(),
            RefundKept(),
        ],
    ),
]


@pytest.mark.parametrize(
    ("before", "event"),
    [(before, event) for before, events in SENSELESS for event in events],
    ids=lambda value: str(value.state) if isinstance(value, Session) else type(value).__name__,
)
def test_an_event_that_makes_no_sense_in_a_state_is_ignored(before: Session, event: Event) -> None:
    session, effects = step(before, event, before.at_ms)
    assert (session, effects) == (before, ())


# A new process


def test_after_a_restart_delivery_waits_for_the_meter_and_then_goes_on() -> None:
    session, effects = restored(delivering(), 5)
    assert (session.state, effects) == (State.PAUSED, (OpenRelay(),))
    session, more = run(session, (6, Tick()), (7, MeterValue(1_000, 0)))
    assert (session.state, more) == (State.DELIVERING, [HoldRelay(1000), SendStatement()])


def test_a_restart_changes_neither_money_nor_energy() -> None:
    before = run(delivering(), (100, MeterValue(20_000, 800_000)))[0]
    after, _ = restored(before, 0)
    assert (after.account, after.energy_uwh, after.delivered_ms) == (before.account, 20_000, 100)


def test_after_a_restart_the_cable_has_to_come_back() -> None:
    session, _ = restored(paused(), 1_000)
    session, _ = run(session, (10_999, Tick()))
    assert session.state is State.PAUSED
    assert step(session, Tick(), 11_000)[0].stop_reason is StopReason.CABLE_LOST


def test_after_a_restart_a_settlement_begins_again_where_it_stood() -> None:
    assert restored(settling(), 0)[1] == (OpenRelay(), Settle())
    assert restored(refunding(), 0)[1] == (OpenRelay(), Refund(9960))
    assert restored(closed(), 7) == (closed(), ())


# What cannot be made


def test_a_fault_needs_a_reason_that_is_one() -> None:
    with pytest.raises(StopError) as caught:
        DeliveryFault(StopReason.CABLE_CLOSED)
    assert caught.value.code == "not_a_fault"


@pytest.mark.parametrize("amount_msat", [0, -1, True])
def test_a_payment_is_a_positive_whole_number(amount_msat: int) -> None:
    with pytest.raises(StopError, match="amount_msat"):
        CreditArrived(amount_msat)
    with pytest.raises(StopError, match="amount_msat"):
        RefundSent(amount_msat, 0)
    with pytest.raises(StopError, match="fee_msat"):
        RefundSent(1, -1)


def test_terms_under_which_no_session_could_begin_are_refused() -> None:
    with pytest.raises(UsageError, match="90 msat or more"):
        replace(TERMS, credit_cap_msat=89)
    assert replace(TERMS, credit_cap_msat=90).start_msat == 90


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rated_power_mw", 0),
        ("meter_interval_ms", 0),
        ("meter_interval_ms", 1001),
        ("pause_max_s", -1),
        ("min_refund_msat", 0),
        ("open_timeout_s", 1.5),
        ("cable_lost_s", True),
    ],
)
def test_an_impossible_rule_is_refused_and_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        replace(TERMS, **{name: value})


def test_a_session_whose_values_contradict_each_other_cannot_be_made() -> None:
    contradictions: list[dict[str, Any]] = [
        {"stop_reason": StopReason.CABLE_LOST},
        {"state": State.SETTLING},
        {"energy_uwh": -1},
        {"metered_ms": 1},
        {"session_id": "A1"},
        {"refund_status": RefundStatus.SENT},
    ]
    for changes in contradictions:
        with pytest.raises(StopError):
            replace(new(), **changes)
