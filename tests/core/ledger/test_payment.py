"""Booking payments once, with the journal's cursor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from tests.core.ledger.samples import booking, payment_hash, record, session_id
from wattline.core.errors import StopError
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.ledger.payment import Booking, Cursor, Kind, PaymentMismatch


@pytest.fixture
def shop(ledger: Ledger) -> Ledger:
    """A ledger with the sessions 1 to 3."""
    for number in (1, 2, 3):
        ledger.save_session(record(number))
    return ledger


def test_rows_and_cursor_are_booked_together(shop: Ledger) -> None:
    booked = shop.book([booking(1), booking(2, amount_msat=7)], Cursor(4, 2))
    assert (booked.new, booked.known) == ((booking(1), booking(2, amount_msat=7)), ())
    assert (shop.cursor(), shop.credited_msat(session_id(1)), shop.credited(session_id(1))) == (
        Cursor(4, 2),
        107,
        (107, 2),
    )
    assert shop.booked(payment_hash(2)) == booking(2, amount_msat=7)
    assert shop.booked(payment_hash(3)) is None


def test_a_new_ledger_has_read_nothing(ledger: Ledger) -> None:
    assert ledger.cursor() == Cursor(0, 0)
    assert ledger.credited_msat(session_id(1)) == 0


class PowerCut(BaseException):
    """Everything ends here."""


def test_a_power_cut_at_any_statement_of_a_booking_leaves_neither_rows_nor_cursor(shop: Ledger) -> None:
    shop.book([booking(1)], Cursor(2, 1))
    countdown = 0

    def cut(*_arguments: object) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise PowerCut

    engine = shop._database.engine
    for name in ("before_cursor_execute", "commit"):
        event.listen(engine, name, cut)
    statements = 0
    while shop.cursor() == Cursor(2, 1):
        statements += 1
        countdown = statements
        with suppress(PowerCut):
            shop.book([booking(2), booking(3)], Cursor(6, 3))
        countdown = 0
        booked = [shop.booked(payment_hash(number)) is not None for number in (2, 3)]
        assert booked == [shop.cursor() == Cursor(6, 3)] * 2
    assert statements > 4


def test_the_same_payment_booked_again_changes_nothing_and_says_so(shop: Ledger) -> None:
    shop.book([booking(1)], Cursor(2, 1))
    # By now its session is closed, so it would be called an orphan; it is not.
    booked = shop.book([booking(1, kind=Kind.ORPHAN), booking(2)], Cursor(4, 2))
    assert (booked.new, booked.known) == ((booking(2),), (booking(1),))
    assert shop.orphans() == []
    assert shop.credited_msat(session_id(1)) == 200


def test_the_same_payment_twice_in_one_batch_is_booked_once(shop: Ledger) -> None:
    assert shop.book([booking(1), booking(1)], Cursor(2, 1)).new == (booking(1),)
    assert shop.credited_msat(session_id(1)) == 100


@pytest.mark.parametrize(
    "other", [booking(1, amount_msat=101), booking(1, session=2), booking(1, amount_msat=99, kind=Kind.ORPHAN)]
)
def test_the_same_payment_with_another_amount_or_session_is_an_error_and_nothing_is_booked(
    shop: Ledger, other: Booking
) -> None:
    shop.book([booking(1)], Cursor(2, 1))
    with pytest.raises(PaymentMismatch, match=payment_hash(1)):
        shop.book([booking(2), other], Cursor(4, 2))
    assert shop.cursor() == Cursor(2, 1)
    assert shop.booked(payment_hash(2)) is None
    with pytest.raises(PaymentMismatch):
        shop.book([booking(5), replace(other, payment_hash=payment_hash(5))], Cursor(4, 2))


def test_a_credit_for_a_session_that_never_was_is_an_error_and_an_orphan_is_not(shop: Ledger) -> None:
    with pytest.raises(StopError) as caught:
        shop.book([booking(1), booking(2, session=77)], Cursor(4, 2))
    assert caught.value.code == "unknown_session"
    assert shop.cursor() == Cursor()
    assert shop.booked(payment_hash(1)) is None
    orphan = booking(2, session=77, kind=Kind.ORPHAN)
    shop.book([orphan], Cursor(4, 2))
    assert shop.orphans() == [orphan]
    assert shop.credited_msat(session_id(77)) == 0


def test_payments_of_a_session_come_in_the_order_in_which_they_were_paid(shop: Ledger) -> None:
    shop.book([booking(3), booking(1, kind=Kind.ORPHAN), booking(2, session=2)], Cursor())
    assert [row.pay_index for row in shop.payments(session_id(1))] == [1, 3]


def test_the_cursor_moves_on_without_any_payment_of_ours(ledger: Ledger) -> None:
    ledger.book([], Cursor(10, 4))
    assert ledger.cursor() == Cursor(10, 4)


def test_more_payments_than_fit_one_query_are_told_apart(shop: Ledger) -> None:
    rows = [booking(number) for number in range(1, 1201)]
    shop.book(rows[::2], Cursor())
    booked = shop.book(rows, Cursor(2400, 1200))
    assert (len(booked.new), len(booked.known)) == (600, 600)
    assert shop.credited(session_id(1)) == (120_000, 1200)


@pytest.mark.parametrize(
    "changes", [{"payment_hash": "ABC"}, {"amount_msat": 0}, {"amount_msat": -5}, {"amount_msat": True}]
)
def test_an_impossible_payment_cannot_be_booked(changes: dict[str, Any]) -> None:
    with pytest.raises(StopError) as caught:
        replace(booking(1), **changes)
    assert caught.value.code == "booking_invalid"


rows = st.builds(
    booking, st.integers(1, 12), kind=st.sampled_from(Kind), session=st.just(1), amount_msat=st.just(100)
).map(lambda row: replace(row, amount_msat=100 + row.sequence, session_id=session_id(1 + row.sequence % 3)))
batches = st.lists(
    st.tuples(st.lists(rows, max_size=6), st.builds(Cursor, st.integers(0, 50), st.integers(0, 50))), max_size=8
)
counter = itertools.count()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches)
def test_whatever_is_read_again_each_payment_counts_once_and_the_cursor_never_goes_back(
    tmp_path: Path, batches: Sequence[tuple[Sequence[Booking], Cursor]]
) -> None:
    first: dict[str, Booking] = {}
    with open_ledger(tmp_path / f"{next(counter)}.sqlite3") as ledger:
        for number in (1, 2, 3):
            ledger.save_session(record(number))
        for rows, cursor in batches:
            before = ledger.cursor()
            booked = ledger.book(rows, cursor)
            assert {row.payment_hash for row in booked.new} == {row.payment_hash for row in rows} - first.keys()
            for row in rows:
                first.setdefault(row.payment_hash, row)
            after = ledger.cursor()
            assert after == Cursor(
                max(before.updated_index, cursor.updated_index), max(before.pay_index, cursor.pay_index)
            )
            assert all(ledger.booked(name) == row for name, row in first.items())
        credited = {number: ledger.credited_msat(session_id(number)) for number in (1, 2, 3)}
        orphans = sum(row.amount_msat for row in ledger.orphans())
    # All that came in is either credit of its session or an orphan.
    assert sum(credited.values()) + orphans == sum(row.amount_msat for row in first.values())
    for number, credited_msat in credited.items():
        of_session = [row for row in first.values() if row.session_id == session_id(number)]
        assert credited_msat == sum(row.amount_msat for row in of_session if row.kind is Kind.CREDIT)
