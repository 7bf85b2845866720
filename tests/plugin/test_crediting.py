"""Which payments a session can use; the hook fails all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plugin.fakes import CAP_MSAT, Stall, htlc, new_session, payment_hash, record_of, session_id
from wattline.core.ledger.database import LedgerError
from wattline.core.session.session import Session
from wattline.core.session.state import State, StopReason
from wattline.plugin.hook import KeysendGate, Pass, Refuse
from wattline.plugin.outlet_state import Condition

SESSION = session_id(1)


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[Stall]:
    with Stall(tmp_path, settles=False) as stall:
        yield stall


@pytest.fixture
def still(tmp_path: Path) -> Iterator[Stall]:
    """Its outlet's loop does not run: it shows what a test puts there."""
    stall = Stall(tmp_path, settles=False)
    show(stall, new_session())
    stall.app.sessions.add(record_of(new_session()), stall.outlet)
    yield stall
    stall.ledger.close()


def show(stall: Stall, session: Session, fault: str = "") -> None:
    stall.outlet.view = replace(stall.outlet.view, session=session, fault=fault, condition=Condition.IN_USE)


def code(stall: Stall, amount_msat: int = 1000, in_flight_msat: int = 0, session: str = SESSION) -> str | None:
    refusal = stall.app.crediting.refusal(session, amount_msat, in_flight_msat)
    return refusal[0] if refusal is not None else None


def refused(answer: Pass | Refuse) -> str | None:
    return answer.code if isinstance(answer, Refuse) else None


def test_a_payment_up_to_the_cap_is_taken_and_a_msat_more_is_not(still: Stall) -> None:
    assert code(still, CAP_MSAT) is None
    assert code(still, CAP_MSAT + 1) == "over_credit_cap"


def test_what_is_in_flight_counts_against_the_cap(still: Stall) -> None:
    assert code(still, 1000, CAP_MSAT - 1000) is None
    assert code(still, 1000, CAP_MSAT - 999) == "over_credit_cap"


def test_credit_that_is_unused_counts_against_the_cap_and_what_was_charged_does_not(still: Stall) -> None:
    session = new_session()
    account = session.account.credit(CAP_MSAT).charge_to(30_000)
    show(still, replace(session, account=account, started=True))
    assert code(still, 30_000) is None
    assert code(still, 30_001) == "over_credit_cap"
    assert code(still, 20_000, 10_001) == "over_credit_cap"


def test_the_hook_lets_no_more_than_the_cap_be_in_flight_at_once(still: Stall) -> None:
    gate = KeysendGate(lambda: still.app.crediting)
    assert gate.judge(htlc(SESSION, 1, 60_000)) == Pass()
    assert refused(gate.judge(htlc(SESSION, 2, 40_001))) == "over_credit_cap"
    assert gate.judge(htlc(SESSION, 3, 40_000)) == Pass()
    assert refused(gate.judge(htlc(SESSION, 4, 1))) == "over_credit_cap"
    assert still.app.reservations.in_flight_msat(SESSION) == CAP_MSAT


def test_the_cap_holds_when_payments_in_flight_have_become_credit(stall: Stall) -> None:
    session = stall.open()
    stall.credit(session, 1, 60_000)
    assert stall.app.reservations.in_flight_msat(session) == 0
    gate = KeysendGate(lambda: stall.app.crediting)
    assert refused(gate.judge(htlc(session, 2, 40_001))) == "over_credit_cap"
    assert gate.judge(htlc(session, 3, 40_000)) == Pass()


@pytest.mark.parametrize("state", [State.SETTLING, State.CLOSED])
def test_a_session_that_ends_takes_no_payment(still: Stall, state: State) -> None:
    show(still, replace(new_session(), state=state, stop_reason=StopReason.CABLE_CLOSED))
    assert code(still) == "session_closed"


def test_a_session_takes_no_payment_from_the_moment_in_which_its_cable_closes_it(stall: Stall) -> None:
    session = stall.open()
    assert code(stall, session=session) is None
    stall.app.requests.close(session, "done")
    assert code(stall, session=session) == "session_closed"


def test_a_session_whose_outlet_cannot_deliver_takes_no_payment(still: Stall) -> None:
    show(still, new_session(), fault="the meter stands still")
    assert still.app.crediting.refusal(SESSION, 1000, 0) == ("outlet_faulted", "the meter stands still")


def test_a_socket_that_has_not_read_its_journal_takes_no_payment(still: Stall) -> None:
    still.app.ready.clear()
    assert code(still) == "starting"
    still.app.ready.set()
    assert code(still) is None


def test_a_payment_for_a_session_that_is_not_served_is_not_taken(still: Stall) -> None:
    assert code(still, session=session_id(2)) == "unknown_session"
    show(still, new_session(2))
    assert code(still) == "unknown_session", "its outlet serves another one by now"


def test_no_money_is_taken_while_the_ledger_cannot_be_written_and_again_when_it_can(stall: Stall) -> None:
    session = stall.open()
    gate = KeysendGate(lambda: stall.app.crediting)
    stall.credit(session, 1, 5000)
    stall.ledger.full = True
    with pytest.raises(LedgerError):
        stall.app.sessions.save_changed()
    assert refused(gate.judge(htlc(session, 2, 1000))) == "ledger_failed"
    assert stall.app.reservations.in_flight_msat(session) == 0, "nothing of it is reserved"
    with pytest.raises(LedgerError):
        stall.app.sessions.save_changed()
    assert refused(gate.judge(htlc(session, 2, 1000))) == "ledger_failed"
    stall.ledger.full = False
    stall.app.sessions.save_changed()
    assert gate.judge(htlc(session, 2, 1000)) == Pass()


def test_a_payment_that_is_told_twice_is_credited_once(stall: Stall) -> None:
    session = stall.open()
    stall.credit(session, 1, 5000)
    stall.app.crediting.paid(payment_hash(1), 5000)
    assert stall.app.crediting.take(session, payment_hash(1), 5000)
    stall.app.journal.read_to_end()
    assert stall.session.account.credited_msat == 5000


def test_the_journal_credits_what_the_hook_did_not_see(stall: Stall) -> None:
    session = stall.open()
    assert stall.app.crediting.take(session, payment_hash(1), 5000)
    assert stall.session.account.credited_msat == 5000
    assert not stall.app.crediting.take(session_id(9), payment_hash(2), 5000)


def test_the_operator_ends_a_session_and_may_say_so_again_while_it_is_ending(stall: Stall) -> None:
    session = stall.open()
    stall.credit(session, 1, 5000)
    for _ in range(2):
        ended = stall.app.sessions.stop(session)
        assert ended is not None
        assert (ended.state, ended.stop_reason) == (State.SETTLING, StopReason.OPERATOR_STOPPED)
    assert stall.app.sessions.stop(session_id(9)) is None


def test_a_session_that_the_operator_ends_before_it_was_paid_is_over_at_once_and_cannot_be_ended_again(
    stall: Stall,
) -> None:
    session = stall.open()
    ended = stall.app.sessions.stop(session)
    assert ended is not None
    assert (ended.state, ended.stop_reason) == (State.CLOSED, StopReason.OPERATOR_STOPPED)
    assert stall.app.sessions.stop(session) is None


def test_the_first_reason_of_an_end_stands(stall: Stall) -> None:
    session = stall.open()
    stall.credit(session, 1, 5000)
    stall.app.requests.close(session, "done")
    assert stall.app.sessions.stop(session) == stall.session
    assert stall.session.state is State.SETTLING
    assert stall.session.stop_reason is StopReason.CABLE_CLOSED
