"""Sessions over restarts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.ledger.samples import TERMS, booking, new_session, owing_session, record, session_id
from wattline.core.errors import StopError
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.ledger.payment import Cursor, Kind
from wattline.core.session.event import CreditArrived, DeliveryFault, MeterValue, RefundSent, Tick
from wattline.core.session.machine import restored, step
from wattline.core.session.session import Account
from wattline.core.session.state import Method, RefundStatus, State, StopReason


def test_a_session_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    session = new_session()
    for event, now_ms in ((MeterValue(0, 0), 0), (CreditArrived(5000), 0), (Tick(), 70), (MeterValue(19_000, 9), 90)):
        session, _ = step(session, event, now_ms)
    saved = record(
        session=session, closed_at=None, meter_base_uwh=-5, chip_uwh=18_995, statement_sequence=12, cable_node_id=""
    )
    with open_ledger(tmp_path / "ledger.sqlite3") as ledger:
        ledger.save_session(record())
        ledger.book([booking(1, amount_msat=5000)], Cursor(2, 1))
        ledger.save_session(saved)
    with open_ledger(tmp_path / "ledger.sqlite3") as ledger:
        found = ledger.session(session_id(1))
    assert found is not None
    assert replace(found, session=session) == saved
    # What is left out means nothing after a restart.
    assert restored(found.session, 7) == restored(replace(session, metered_ms=session.delivered_ms), 7)


def test_every_kind_of_session_comes_back(ledger: Ledger) -> None:
    stopped, _ = step(new_session(2), DeliveryFault(StopReason.METER_FROZEN), 0)
    onchain = replace(new_session(3), method=Method.ONCHAIN, terms=replace(TERMS, pause_max_s=7))
    for number, session in ((2, stopped), (3, onchain)):
        ledger.save_session(record(number, session))
        found = ledger.session(session_id(number))
        assert found is not None
        assert found.session == session


def test_credit_is_what_is_booked_whatever_was_saved(ledger: Ledger) -> None:
    boastful = replace(new_session(), account=Account(credited_msat=999, payments=9))
    ledger.save_session(record(session=boastful))
    ledger.book([booking(1, amount_msat=30), booking(2, amount_msat=12)], Cursor(4, 2))
    ledger.book([booking(3, amount_msat=500, kind=Kind.ORPHAN)], Cursor(6, 3))
    found = ledger.session(session_id(1))
    assert found is not None
    assert (found.session.account.credited_msat, found.session.account.payments) == (42, 2)


def test_sessions_are_found_by_token_state_and_age(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        ledger.save_session(record(number))
    ledger.save_session(record(4, owing_session(4)))
    ledger.book([booking(9, session=4, amount_msat=5000)], Cursor())

    def numbers(records: object) -> list[int]:
        assert isinstance(records, list)
        return [int(found.token_sha256, 16) for found in records]

    assert numbers(ledger.live_sessions()) == [1, 2, 3]
    assert numbers(ledger.sessions(2)) == [4, 3]
    assert numbers(ledger.owed_refunds()) == [4]
    found = ledger.session_by_token(f"{2:064x}")
    assert found is not None
    assert found.session.session_id == session_id(2)
    assert ledger.session_by_token("f" * 64) is None
    assert ledger.session("unknown") is None


def test_an_owed_refund_that_was_sent_is_owed_no_more(ledger: Ledger) -> None:
    ledger.save_session(record(session=owing_session()))
    ledger.book([booking(1, amount_msat=5000)], Cursor())
    (found,) = ledger.owed_refunds()
    session, _ = step(found.session, RefundSent(4900, 50), 0)
    ledger.save_session(replace(found, session=session))
    assert ledger.owed_refunds() == []
    again = ledger.session(session_id(1))
    assert again is not None
    assert (again.session.refund_status, again.session.account.refunded_msat, again.session.refund_fee_msat) == (
        RefundStatus.SENT,
        4900,
        50,
    )
    assert again.session.state is State.CLOSED


def test_two_sessions_cannot_have_one_token(ledger: Ledger) -> None:
    ledger.save_session(record(1))
    with pytest.raises(StopError) as caught:
        ledger.save_session(record(2, token_sha256=f"{1:064x}"))
    assert caught.value.code == "token_in_use"
    assert ledger.session(session_id(2)) is None


def test_a_record_needs_a_hash_of_a_token() -> None:
    with pytest.raises(StopError, match="token_sha256"):
        record(token_sha256="secret")
    with pytest.raises(StopError, match="statement_sequence"):
        record(statement_sequence=-1)
