from __future__ import annotations

from wattline.cable.policy.events import Failed
from wattline.cable.policy.failures import FLOOR_LASTS_MS, MAX_BACKOFF_MS, FailurePolicy


def failed(amount_msat: int, code: str = "temporary_node_failure", fee_msat: int | None = None) -> Failed:
    return Failed(1, amount_msat, code, "it failed", fee_msat=fee_msat)


def test_payments_that_were_under_way_together_fail_as_one() -> None:
    setbacks = FailurePolicy(10, 10_000, 50_000, 3)
    for at_ms in (1_000, 1_010, 1_020):
        setbacks.on_failure(failed(50), begun_ms=900, at_ms=at_ms)
    assert setbacks.in_a_row == 1
    setbacks.on_failure(failed(50), begun_ms=1_500, at_ms=1_600)
    assert setbacks.in_a_row == 2
    assert not setbacks.is_too_many
    setbacks.on_failure(failed(50), begun_ms=2_500, at_ms=2_600)
    assert setbacks.is_too_many


def test_every_failure_waits_longer_up_to_a_limit_and_an_arrival_ends_it() -> None:
    setbacks = FailurePolicy(10, 10_000, 50_000, 100)
    waits = []
    for number in range(10):
        at_ms = 100_000 * (number + 1)
        setbacks.on_failure(failed(50), at_ms - 10, at_ms)
        waits.append(setbacks.next_try_ms - at_ms)
    assert waits == sorted(waits)
    assert waits[0] == 200
    assert waits[-1] == MAX_BACKOFF_MS
    setbacks.on_arrival(50)
    assert (setbacks.in_a_row, setbacks.next_try_ms) == (0, 0)


def test_a_fee_that_is_too_high_sets_the_amount_that_bears_it() -> None:
    setbacks = FailurePolicy(10, 100_000, 50_000, 3)
    setbacks.on_failure(failed(50, "fee_too_high", fee_msat=1_000), 0, 10)
    assert setbacks.fee_floor_msat(20) == 20_000
    assert setbacks.in_a_row == 0
    assert setbacks.fee_floor_msat(10 + FLOOR_LASTS_MS) == 0


def test_where_fees_are_forbidden_no_amount_bears_one() -> None:
    setbacks = FailurePolicy(10, 100_000, 0, 3)
    setbacks.on_failure(failed(50, "fee_too_high", fee_msat=1), 0, 10)
    assert setbacks.fee_floor_msat(20) > 100_000


def test_without_a_route_the_amount_is_halved_and_grows_again_with_what_arrives() -> None:
    setbacks = FailurePolicy(10, 1_000, 50_000, 100)
    setbacks.on_failure(failed(800, "no_route"), 0, 10)
    assert setbacks.route_ceiling_msat == 400
    for at_ms in range(1_000, 10_000, 1_000):
        setbacks.on_failure(failed(setbacks.route_ceiling_msat or 0, "no_route"), at_ms - 10, at_ms)
    assert setbacks.route_ceiling_msat == 10
    for _ in range(10):
        setbacks.on_arrival(setbacks.route_ceiling_msat or 1_000)
    assert setbacks.route_ceiling_msat is None


def test_what_is_too_small_raises_the_amount_and_undoes_what_was_halved_for_it() -> None:
    setbacks = FailurePolicy(10, 10_000, 50_000, 3)
    setbacks.on_failure(failed(234, "no_route"), 0, 10)
    assert setbacks.route_ceiling_msat == 117
    setbacks.on_failure(Failed(2, 117, "channel_minimum", "too small", least_msat=1_000), 200, 300)
    assert setbacks.route_floor_msat(310) == 1_000
    assert setbacks.route_ceiling_msat is None
    setbacks.on_failure(failed(1_000, "amount_below_minimum"), 400, 500)
    assert setbacks.route_floor_msat(510) == 2_000, "a node on the way does not say how much would pass"
    assert setbacks.in_a_row == 1
    assert setbacks.route_floor_msat(500 + FLOOR_LASTS_MS) == 0
