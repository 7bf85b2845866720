"""The end of a session, with a real ledger, a real payer and a real outlet's loop: unused credit goes back once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plugin.fakes import (
    CABLE,
    MSAT_PER_WH,
    Stall,
    new_session,
    payment_hash,
    preimage,
    record_of,
    session_id,
    wait_until,
)
from wattline.core.ledger.outgoing import Intent, Purpose
from wattline.core.ledger.payment import Booking, Cursor, Kind
from wattline.core.lightning.node import NodeUnavailable, PaidInvoice, SendStatus, SentPayment
from wattline.core.session.event import BooksClosed, CableClosed, CreditArrived, Event, RefundOwed
from wattline.core.session.machine import step
from wattline.core.session.session import Session
from wattline.core.session.state import RefundStatus, State
from wattline.plugin import journal as bookkeeping
from wattline.plugin import outlet as outlets
from wattline.plugin.refunds import REFUND_SEQUENCE
from wattline.v1 import charging_pb2 as pb

PAID_MSAT = 50_000


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[Stall]:
    with Stall(tmp_path) as stall:
        yield stall


def end(stall: Stall, session: str) -> pb.Receipt:
    """The cable closes its session; its receipt."""
    stall.app.requests.close(session, "done")
    wait_until(lambda: stall.is_over(session))
    return stall.receipt(session)


def saved(stall: Stall, session: str) -> Session:
    record = stall.ledger.session(session)
    assert record is not None
    return record.session


def events(stall: Stall, kind: str) -> int:
    return sum(1 for event in stall.ledger.events(1000) if event.kind == kind)


def earlier_life(stall: Stall, *, closed: bool) -> Session:
    """A session of an earlier process, in the ledger: its refund was issued, and is owed when it is ``closed``."""
    session = new_session(7)
    moments: list[Event] = [CreditArrived(PAID_MSAT), CableClosed(), BooksClosed()]
    for event in [*moments, RefundOwed()] if closed else moments:
        session, _ = step(session, event, 0)
    stall.ledger.save_session(record_of(session, closed_at=2000 if closed else None))
    booking = Booking(
        payment_hash=payment_hash(99),
        kind=Kind.CREDIT,
        session_id=session.session_id,
        sequence=1,
        amount_msat=PAID_MSAT,
        pay_index=1,
        updated_index=1,
        paid_at=1,
    )
    stall.ledger.book([booking], Cursor(1, 1))
    return session


def earlier_refund(stall: Stall, session: Session, amount_msat: int) -> str:
    """Its refund was written down and handed to the node, where it is under way; its payment_hash."""
    intent = Intent(
        payment_hash=payment_hash(500),
        preimage=preimage(500).hex(),
        purpose=Purpose.REFUND,
        session_id=session.session_id,
        sequence=REFUND_SEQUENCE,
        destination=CABLE,
        amount_msat=amount_msat,
        maxfee_msat=10,
        record="a record",
        label="a label",
        created_at=100,
    )
    stall.ledger.outgoing.add(intent)
    stall.wallet.ending = SendStatus.PENDING
    known = SentPayment(intent.payment_hash, SendStatus.PENDING, amount_msat, amount_msat + 7, None)
    stall.wallet.record[intent.payment_hash] = known
    return intent.payment_hash


def restore(stall: Stall, session: Session) -> None:
    record = stall.ledger.session(session.session_id)
    assert record is not None
    stall.app.restore(record)


# The refund.


def test_unused_credit_goes_back_once_and_the_receipt_says_so(stall: Stall) -> None:
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    receipt = end(stall, session)
    assert stall.wallet.sends == [(CABLE, PAID_MSAT)]
    assert receipt.refund_status == pb.REFUND_STATUS_SENT
    assert (receipt.credited_msat, receipt.refunded_msat, receipt.balance_msat) == (PAID_MSAT, PAID_MSAT, 0)
    assert receipt.refund_payment_hash in stall.wallet.record
    stall.app.refunds.retry()
    assert len(stall.wallet.sends) == 1


def test_what_was_delivered_does_not_go_back(stall: Stall) -> None:
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    wait_until(lambda: stall.session.state is State.DELIVERING)
    stall.hardware.energy_uwh += 10_000_000
    receipt = end(stall, session)
    assert receipt.charged_msat == 10 * MSAT_PER_WH
    assert stall.wallet.sends == [(CABLE, PAID_MSAT - 10 * MSAT_PER_WH)]


def test_refund_and_fee_together_are_the_unused_credit_at_most(stall: Stall) -> None:
    stall.wallet.fee_msat = 900
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    receipt = end(stall, session)
    assert receipt.refund_status == pb.REFUND_STATUS_SENT
    assert receipt.refund_fee_msat == 900
    (sent,) = stall.wallet.record.values()
    assert PAID_MSAT - 1000 <= sent.amount_sent_msat <= PAID_MSAT


def test_a_refund_whose_fee_would_take_all_of_it_is_kept(stall: Stall) -> None:
    stall.wallet.fee_msat = PAID_MSAT
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    assert end(stall, session).refund_status == pb.REFUND_STATUS_KEPT
    assert stall.wallet.sends == []


def test_what_a_refund_may_take_is_in_the_ledger_before_it_is_sent(stall: Stall) -> None:
    seen: list[Session] = []
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    stall.wallet.before_send = lambda: seen.append(saved(stall, session))
    end(stall, session)
    (before,) = seen
    assert (before.state, before.refund_budget_msat) == (State.SETTLING, PAID_MSAT)
    assert before.refund_issued, "a restart must not count new credit into it"


def test_a_refund_that_had_arrived_before_a_crash_is_not_sent_again(stall: Stall) -> None:
    session = earlier_life(stall, closed=False)
    sent = earlier_refund(stall, session, PAID_MSAT - 20)
    stall.ledger.outgoing.complete(sent, PAID_MSAT - 13, 200)
    restore(stall, session)
    wait_until(lambda: stall.is_over(session.session_id))
    receipt = stall.receipt(session.session_id)
    assert receipt.refund_status == pb.REFUND_STATUS_SENT
    assert (receipt.refunded_msat, receipt.refund_fee_msat) == (PAID_MSAT - 20, 7)
    assert receipt.refund_payment_hash == sent
    assert stall.wallet.sends == []


def test_a_refund_that_was_under_way_at_a_crash_is_owed_until_its_fate_is_known_and_not_sent_again(
    stall: Stall,
) -> None:
    session = earlier_life(stall, closed=False)
    earlier_refund(stall, session, PAID_MSAT - 20)
    restore(stall, session)
    wait_until(lambda: stall.is_over(session.session_id))
    assert stall.receipt(session.session_id).refund_status == pb.REFUND_STATUS_OWED
    stall.app.refunds.retry()
    assert saved(stall, session.session_id).refund_status is RefundStatus.OWED
    stall.wallet.ending = SendStatus.COMPLETE
    stall.app.refunds.retry()
    assert saved(stall, session.session_id).refund_status is RefundStatus.SENT
    assert stall.receipt(session.session_id).refunded_msat == PAID_MSAT - 20
    assert stall.wallet.sends == []


def test_a_refund_that_failed_after_all_is_sent_anew(stall: Stall) -> None:
    session = earlier_life(stall, closed=True)
    earlier_refund(stall, session, PAID_MSAT)
    stall.app.refunds.retry()
    assert stall.wallet.sends == []
    stall.wallet.ending = SendStatus.FAILED
    stall.wallet.sent(payment_hash(500))
    stall.wallet.ending = SendStatus.COMPLETE
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, PAID_MSAT)]
    assert saved(stall, session.session_id).refund_status is RefundStatus.SENT


def test_an_owed_refund_that_had_arrived_is_written_down_and_not_sent_again(stall: Stall) -> None:
    session = earlier_life(stall, closed=True)
    stall.ledger.outgoing.complete(earlier_refund(stall, session, PAID_MSAT), PAID_MSAT, 200)
    stall.app.refunds.retry()
    assert saved(stall, session.session_id).refund_status is RefundStatus.SENT
    assert stall.wallet.sends == []


def test_a_refund_that_finds_no_way_is_owed_and_sent_once_there_is_one(stall: Stall) -> None:
    stall.wallet.blocked = True
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    assert end(stall, session).refund_status == pb.REFUND_STATUS_OWED
    stall.app.refunds.retry()
    assert stall.wallet.sends == []
    stall.wallet.blocked = False
    stall.app.refunds.retry()
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, PAID_MSAT)]
    receipt = stall.receipt(session)
    assert (receipt.refund_status, receipt.balance_msat) == (pb.REFUND_STATUS_SENT, 0)


def test_a_receipt_that_could_not_say_what_became_of_an_owed_refund_is_issued_anew_when_asked_for(stall: Stall) -> None:
    stall.wallet.blocked = True
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    assert end(stall, session).refund_status == pb.REFUND_STATUS_OWED
    stall.wallet.blocked, stall.signer.gone = False, True
    with pytest.raises(NodeUnavailable):
        stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, PAID_MSAT)]
    stall.signer.gone = False
    stall.app.refunds.retry()
    record = stall.ledger.session(session)
    assert record is not None
    anew = stall.app.receipts.newest(record)
    assert pb.Receipt.FromString(anew.receipt).refund_status == pb.REFUND_STATUS_SENT
    assert stall.app.receipts.newest(record) == anew
    assert stall.wallet.sends == [(CABLE, PAID_MSAT)]


# The books.


def test_the_books_wait_for_a_credit_that_the_ledger_does_not_hold_yet(stall: Stall) -> None:
    """Closed over it, the credit would be refunded, then found in the journal, be an orphan, and be refunded again."""
    session = stall.open()
    stall.credit(session, 1, PAID_MSAT)
    stall.app.requests.close(session, "done")
    reads = stall.journal.reads
    wait_until(lambda: stall.journal.reads >= reads + 4 or stall.is_over(session))
    stall.journal.add(session, 1, PAID_MSAT)
    wait_until(lambda: stall.is_over(session))
    stall.app.journal.read_to_end()
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, PAID_MSAT)], "what was paid once goes back once"
    assert list(stall.ledger.orphans()) == []
    assert stall.ledger.credited_msat(session) == PAID_MSAT
    assert saved(stall, session).account.balance_msat == 0


def test_the_books_wait_for_payments_in_flight(stall: Stall) -> None:
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    stall.let_pass(session, 2, 7000)
    waits = threading.Event()
    wait_drained = stall.app.reservations.wait_drained

    def watched(session_id: str, timeout_s: float) -> bool:
        waits.set()
        return wait_drained(session_id, timeout_s)

    vars(stall.app.reservations)["wait_drained"] = watched
    stall.app.requests.close(session, "done")
    assert waits.wait(3)
    assert stall.session.state is State.SETTLING
    assert not stall.session.refund_issued
    stall.journal.add(session, 2, 7000)
    stall.app.crediting.paid(payment_hash(2), 7000)
    wait_until(lambda: stall.is_over(session))
    assert stall.receipt(session).credited_msat == PAID_MSAT + 7000
    assert stall.wallet.sends == [(CABLE, PAID_MSAT + 7000)]
    assert list(stall.ledger.orphans()) == []


def test_a_payment_in_flight_that_never_comes_in_does_not_hold_the_outlet_for_ever(tmp_path: Path) -> None:
    with Stall(tmp_path, drain_timeout_s=0.05) as stall:
        session = stall.open()
        stall.pay(session, 1, PAID_MSAT)
        stall.let_pass(session, 2, 7000)
        assert end(stall, session).credited_msat == PAID_MSAT
        assert stall.app.reservations.in_flight_msat(session) == 0


def test_a_settlement_whose_outlet_stops_waits_for_the_next_process_without_a_complaint(
    stall: Stall, caplog: pytest.LogCaptureFixture
) -> None:
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    asked, goes_on = threading.Event(), threading.Event()

    def read(updated_index: int, limit: int) -> Sequence[PaidInvoice]:
        asked.set()
        assert goes_on.wait(10)
        return []

    stall.journal.paid_since = read  # type: ignore[method-assign]
    stall.app.requests.close(session, "done")
    assert asked.wait(10)
    stall.outlet.stop()
    goes_on.set()
    wait_until(lambda: "outlet A1 has stopped" in caplog.text)
    stall.app.closer.stop()
    assert not [line for line in caplog.records if line.exc_info]
    record = stall.ledger.session(session)
    assert record is not None
    assert record.session.state is State.SETTLING


def test_the_books_stay_open_while_the_relay_stays_closed(stall: Stall) -> None:
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    wait_until(lambda: stall.outlet.view.relay_closed)
    stall.hardware.stuck = True
    stall.app.requests.close(session, "done")
    opens = stall.hardware.opens
    # Three more tries of the settlement, 0.1 s apart: long after the last reading was due.
    wait_until(lambda: stall.hardware.opens >= opens + 4 or stall.is_over(session))
    assert not stall.app.sessions.close_books(session)
    assert stall.session.state is State.SETTLING
    assert stall.wallet.sends == []
    stall.hardware.energy_uwh += 10_000_000  # flowed through the relay meanwhile
    stall.hardware.stuck = False
    wait_until(lambda: stall.is_over(session))
    assert stall.receipt(session).charged_msat == 10 * MSAT_PER_WH
    assert stall.wallet.sends == [(CABLE, PAID_MSAT - 10 * MSAT_PER_WH)]


def test_a_relay_that_will_not_open_does_not_keep_the_cables_money(
    stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlets, "STUCK_RELAY_MS", 150)
    session = stall.open()
    stall.pay(session, 1, PAID_MSAT)
    wait_until(lambda: stall.outlet.view.relay_closed)
    stall.hardware.stuck = True
    end(stall, session)
    assert stall.wallet.sends == [(CABLE, PAID_MSAT)]


# Payments that came too late.


def test_an_orphan_goes_back_once_to_the_cable_of_its_session(stall: Stall) -> None:
    session = stall.open()
    end(stall, session)
    stall.journal.add(session, 1, 4000)
    stall.app.journal.read_to_end()
    for _ in range(3):
        stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, 4000)]
    assert events(stall, "orphan_refunded") == 1
    assert saved(stall, session).account.credited_msat == 0


def test_two_orphans_of_one_session_both_go_back(stall: Stall) -> None:
    session = stall.open()
    end(stall, session)
    stall.journal.add(session, 1, 4000)
    stall.journal.add(session, 2, 5000)
    stall.app.journal.read_to_end()
    stall.app.refunds.retry()
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, 4000), (CABLE, 5000)]


def test_an_orphan_whose_refund_is_in_doubt_is_not_sent_again(stall: Stall) -> None:
    stall.wallet.ending = SendStatus.PENDING
    session = stall.open()
    end(stall, session)
    stall.journal.add(session, 1, 4000)
    stall.app.journal.read_to_end()
    stall.app.refunds.retry()
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, 4000)]
    assert events(stall, "orphan_refunded") == 0
    stall.wallet.ending = SendStatus.COMPLETE
    stall.app.refunds.retry()
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, 4000)]
    assert events(stall, "orphan_refunded") == 1


def test_an_orphan_of_a_session_that_never_was_stays_where_it_is(stall: Stall) -> None:
    stall.journal.add(session_id(9), 1, 4000)
    stall.app.journal.read_to_end()
    stall.app.refunds.retry()
    assert stall.wallet.sends == []
    assert len(stall.ledger.orphans()) == 1


def test_one_refund_that_cannot_be_made_does_not_keep_the_others(stall: Stall) -> None:
    session = earlier_life(stall, closed=True)
    stranger = replace(new_session(8), outlet_id="A1")
    stall.ledger.save_session(record_of(stranger, b"\x05" * 32, cable_node_id="nobody"))
    stall.journal.add(stranger.session_id, 1, 4000, updated_index=2, pay_index=2)
    stall.journal.add(session.session_id, 2, 5000, updated_index=3, pay_index=3)
    stall.app.journal.read_to_end()
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, PAID_MSAT), (CABLE, 5000)]


# What another program takes away.


def test_a_payment_whose_invoice_was_deleted_at_once_is_booked_as_it_was_told_and_the_session_ends(
    stall: Stall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bookkeeping, "LAG_S", 0.2)
    session = stall.open()
    stall.pay(session, 1, 20_000)
    stall.credit(session, 2, 30_000)
    receipt = end(stall, session)
    assert (receipt.credited_msat, receipt.refunded_msat) == (50_000, 50_000)
    assert stall.ledger.credited(session) == (50_000, 2)
    assert stall.app.journal.unlisted_payments == 1
    assert "1 payment(s), 30000 msat, were deleted at once" in caplog.text
    stall.journal.add(session, 2, 30_000)  # it is there after all
    stall.app.journal.read_to_end()
    stall.app.refunds.retry()
    assert stall.ledger.credited(session) == (50_000, 2)
    assert list(stall.ledger.orphans()) == []
    assert stall.wallet.sends == [(CABLE, 50_000)]


def test_payments_without_invoices_that_came_too_late_go_back_once_each(
    stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeping, "LAG_S", 0.0)
    session = stall.open()
    end(stall, session)
    stall.app.journal.told(session, payment_hash(1), 4000)
    stall.app.journal.told(session, payment_hash(2), 4000)
    stall.app.journal.read_to_end()
    stall.app.refunds.retry()
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, 4000), (CABLE, 4000)]


def test_a_refund_that_no_channel_carries_is_tried_less_and_less_often(tmp_path: Path) -> None:
    with Stall(tmp_path) as stall:
        stall.wallet.blocked = True
        session = stall.open()
        stall.pay(session, 1, PAID_MSAT)
        assert end(stall, session).refund_status == pb.REFUND_STATUS_OWED
        tries = [stall.app.refunds._is_due(session) for _ in range(3)]
        assert tries == [True, False, False]
        _, wait_s = stall.app.refunds._retries[session]
        assert wait_s == 120.0, "twice as long as the first time"
        stall.wallet.blocked = False
        stall.app.refunds.retry()
        stall.app.refunds.retry()
        assert not stall.app.refunds._retries, "what is done is forgotten"
