from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.cable.policy.budget import Bound, Caps, PaymentAccount, Spending, room

msat = st.integers(0, 10_000_000)


@st.composite
def some_caps(draw: st.DrawFn) -> Caps:
    return Caps(draw(msat), draw(msat), draw(msat), draw(st.integers(0, 1_000_000)))


@st.composite
def some_spending(draw: st.DrawFn) -> Spending:
    return Spending(draw(msat), draw(msat), draw(msat), draw(msat), draw(msat))


def after(spending: Spending, amount: int, fee: int) -> Spending:
    return Spending(
        spending.settled_msat,
        spending.in_flight_msat + amount,
        spending.charged_msat,
        spending.session_sent_msat + amount + fee,
        spending.day_sent_msat + amount + fee,
    )


@given(some_caps(), some_spending())
def test_what_fits_into_the_room_breaks_no_cap(caps: Caps, spending: Spending) -> None:
    amount = room(caps, spending).amount_msat
    if amount == 0:
        return
    then = after(spending, amount, caps.maxfee_msat(amount))
    assert then.prepaid_msat <= caps.max_prepaid_msat
    assert then.session_sent_msat <= caps.max_session_msat
    assert then.day_sent_msat <= caps.max_day_msat


@given(some_caps(), some_spending())
def test_one_msat_more_than_the_room_breaks_the_cap_that_is_named(caps: Caps, spending: Spending) -> None:
    found = room(caps, spending)
    amount = found.amount_msat + 1
    then = after(spending, amount, caps.maxfee_msat(amount))
    broken = {
        Bound.PREPAID: max(then.prepaid_msat, amount) > caps.max_prepaid_msat,
        Bound.SESSION: then.session_sent_msat > caps.max_session_msat,
        Bound.DAY: then.day_sent_msat > caps.max_day_msat,
    }
    # A single payment is bounded by the prepaid cap even where arrears would leave more room.
    assert broken[found.bound] or amount > caps.max_prepaid_msat


@dataclass
class Step:
    kind: str
    amount: int


steps = st.lists(
    st.builds(
        Step, st.sampled_from(["pay", "arrive", "fail", "deliver", "lie_more", "lie_less"]), st.integers(1, 100_000)
    ),
    max_size=60,
)


@given(steps, st.integers(1, 200_000), st.integers(1, 500_000), st.integers(0, 500_000))
def test_no_history_and_no_lie_brings_the_wallet_over_a_cap(
    history: list[Step], prepaid_cap: int, session_cap: int, ppm: int
) -> None:
    caps = Caps(prepaid_cap, session_cap, session_cap * 2, ppm)
    account = PaymentAccount()
    own_charge, socket_charge, sequence = 0, 0, 0
    open_payments: list[tuple[int, int]] = []
    for at_ms, step in enumerate(history):
        if step.kind == "deliver":
            own_charge += step.amount
            socket_charge += step.amount
        elif step.kind == "lie_more":
            socket_charge += step.amount
        elif step.kind == "lie_less":
            socket_charge = max(0, socket_charge - step.amount)
        elif step.kind == "pay":
            spending = account.spending(min(own_charge, socket_charge), account.sent_msat)
            amount = min(step.amount, room(caps, spending).amount_msat)
            if amount:
                sequence += 1
                account.begin(sequence, amount, caps.maxfee_msat(amount))
                open_payments.append((sequence, amount + caps.maxfee_msat(amount)))
                # Judged by what the cable itself knows to have been delivered, whatever the socket says.
                assert account.handed_over_msat - own_charge <= caps.max_prepaid_msat
        elif open_payments:
            number, most = open_payments.pop(0)
            if step.kind == "arrive":
                account.arrived(number, most, at_ms)
            else:
                account.came_back(number)
        assert account.sent_msat <= caps.max_session_msat


def test_fees_count_towards_the_session_budget() -> None:
    caps = Caps(max_prepaid_msat=10_000, max_session_msat=1_100, max_day_msat=10_000, max_fee_ppm=100_000)
    found = room(caps, Spending(0, 0, 0, 0, 0))
    # 1000 msat and 100 msat of fee, or 1000.9 rounded down: the largest amount whose own fee limit still fits.
    assert (found.amount_msat, found.bound) == (1_000, Bound.SESSION)


def test_a_day_that_is_used_up_leaves_no_room() -> None:
    caps = Caps(10_000, 10_000, 10_000, 0)
    found = room(caps, Spending(0, 0, 0, 0, 10_000))
    assert (found.amount_msat, found.bound) == (0, Bound.DAY)


def test_a_payment_in_flight_counts_as_prepaid() -> None:
    caps = Caps(1_000, 100_000, 100_000, 0)
    assert room(caps, Spending(500, 400, 0, 900, 900)).amount_msat == 100


def test_what_was_delivered_makes_room_again() -> None:
    caps = Caps(1_000, 100_000, 100_000, 0)
    assert room(caps, Spending(1_000, 0, 300, 1_000, 1_000)).amount_msat == 300


def test_a_negative_amount_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="settled_msat"):
        Spending(-1, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="max_day_msat"):
        Caps(0, 0, -1, 0)
