"""Several sessions wait for one outlet, and the first credit takes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.session.samples import TERMS
from wattline.core.ids import encode_session_id
from wattline.core.session.event import Displaced
from wattline.core.session.machine import step
from wattline.core.session.occupancy import Occupancy, OutletTakenError, needs_outlet
from wattline.core.session.session import Account, Session, opened
from wattline.core.session.state import Method, State, StopReason
from wattline.plugin.reservations import CLAIM_S, Reservations

NAMES = [encode_session_id(number.to_bytes(16, "big")) for number in range(4)]
A, B, C, D = NAMES


def new(session_id: str) -> Session:
    return opened(session_id, "A1", Method.KEYSEND, TERMS, 0)


def waiting(*session_ids: str) -> Occupancy:
    return Occupancy(None, tuple(new(each) for each in session_ids))


def nobody(_: str) -> bool:
    return False


def test_the_first_credit_takes_the_outlet_and_the_others_have_waited_in_vain() -> None:
    taken, others = waiting(A, B, C).taken(B)
    assert taken.paying is not None
    assert (taken.paying.session_id, others) == (B, (A, C))
    assert taken.taken(B) == (taken, ())
    with pytest.raises(OutletTakenError):
        taken.taken(A)
    assert [taken.may_pay(each, nobody) for each in (A, B, C, D)] == [False, True, False, False]


def test_while_a_first_payment_is_on_its_way_nobody_else_may_pay() -> None:
    occupancy = waiting(A, B)
    assert [occupancy.may_pay(each, lambda other: other == A) for each in (A, B)] == [True, False]
    assert [occupancy.may_pay(each, nobody) for each in (A, B, C)] == [True, True, False]


def test_only_what_was_paid_for_or_has_delivered_needs_the_outlet() -> None:
    paid = replace(new(A), account=Account(credited_msat=5, payments=1))
    assert not needs_outlet(new(A))
    assert needs_outlet(paid)
    ended = replace(paid, state=State.SETTLING, stop_reason=StopReason.CABLE_CLOSED)
    assert not needs_outlet(ended), "its money goes back without it"
    assert needs_outlet(replace(ended, started=True)), "its last energy is to be charged"


def test_who_delivers_is_displaced_by_nobody() -> None:
    assert step(new(A), Displaced(StopReason.OUTLET_TAKEN), 1)[0].stop_reason is StopReason.OUTLET_TAKEN
    delivers = replace(new(A), account=Account(credited_msat=5, payments=1), started=True, state=State.PAUSED)
    assert step(delivers, Displaced(StopReason.OUTLET_TAKEN), 1)[0].state is State.PAUSED


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("pay"), st.sampled_from(NAMES), st.integers(0, 20)),
            st.tuples(st.just("arrive"), st.none(), st.integers(0, 20)),
            st.tuples(st.just("later"), st.none(), st.integers(1, 8)),
        ),
        max_size=40,
    )
)
def test_what_has_passed_and_comes_in_soon_can_be_used_whoever_pays_at_the_same_time(
    steps: list[tuple[str, str | None, int]],
) -> None:
    now = [0.0]
    reservations = Reservations(lambda: now[0])
    occupancy = waiting(*NAMES)
    passed: dict[str, str] = {}
    first_at: dict[str, float] = {}
    for what, session_id, number in steps:
        if what == "later":
            now[0] += number
        elif what == "pay" and session_id is not None:
            may = occupancy.may_pay(session_id, reservations.is_claiming)
            payment_hash = f"{session_id} {number}"
            if payment_hash in passed or not may:
                continue
            assert reservations.reserve(payment_hash, session_id, 10, lambda _: True)
            others = [at for owner, at in first_at.items() if owner != session_id]
            assert all(now[0] >= at + CLAIM_S for at in others) or occupancy.paying is not None
            passed[payment_hash] = session_id
            if reservations.is_claiming(session_id):
                first_at.setdefault(session_id, now[0])
        elif what == "arrive" and passed:
            payment_hash = sorted(passed)[number % len(passed)]
            owner = passed.pop(payment_hash)
            if (owner in first_at and now[0] < first_at[owner] + CLAIM_S) or (
                occupancy.paying and occupancy.paying.session_id == owner
            ):
                occupancy, _ = occupancy.taken(owner)
                assert occupancy.paying is not None
                assert occupancy.paying.session_id == owner
            elif occupancy.paying is None:
                occupancy, _ = occupancy.taken(owner)
            reservations.release(payment_hash)
            if owner not in passed.values():
                first_at.pop(owner, None)
