from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.cable.policy.budget import Bound, Room
from wattline.cable.policy.rhythm import Conditions, Hold, Latency, Load, Pace, Pay, next_payment, target_msat
from wattline.core.tariff import Tariff

TARIFF = Tariff.of(300_000)
TOASTER = Load(TARIFF, power_mw=1_300_000, rated_power_mw=1_400_000)
PACE = Pace(min_increment_msat=10, max_increment_msat=10_000, max_in_flight=4)
QUICK = Conditions(latency_ms=100, statement_interval_ms=1_000)
PLENTY = Room(10**9, Bound.PREPAID)


def test_nothing_is_paid_while_the_credit_lasts() -> None:
    assert next_payment(PACE, TOASTER, QUICK, target_msat(TOASTER, QUICK), 0, PLENTY) is Hold.ENOUGH


def test_the_first_payment_is_enough_for_the_socket_to_begin() -> None:
    load = Load(Tariff.of(300_000, 0, 700), power_mw=0, rated_power_mw=1_400_000, due_msat=700)
    decision = next_payment(PACE, load, QUICK, 0, 0, PLENTY)
    # 1400 W at 300 sat/kWh are 116.7 msat a second; the socket wants up to 2 s of that, and the session fee.
    assert isinstance(decision, Pay)
    assert decision.amount_msat >= 700 + 233


def test_no_more_payments_are_under_way_than_allowed() -> None:
    assert next_payment(PACE, TOASTER, QUICK, 0, 4, PLENTY) is Hold.IN_FLIGHT


def test_the_increment_grows_with_the_load() -> None:
    def steady(power_mw: int) -> int:
        load = Load(TARIFF, power_mw, 1_400_000)
        decision = next_payment(PACE, load, QUICK, target_msat(load, QUICK) - 1, 0, PLENTY)
        assert isinstance(decision, Pay)
        return decision.amount_msat

    assert steady(0) == 10
    assert steady(650_000) == 28
    assert steady(1_300_000) == 55


def test_the_socket_s_wish_is_followed_up_to_the_largest_increment() -> None:
    credit = target_msat(TOASTER, QUICK) - 1
    wish = Conditions(100, 1_000, socket_min_increment_msat=2_500)
    assert next_payment(PACE, TOASTER, wish, credit, 0, PLENTY) == Pay(2_500)
    too_much = Conditions(100, 1_000, socket_min_increment_msat=50_000)
    assert next_payment(PACE, TOASTER, too_much, credit, 0, PLENTY) == Pay(10_000)


def test_the_increment_grows_until_its_fee_is_within_the_ratio() -> None:
    dear = Conditions(100, 1_000, fee_floor_msat=4_000)
    assert next_payment(PACE, TOASTER, dear, 0, 0, PLENTY) == Pay(4_000)


def test_the_cable_says_that_fees_forbid_every_allowed_payment() -> None:
    dear = Conditions(100, 1_000, fee_floor_msat=20_000)
    assert next_payment(PACE, TOASTER, dear, 0, 0, PLENTY) is Hold.FEE
    # The floor is within the largest increment, but not within what the prepaid cap leaves.
    dear = Conditions(100, 1_000, fee_floor_msat=4_000)
    assert next_payment(PACE, TOASTER, dear, 0, 0, Room(2_000, Bound.PREPAID)) is Hold.FEE


def test_what_no_single_route_carries_is_paid_in_smaller_payments() -> None:
    narrow = Conditions(100, 1_000, route_ceiling_msat=40)
    assert next_payment(PACE, TOASTER, narrow, 0, 0, PLENTY) == Pay(40)
    closed = Conditions(100, 1_000, route_ceiling_msat=5)
    assert next_payment(PACE, TOASTER, closed, 0, 0, PLENTY) is Hold.NO_ROUTE


@pytest.mark.parametrize(
    ("bound", "hold"), [(Bound.PREPAID, Hold.PREPAID), (Bound.SESSION, Hold.SESSION), (Bound.DAY, Hold.DAY)]
)
def test_the_cap_that_stops_payments_is_named(bound: Bound, hold: Hold) -> None:
    assert next_payment(PACE, TOASTER, QUICK, 0, 0, Room(9, bound)) is hold


def test_crumbs_are_not_paid_while_the_credit_lasts() -> None:
    target = target_msat(TOASTER, QUICK)
    assert next_payment(PACE, TOASTER, QUICK, target - 1, 0, Room(20, Bound.PREPAID)) is Hold.PREPAID
    assert next_payment(PACE, TOASTER, QUICK, target // 3, 0, Room(20, Bound.PREPAID)) == Pay(20)


@given(
    st.integers(-2_000_000, 3_000_000),
    st.integers(0, 5_000),
    st.integers(-100_000, 100_000),
    st.integers(0, 5),
    st.integers(0, 30_000),
    st.integers(0, 20_000),
    st.none() | st.integers(0, 20_000),
    st.integers(0, 10),
)
def test_a_payment_is_never_larger_than_the_room_the_route_and_the_largest_increment(
    power_mw: int,
    latency_ms: int,
    credit: int,
    in_flight: int,
    free: int,
    floor: int,
    ceiling: int | None,
    boost: int,
) -> None:
    load = Load(TARIFF, power_mw, 1_400_000)
    conditions = Conditions(latency_ms, 1_000, 10, floor, ceiling, boost)
    decision = next_payment(PACE, load, conditions, credit, in_flight, Room(free, Bound.PREPAID))
    if isinstance(decision, Pay):
        assert PACE.min_increment_msat <= decision.amount_msat <= min(free, PACE.max_increment_msat)
        assert decision.amount_msat >= floor
        assert ceiling is None or decision.amount_msat <= ceiling
        assert in_flight < PACE.max_in_flight
        assert credit < target_msat(load, conditions)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(20, 900), min_size=5, max_size=40), st.integers(100_000, 1_400_000))
def test_slow_payments_do_not_make_the_rate_drift(latencies: list[int], power_mw: int) -> None:
    """A minute at constant power with whatever latencies: what is credited never runs out once it has begun, and what
    was paid in the end is what was used plus the target and one increment."""
    load = Load(TARIFF, power_mw, 1_400_000)
    estimate = Latency()
    paid, credited, in_flight, count, worst = 0, 0, 0, 0, 10**9
    arrivals: list[tuple[int, int, int]] = []
    for now_ms in range(0, 60_000, 50):
        while arrivals and arrivals[0][0] <= now_ms:
            _, amount, took = heapq.heappop(arrivals)
            credited += amount
            in_flight -= 1
            estimate.observe(took)
        used = load.worth_msat(max(0, now_ms - 2_000))
        if now_ms >= 2_000:
            worst = min(worst, credited - used)
        conditions = Conditions(estimate.estimate_ms, 1_000)
        while isinstance(decision := next_payment(PACE, load, conditions, paid - used, in_flight, PLENTY), Pay):
            paid += decision.amount_msat
            in_flight += 1
            took = latencies[count % len(latencies)]
            count += 1
            heapq.heappush(arrivals, (now_ms + took, decision.amount_msat, took))
    assert worst > 0
    assert paid - used <= target_msat(load, Conditions(Latency.LONGEST_MS, 1_000)) + PACE.max_increment_msat
    # By credit, not by interval: the number of payments is that of the energy, however slow each of them was.
    assert paid - used >= target_msat(load, Conditions(20, 1_000)) - load.worth_msat(100)


def test_the_estimate_follows_latency_and_forgets_a_single_slow_payment() -> None:
    latency = Latency()
    assert latency.estimate_ms == Latency.FIRST_MS
    for _ in range(50):
        latency.observe(80)
    assert 80 <= latency.estimate_ms <= 100
    latency.observe(60_000)
    assert latency.estimate_ms <= Latency.LONGEST_MS
    for _ in range(60):
        latency.observe(80)
    assert latency.estimate_ms <= 120
