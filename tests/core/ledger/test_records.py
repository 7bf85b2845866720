"""Tariffs, statements, receipts, events, totals, and the cable's own sessions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.ledger.samples import NODE_ID, TERMS, booking, intent, new_session, owing_session, record, session_id
from wattline.core.errors import StopError
from wattline.core.ledger.cable import CableSession
from wattline.core.ledger.history import TariffEntry
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.outgoing import Purpose
from wattline.core.ledger.payment import Cursor, Kind
from wattline.core.session.event import RefundSent
from wattline.core.session.machine import step
from wattline.core.session.session import Account
from wattline.core.tariff import Tariff

TOKEN = "5e" * 32


def test_the_tariff_saved_last_is_the_current_one(ledger: Ledger) -> None:
    assert ledger.current_tariff() is None
    first, second = Tariff.of(300_000), Tariff("special", 1, 2, 3)
    for tariff, at in ((first, 10), (second, 20), (first, 20)):
        ledger.save_tariff(tariff, at)
    assert ledger.current_tariff() == first
    assert ledger.tariff_history(2) == [TariffEntry(first, 20), TariffEntry(second, 20)]


def test_statements_are_kept_byte_by_byte_and_never_replaced(ledger: Ledger) -> None:
    ledger.save_session(record())
    ledger.save_statement(session_id(1), 1, 100, b"\x00one")
    ledger.save_statement(session_id(1), 2, 101, b"two")
    with pytest.raises(StopError) as caught:
        ledger.save_statement(session_id(1), 2, 102, b"other")
    assert caught.value.code == "statement_exists"
    assert [(found.sequence, found.statement) for found in ledger.statements(session_id(1), 9)] == [
        (2, b"two"),
        (1, b"\x00one"),
    ]
    assert len(ledger.statements(session_id(1), 1)) == 1


def test_a_statement_that_exists_spoils_nothing_else_of_the_unit_of_work(ledger: Ledger) -> None:
    ledger.save_session(record())
    ledger.save_statement(session_id(1), 1, 100, b"one")
    with ledger.unit():
        ledger.append_event(1, None, "kept", {})
        with pytest.raises(StopError):
            ledger.save_statement(session_id(1), 1, 100, b"one")
    assert len(ledger.events(9)) == 1


def test_the_newest_receipt_comes_first_and_earlier_ones_stay(ledger: Ledger) -> None:
    ledger.save_session(record())
    assert ledger.receipt(session_id(1)) is None
    ledger.save_receipt(session_id(1), b"owed", "sig1", 100)
    ledger.save_receipt(session_id(1), b"sent", "sig2", 90)
    newest = ledger.receipt(session_id(1))
    assert newest is not None
    assert (newest.content, newest.signature, newest.at) == (b"sent", "sig2", 90)
    assert [found.content for found in ledger.receipts(session_id(1))] == [b"sent", b"owed"]


def test_nothing_is_kept_for_a_session_that_was_never_saved(ledger: Ledger) -> None:
    with pytest.raises(StopError) as caught:
        ledger.save_receipt(session_id(1), b"", "", 1)
    assert caught.value.code == "unknown_session"
    with pytest.raises(StopError) as caught:
        ledger.save_statement(session_id(1), 1, 1, b"")
    assert caught.value.code == "unknown_session"


def test_events_are_numbered_and_found_by_session_and_kind(ledger: Ledger) -> None:
    ledger.append_event(10, None, "started", {"version": "1", "größe": [1, 2]})
    ledger.append_event(10, session_id(1), "opened", {})
    ledger.append_event(9, session_id(2), "opened", {"n": None})
    newest = ledger.events(2)
    assert [(found.at, found.session_id) for found in newest] == [(9, session_id(2)), (10, session_id(1))]
    assert newest[0].number > newest[1].number
    assert [found.kind for found in ledger.events(9, session_id(1))] == ["opened"]
    started = ledger.last_event("started")
    assert started is not None
    assert started.detail == {"version": "1", "größe": [1, 2]}
    assert ledger.last_event("never") is None


def test_totals_add_up_the_sessions_opened_in_the_period(ledger: Ledger) -> None:
    sent, _ = step(owing_session(1), RefundSent(4000, 30), 0)
    used = replace(new_session(2), energy_uwh=700, delivered_ms=50, started=True, account=Account(charged_msat=99))
    ledger.save_session(record(1, sent, opened_at=100))
    ledger.save_session(record(2, used, opened_at=199))
    ledger.save_session(record(3, opened_at=200))
    ledger.book(
        [
            booking(5001, amount_msat=5000),
            booking(2, session=2, amount_msat=120),
            booking(3, session=3, amount_msat=7),
            # Paid at 5000 + number.
            booking(4, session=9, amount_msat=11, kind=Kind.ORPHAN),
            booking(40, session=9, amount_msat=13, kind=Kind.ORPHAN),
        ],
        Cursor(),
    )
    totals = ledger.totals(100, 200)
    assert (totals.sessions, totals.payments, totals.energy_uwh, totals.delivered_ms) == (2, 2, 700, 50)
    assert (totals.credited_msat, totals.refunded_msat, totals.refund_fees_msat) == (5120, 4000, 30)
    assert totals.charged_msat == sent.account.charged_msat + 99
    assert totals.balance_msat == 5120 - totals.charged_msat - 4000
    assert (totals.orphans, totals.orphans_msat) == (0, 0)

    later = ledger.totals(200, 5040)
    assert (later.sessions, later.credited_msat, later.orphans, later.orphans_msat) == (1, 7, 1, 11)


def test_totals_know_the_orphans_given_back(ledger: Ledger) -> None:
    given = intent(1, purpose=Purpose.ORPHAN_REFUND, amount_msat=900)
    ledger.outgoing.add(given)
    ledger.outgoing.add(intent(2, purpose=Purpose.REFUND))
    assert ledger.totals(0, 10**9).orphans_refunded_msat == 0
    ledger.outgoing.complete(given.payment_hash, 905, 50)
    ledger.outgoing.complete(intent(2).payment_hash, 1000, 50)
    assert (ledger.totals(50, 51).orphans_refunded_msat, ledger.totals(50, 51).orphan_fees_msat) == (900, 5)
    assert ledger.totals(51, 99).orphans_refunded_msat == 0


def test_an_empty_ledger_has_totals_of_zero(ledger: Ledger) -> None:
    assert ledger.totals(0, 10**12).balance_msat == 0


def cable_session(token: str = TOKEN, created_at: int = 10) -> CableSession:
    return CableSession(token, "plug.local:9750", NODE_ID, "A1", TERMS.tariff, 1_400_000, created_at)


def test_a_cable_remembers_its_session_before_and_after_the_socket_has_named_it(ledger: Ledger) -> None:
    sessions = ledger.cable_sessions
    assert sessions.unfinished() is None
    sessions.save(cable_session())
    assert sessions.unfinished() == cable_session()
    named = replace(
        cable_session(), session_id=session_id(1), opened_at=11, base_uwh=5, extra_uwh=6, energy_uwh=7, saved_at=12
    )
    sessions.save(named)
    assert (sessions.unfinished(), sessions.of(session_id(1)), sessions.latest(9)) == (named, named, [named])
    closed = replace(named, closed_at=20, stop_reason="done", receipt=b"receipt", receipt_signature="sig")
    sessions.save(closed)
    assert sessions.unfinished() is None
    assert sessions.of(session_id(1)) == closed


def test_the_newest_unfinished_session_of_a_cable_is_taken_up(ledger: Ledger) -> None:
    sessions = ledger.cable_sessions
    for number in (1, 3, 2):
        sessions.save(cable_session(f"{number:064x}", created_at=number))
    newest = sessions.unfinished()
    assert newest is not None
    assert newest.created_at == 3
    assert [found.created_at for found in sessions.latest(2)] == [3, 2]


def test_a_cables_session_needs_a_whole_token_and_a_signed_receipt() -> None:
    with pytest.raises(StopError) as caught:
        cable_session("secret")
    assert "secret" not in caught.value.message
    with pytest.raises(StopError, match="signature"):
        replace(cable_session(), receipt=b"receipt")
