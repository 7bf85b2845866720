from __future__ import annotations

import pytest

from wattline.cable.policy.events import Failed
from wattline.cable.policy.failures import FAILURES_AT_REST, Fallback, Standing
from wattline.cable.policy.rhythm import Hold

CALM = Standing(True, False, False, Hold.ENOUGH, False)
NO_WAY = Failed(1, 100, "no_route", "none")


def failing(fallback: Fallback, count: int, failed: Failed = NO_WAY) -> None:
    for number in range(count):
        fallback.on_failure(failed, begun_ms=1_000 * (number + 1), at_ms=1_000 * (number + 1) + 10)


def judged(fallback: Fallback, standing: Standing) -> tuple[bool, bool]:
    fallback.look(standing)
    return fallback.is_near, fallback.is_due


def test_while_nothing_fails_nothing_is_prepared_however_short_the_credit() -> None:
    assert judged(Fallback(), Standing(True, True, True, Hold.ENOUGH, False)) == (False, False)


def test_the_first_failure_prepares_and_with_enough_credit_no_number_of_them_goes_over() -> None:
    fallback = Fallback()
    failing(fallback, 1)
    assert judged(fallback, CALM) == (True, False)
    failing(fallback, 50)
    assert judged(fallback, CALM) == (True, False)


def test_with_short_credit_the_second_failure_goes_over_but_not_the_first() -> None:
    short = Standing(True, True, False, Hold.ENOUGH, False)
    fallback = Fallback()
    failing(fallback, 1)
    assert judged(fallback, short) == (True, False)
    failing(fallback, 2)
    assert judged(fallback, short) == (True, True)


def test_a_payment_that_arrives_ends_the_row() -> None:
    fallback = Fallback()
    failing(fallback, 1)
    fallback.on_arrival()
    failing(fallback, 0)
    assert judged(fallback, Standing(True, True, True, Hold.ENOUGH, False)) == (False, False)


def test_payments_that_only_arrive_in_pieces_go_over_when_the_reserve_is_reached() -> None:
    fallback = Fallback()
    assert judged(fallback, Standing(True, True, False, Hold.ENOUGH, True)) == (True, False)
    assert judged(fallback, Standing(True, True, True, Hold.ENOUGH, True)) == (True, True)


@pytest.mark.parametrize("hold", [Hold.NO_ROUTE, Hold.FEE])
def test_without_a_way_for_any_payment_it_goes_over_at_once(hold: Hold) -> None:
    assert judged(Fallback(), Standing(True, False, False, hold, True)) == (True, True)


def test_at_rest_some_failures_in_a_row_go_over() -> None:
    rest = Standing(False, True, True, Hold.ENOUGH, False)
    fallback = Fallback()
    failing(fallback, FAILURES_AT_REST - 1)
    assert judged(fallback, rest) == (True, False)
    failing(fallback, FAILURES_AT_REST)
    assert judged(fallback, rest) == (True, True)


def test_payments_that_were_under_way_together_fail_as_one() -> None:
    fallback = Fallback()
    for at_ms in (500, 510, 520):
        fallback.on_failure(NO_WAY, begun_ms=400, at_ms=at_ms)
    assert judged(fallback, Standing(True, True, False, Hold.ENOUGH, False)) == (True, False)


@pytest.mark.parametrize(
    "failed",
    [
        Failed(1, 100, "incorrect_or_unknown_payment_details", "no", at_destination=True),
        Failed(1, 100, "temporary_node_failure", "restarting", at_destination=True),
        Failed(1, 100, "node_unavailable", "lightningd went away"),
        Failed(1, 100, "ledger_busy", "locked"),
    ],
)
def test_what_is_not_the_way_s_fault_is_no_reason(failed: Failed) -> None:
    fallback = Fallback()
    assert not fallback.on_failure(failed, 0, 10)
    failing(fallback, 9, failed)
    assert judged(fallback, Standing(True, True, True, Hold.ENOUGH, False)) == (False, False)


def test_a_failure_of_the_way_is_taken_on_only_while_there_is_another() -> None:
    fallback = Fallback()
    assert fallback.on_failure(NO_WAY, 0, 10)
    fallback.is_possible = False
    assert not fallback.on_failure(NO_WAY, 20, 30)
    fallback.is_due = True
    assert not fallback.is_awaited


def test_what_is_due_stays_due() -> None:
    fallback = Fallback()
    fallback.look(Standing(True, False, False, Hold.NO_ROUTE, True))
    fallback.on_arrival()
    assert judged(fallback, CALM) == (True, True)
