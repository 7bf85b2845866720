"""The money of a session."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.errors import StopError
from wattline.core.session.event import RefundTooLargeError
from wattline.core.session.session import Account

amounts = st.integers(1, 10**12)


@given(st.lists(amounts, max_size=20), st.integers(0, 10**12))
def test_the_balance_is_credit_minus_charge(credits_msat: list[int], charge_msat: int) -> None:
    account = Account()
    for amount_msat in credits_msat:
        account = account.credit(amount_msat)
    account = account.charge_to(charge_msat)
    assert account.balance_msat == sum(credits_msat) - charge_msat
    assert account.payments == len(credits_msat)


@given(amounts, st.integers(0, 10**12), amounts, st.integers(0, 10**12))
def test_a_refund_and_its_fee_never_exceed_what_is_unused(
    credit_msat: int, charge_msat: int, refund_msat: int, fee_msat: int
) -> None:
    account = Account().credit(credit_msat).charge_to(charge_msat)
    unused_msat = account.balance_msat
    if refund_msat + fee_msat > unused_msat:
        with pytest.raises(RefundTooLargeError):
            account.refund(refund_msat, fee_msat)
    else:
        assert account.refund(refund_msat, fee_msat).balance_msat == unused_msat - refund_msat


def test_a_charge_never_falls() -> None:
    with pytest.raises(StopError) as caught:
        Account().charge_to(5).charge_to(4)
    assert caught.value.code == "charge_fell"


@pytest.mark.parametrize("amount", [0, -1, True, 1.0])
def test_an_impossible_amount_is_refused(amount: Any) -> None:
    with pytest.raises(StopError, match="amount_msat"):
        Account().credit(amount)
    with pytest.raises(StopError, match="amount_msat"):
        Account().credit(10).refund(amount, 0)


def test_an_account_cannot_be_made_with_more_refunded_than_unused() -> None:
    with pytest.raises(StopError, match="refunded"):
        Account(credited_msat=10, charged_msat=5, refunded_msat=6)
    with pytest.raises(StopError, match="charged_msat"):
        Account(charged_msat=-1)
