from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.cable.policy.budget import PaymentAccount


def test_a_payment_counts_with_its_highest_fee_until_the_fee_is_known() -> None:
    account = PaymentAccount()
    account.begin(1, 1_000, 50)
    assert (account.in_flight, account.in_flight_msat, account.sent_msat) == (1, 1_000, 1_050)
    assert account.arrived(1, 1_010, at_ms=5, duration_ms=80)
    assert (account.in_flight, account.settled_msat, account.sent_msat, account.fees_msat) == (0, 1_000, 1_010, 10)


def test_the_way_of_a_payment_costs_what_those_over_lightning_have_on_average() -> None:
    account = PaymentAccount(settled_msat=10_000, sent_msat=10_090, payments=2)
    assert account.way_msat == 45
    account.begin(3, 1_000, 50)
    assert account.arrived(3, 1_000, at_ms=5)
    account.begin(4, 600_000, 0, "onchain")
    assert account.arrived(4, 600_000, at_ms=6)
    assert account.way_msat == 30
    assert PaymentAccount().way_msat == 0


def test_what_came_back_counts_for_nothing() -> None:
    account = PaymentAccount()
    account.begin(1, 1_000, 50)
    assert account.came_back(1)
    assert (account.sent_msat, account.handed_over_msat, account.failed_payments) == (0, 0, 1)


def test_the_end_of_a_payment_counts_once() -> None:
    account = PaymentAccount()
    account.begin(1, 1_000, 50)
    assert account.arrived(1, 1_000, 5)
    assert not account.arrived(1, 1_000, 6)
    assert not account.came_back(1)
    assert account.settled_msat == 1_000


def test_a_refused_version_counts_as_sent_and_exposed_until_a_later_one_takes_its_place() -> None:
    account = PaymentAccount()
    account.miner_fee_msat = 156_000
    account.begin(1, 600_000, 0, "onchain")
    assert account.arrived(1, 600_000, 5)
    account.begin(2, 400_000, 0, "onchain")
    assert account.came_back(2)
    account.onchain_signed(1_000)
    assert account.onchain_excess_msat == 400_000
    assert (account.handed_over_msat, account.exposed_msat) == (600_000, 1_000_000)
    assert account.sent_msat == 1_156_000
    # Of that the versions' part is the largest alone: only one can be mined.
    assert account.onchain_exposed_msat == 1_000_000
    account.begin(3, 300_000, 0, "onchain")
    assert (account.onchain_excess_msat, account.exposed_msat, account.sent_msat) == (100_000, 1_000_000, 1_156_000)
    account.begin(4, 200_000, 0, "onchain")
    assert (account.onchain_excess_msat, account.exposed_msat, account.sent_msat) == (0, 1_100_000, 1_256_000)


def test_one_number_is_not_begun_twice() -> None:
    account = PaymentAccount()
    account.begin(1, 1_000, 50)
    with pytest.raises(ValueError, match="under way"):
        account.begin(1, 1_000, 50)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 1_000)), max_size=30), st.integers(0, 4_000))
def test_what_had_arrived_by_a_time_is_the_sum_up_to_it(steps: list[tuple[int, int]], until_ms: int) -> None:
    account, now_ms, expected = PaymentAccount(settled_msat=7), 0, 7
    for sequence, (later, amount) in enumerate(steps):
        now_ms += later
        account.begin(sequence, amount, 0)
        account.arrived(sequence, amount, now_ms)
        expected += amount if now_ms <= until_ms else 0
    assert account.settled_before(until_ms) == expected
    assert account.settled_before(10**9) == account.settled_msat
