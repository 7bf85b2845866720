"""Credit from the chain is told as a total: however often, and in whatever order, it is credited once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.session.samples import TERMS
from wattline.core.errors import StopError
from wattline.core.session.event import (
    BooksClosed,
    CableClosed,
    CreditArrived,
    CreditTooLateError,
    OnchainCredited,
)
from wattline.core.session.machine import restored, step
from wattline.core.session.session import Session, opened
from wattline.core.session.state import Method

SEVERAL = st.lists(
    st.one_of(
        st.builds(OnchainCredited, st.integers(1, 50_000)),
        st.builds(CreditArrived, st.integers(1, 50_000)),
        st.just(CableClosed()),
    ),
    max_size=20,
)


def new() -> Session:
    return opened("0" * 26, "A1", Method.ONCHAIN, TERMS, 0)


@given(SEVERAL)
def test_the_credit_is_what_keysend_brought_and_the_largest_total_of_the_chain(
    told: list[OnchainCredited | CreditArrived | CableClosed],
) -> None:
    session = new()
    keysend, totals, raises = list[int](), [0], 0
    for event in told:
        if isinstance(event, CreditArrived):
            keysend.append(event.amount_msat)
        elif isinstance(event, OnchainCredited):
            raises += event.total_msat > max(totals)
            totals.append(event.total_msat)
        session, _ = step(session, event, 0)
        again, _ = step(session, event, 0) if not isinstance(event, CreditArrived) else (session, ())
        assert again.account == session.account, "told twice it changes nothing"
    account = session.account
    assert account.onchain_msat == max(totals)
    assert account.credited_msat == sum(keysend) + max(totals)
    assert account.payments == len(keysend) + raises


@given(st.integers(1, 50_000), st.integers(1, 50_000))
def test_what_comes_after_the_books_are_closed_is_an_error_and_what_is_told_again_is_none(
    before_msat: int, later_msat: int
) -> None:
    session = new()
    for event in (OnchainCredited(before_msat), CableClosed(), BooksClosed()):
        session, _ = step(session, event, 0)
    assert not session.takes_credit
    if later_msat <= before_msat:
        assert step(session, OnchainCredited(later_msat), 0)[0].account == session.account
    else:
        with pytest.raises(CreditTooLateError, match=f"{later_msat - before_msat} msat"):
            step(session, OnchainCredited(later_msat), 0)


def test_after_a_restart_only_what_came_from_the_chain_is_withheld() -> None:
    by_chain, _ = step(new(), OnchainCredited(5000), 0)
    by_keysend, _ = step(new(), CreditArrived(5000), 0)
    assert restored(by_chain, 0)[0].is_withheld
    assert not restored(by_keysend, 0)[0].is_withheld


@pytest.mark.parametrize("total_msat", [0, -1, True, 1.5])
def test_a_total_is_a_positive_whole_number(total_msat: int) -> None:
    with pytest.raises(StopError) as caught:
        OnchainCredited(total_msat)
    assert caught.value.code == "amount_invalid"
