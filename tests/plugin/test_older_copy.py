"""A socket whose ledger was put back to an older copy: nobody is accused, nothing is paid twice, no receipt is
contradicted without a word."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugin.fakes import CABLE
from tests.plugin.still_stall import CONFIRMATIONS, CREDIT_CAP_SAT, FLOOR_SAT, Killed, StillStall, Wallet
from wattline.core.aggregate import MSAT_PER_SAT, AggregateStatus, lost_msat
from wattline.core.errors import UsageError
from wattline.core.ledger.outgoing import IntentStatus, Purpose
from wattline.core.lightning.node import NodeUnavailable, SendStatus
from wattline.core.session.state import RefundStatus, State, StopReason
from wattline.plugin.onchain.decision import SEEN_WAIT_S
from wattline.plugin.resolving import Resolving
from wattline.v1 import charging_pb2 as pb

VALUE_SAT = 3000


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[StillStall]:
    with StillStall(tmp_path / "socket.sqlite3") as stall:
        yield stall


def receipt(stall: StillStall, session: str) -> pb.Receipt:
    saved = stall.ledger.receipt(session)
    assert saved is not None
    return pb.Receipt.FromString(saved.content)


def resolving(stall: StillStall) -> Resolving:
    return stall.app.resolving


def final_of(stall: StillStall, wallet: Wallet, session: str) -> None:
    """The cable signs what it is asked for."""

    def hear(_: str, message: pb.ChargeResponse) -> None:
        newest = stall.ledger.newest_version(session)
        assert newest is not None
        tx = wallet.sign(message.final_due.value_sat)
        assert stall.hand_over(session, newest.number + 1, tx, is_final=True) == ""

    stall.hears = hear


def end(stall: StillStall) -> None:
    """Everything that happens by itself."""
    for _ in range(3 * CONFIRMATIONS):
        stall.work()
        stall.mine()
        stall.app.refunds.retry()


@dataclass(frozen=True)
class Lost:
    """A session of which an older copy knows the first version alone."""

    before_sat: int
    used_percent: int
    more_sat: list[int]
    """By which each later version grew."""
    used_after_percent: int
    signs_final: bool
    mined: int
    """Blocks after the settlement, before the disk was lost."""
    others_sat: int
    """Somebody else used the outlet meanwhile."""


losses = st.builds(
    Lost,
    before_sat=st.integers(FLOOR_SAT, 2000),
    used_percent=st.integers(0, 100),
    more_sat=st.lists(st.integers(1, 1500), max_size=3),
    used_after_percent=st.integers(0, 100),
    signs_final=st.booleans(),
    mined=st.integers(0, CONFIRMATIONS + 1),
    others_sat=st.integers(0, 5000),
)


@settings(max_examples=15)
@given(losses)
def test_what_the_chain_pays_an_older_copy_for_an_honest_cable_is_never_called_a_fraud(lost: Lost) -> None:
    prove(lost)


@pytest.mark.long
@settings(max_examples=60)
@given(losses)
def test_the_same_of_more_sessions(lost: Lost) -> None:
    prove(lost)


def prove(lost: Lost) -> None:
    with TemporaryDirectory() as folder, StillStall(Path(folder) / "socket.sqlite3") as stall:
        session = stall.open()
        wallet = Wallet.of(stall.chain, stall.invite(session).script)
        assert stall.hand_over(session, 1, wallet.sign(lost.before_sat)) == ""
        stall.look()
        stall.deliver(lost.before_sat * lost.used_percent * MSAT_PER_SAT // 100)
        stall.app.sessions.save_changed()
        copy = stall.copy_of_ledger()
        for number, more_sat in enumerate(lost.more_sat, start=2):
            stall.hand_over(session, number, wallet.sign(wallet.versions[-1].paid_to(wallet.script) + more_sat))
        stall.deliver(max(0, stall.session(session).account.balance_msat) * lost.used_after_percent // 100)
        if lost.signs_final:
            final_of(stall, wallet, session)
        stall.close_session(session)
        stall.work()
        first, sends = receipt(stall, session), len(stall.wallet.sends)
        stall.look()
        if lost.mined:
            stall.mine(lost.mined)
            stall.app.refunds.retry()
            sends = len(stall.wallet.sends)
        stall.hardware["A1"].energy_uwh += lost.others_sat * MSAT_PER_SAT * 1000
        stall.put_back(copy)
        stall.hears = lambda session_id, message: None
        stall.deliver(1000 * MSAT_PER_SAT)
        assert not stall.hardware["A1"].closed
        end(stall)
        saved, aggregate, second = stall.saved(session), stall.aggregate(session), receipt(stall, session)
        assert stall.ledger.refused_cable(CABLE) is None
        assert saved.stop_reason is StopReason.LEDGER_RESTORED
        assert second.from_restored_ledger
        assert not first.from_restored_ledger
        assert second.charged_msat <= first.charged_msat, "no more than the copy knew of"
        assert lost_msat(aggregate.lost_msat, saved.account.balance_msat) == 0
        if first.onchain_value_sat:
            assert aggregate.status is AggregateStatus.SETTLED
            assert (second.onchain_txid, second.onchain_value_sat) == (first.onchain_txid, first.onchain_value_sat)
        assert len(stall.wallet.sends) == sends, "nothing is sent back before somebody has looked"
        assert stall.ledger.exposure_sat() == 0


def keysend_session(stall: StillStall) -> tuple[str, bytes]:
    """Paid 90,000 msat and used 30,000; and the copy of before its end."""
    session = stall.open()
    assert stall.pay(session, 1, 60_000)
    stall.deliver(20_000)
    stall.app.sessions.save_changed()
    copy = stall.copy_of_ledger()
    assert stall.pay(session, 2, 30_000)
    stall.deliver(10_000)
    return session, copy


def test_a_refund_that_the_lost_ledger_has_sent_is_not_sent_again(stall: StillStall) -> None:
    session, copy = keysend_session(stall)
    stall.wallet.fee_msat = 7
    stall.close_session(session)
    stall.work()
    (sent,) = stall.wallet.sends
    stall.put_back(copy)
    end(stall)
    assert stall.wallet.sends == [sent]
    saved = stall.saved(session)
    assert saved.account.credited_msat == 90_000, "the journal has all that was paid"
    assert (saved.refund_status, saved.account.refunded_msat, saved.refund_fee_msat) == (RefundStatus.SENT, sent[1], 7)
    intent = stall.ledger.outgoing.of(Purpose.REFUND, session, 0)
    assert intent is not None
    assert (intent.status, intent.amount_msat) == (IntentStatus.COMPLETE, sent[1])
    assert receipt(stall, session).refund_payment_hash == intent.payment_hash


def test_a_refund_that_is_still_under_way_is_neither_sent_again_nor_called_sent(stall: StillStall) -> None:
    session, copy = keysend_session(stall)
    stall.wallet.ending = SendStatus.PENDING
    stall.close_session(session)
    stall.work()
    stall.put_back(copy)
    end(stall)
    assert stall.saved(session).refund_status is RefundStatus.OWED
    stall.wallet.ending = SendStatus.COMPLETE
    stall.app.refunds.retry()
    assert stall.saved(session).refund_status is RefundStatus.SENT
    assert len(stall.wallet.sends) == 1


@pytest.mark.parametrize("outcome", ["refund", "keep"])
def test_a_refund_of_which_nobody_knows_waits_for_the_operator(stall: StillStall, outcome: str) -> None:
    session, copy = keysend_session(stall)
    other = stall.open(2, "A2")
    assert stall.pay(other, 77, 20)
    stall.close_session(other)
    stall.work()  # its receipt is what tells that the copy is older
    stall.put_back(copy)
    end(stall)
    assert stall.saved(session).refund_status is RefundStatus.OWED
    assert not stall.wallet.sends
    resolving(stall).resolve(session, outcome, "looked at the meter")
    stall.app.refunds.retry()
    stall.app.refunds.retry()
    account = stall.saved(session).account
    assert stall.wallet.sends == ([(CABLE, 70_000)] if outcome == "refund" else [])
    assert account.refunded_msat == (70_000 if outcome == "refund" else 0)
    event = stall.ledger.last_event("refund_resolved", session)
    assert event is not None
    assert event.detail == {"outcome": outcome, "reason": "looked at the meter"}
    with pytest.raises(UsageError, match="no refund of session"):
        resolving(stall).resolve(session, outcome, "again")


def test_an_orphan_that_the_lost_ledger_has_given_back_is_not_given_back_again(stall: StillStall) -> None:
    session, copy = late_payment(stall)
    other = stall.open(2, "A2")
    assert stall.pay(other, 77, 20)
    stall.close_session(other)
    stall.work()
    sends = list(stall.wallet.sends)
    assert sends[-1] == (CABLE, 4000)
    stall.put_back(copy)
    assert [orphan.session_id for orphan in stall.ledger.orphans()] == [session, other]
    end(stall)
    assert stall.wallet.sends == sends


def test_a_restart_is_no_older_copy_and_an_empty_ledger_is_one(
    stall: StillStall, caplog: pytest.LogCaptureFixture
) -> None:
    empty = stall.copy_of_ledger()
    for number in (1, 2):
        session = stall.open(number)
        assert stall.pay(session, number, 20)
        stall.close_session(session)
        stall.work()
        stall.kill()
        assert stall.app.older_copy.noticed_at is None
    same = stall.copy_of_ledger()
    stall.put_back(same)
    assert stall.app.older_copy.noticed_at is None
    with caplog.at_level(logging.ERROR):
        stall.put_back(empty)
    assert stall.app.older_copy.noticed_at == stall.time_s
    assert "2 receipt(s) were signed after it was made" in caplog.text
    stall.kill()
    assert stall.events("ledger_restored") == 1, "it is noticed once"


def test_sessions_that_never_paid_are_not_among_those_that_an_older_copy_takes_for_unfinished(
    stall: StillStall,
) -> None:
    for number in range(2, 5):
        stall.close_session(stall.open(number))
        stall.work()
    copy = stall.copy_of_ledger()
    session = stall.open(1)
    assert stall.pay(session, 1, 20_000)
    stall.close_session(session)
    stall.work()
    stall.put_back(copy)
    assert stall.app.older_copy.noticed_at is not None
    assert stall.events("ledger_restored") == 1


def late_payment(stall: StillStall) -> tuple[str, bytes]:
    """4,000 msat came for a session that was over, and went back, after the copy was made."""
    session = stall.open()
    assert stall.pay(session, 1, 5_000)
    stall.close_session(session)
    stall.work()
    copy = stall.copy_of_ledger()
    stall.journal.add(session, 9, 4_000)
    stall.app.journal.read_to_end()
    stall.app.refunds.retry()
    assert stall.wallet.sends[-1] == (CABLE, 4_000)
    assert not stall.ledger.orphans_to_return()
    return session, copy


def forgotten_payment(stall: StillStall) -> tuple[str, bytes]:
    """The same, and lightningd has forgotten that it sent anything."""
    session, copy = late_payment(stall)
    stall.wallet.autoclean()
    stall.time_s += 10
    return session, copy


@pytest.mark.parametrize("outcome", ["refund", "keep"])
def test_what_came_too_late_and_may_have_gone_back_waits_for_the_operator(stall: StillStall, outcome: str) -> None:
    session, copy = forgotten_payment(stall)
    stall.put_back(copy)
    sends = list(stall.wallet.sends)
    end(stall)
    assert (stall.wallet.sends, stall.app.older_copy.held()) == (sends, [session])
    resolving(stall).resolve(session, outcome, "looked at the cable's node")
    end(stall)
    assert stall.wallet.sends == sends + ([(CABLE, 4_000)] if outcome == "refund" else [])
    assert not stall.app.older_copy.held()
    assert not stall.ledger.orphans_to_return()
    later = stall.open(2)  # a session that the copy did not know
    stall.close_session(later)
    stall.work()
    stall.journal.add(later, 10, 6_000)
    stall.app.journal.read_to_end()
    stall.app.refunds.retry()
    assert stall.wallet.sends[-1] == (CABLE, 6_000)


def test_each_copy_is_noticed_once_each_time_that_it_is_put_back(stall: StillStall) -> None:
    _, older = forgotten_payment(stall)
    newer = stall.copy_of_ledger()
    for number, copy in enumerate([older, newer, older, newer], start=1):
        stall.put_back(copy)
        at = stall.app.older_copy.noticed_at
        # (The newer one alone would be the one that ran last; not once the older one has run.)
        assert at == stall.time_s, number
        stall.time_s += 10
        stall.kill()
        assert stall.app.older_copy.noticed_at == at, "a restart is no older copy"
        stall.time_s += 10


def test_a_process_that_dies_while_it_notices_a_copy_notices_it_once(stall: StillStall) -> None:
    _, copy = forgotten_payment(stall)
    stall.tripwire.counts = lambda call, is_after: call == "write_note" and not is_after
    stall.tripwire.left = 0
    stall.happen(lambda: stall.put_back(copy))
    stall.kill()
    assert stall.events("ledger_restored") == 1


def test_what_the_operator_keeps_is_not_sent_though_the_process_dies_at_his_word(stall: StillStall) -> None:
    session, copy = keysend_session(stall)
    stall.close_session(session)
    stall.work()
    stall.wallet.autoclean()
    stall.put_back(copy)
    end(stall)
    stall.tripwire.counts = lambda call, is_after: call == "save_session" and not is_after
    stall.tripwire.left = 0
    with pytest.raises(Killed):
        resolving(stall).resolve(session, "keep", "seen")
    stall.kill()
    stall.app.refunds.retry()
    assert len(stall.wallet.sends) == 1
    resolving(stall).resolve(session, "keep", "seen")
    assert stall.saved(session).refund_status is RefundStatus.KEPT


@pytest.mark.parametrize("forgets_after_s", [None, 86_400])
def test_a_refund_that_cannot_be_noted_is_sent_only_by_a_node_that_forgets_nothing(
    stall: StillStall, forgets_after_s: int | None
) -> None:
    session = stall.open()
    assert stall.pay(session, 1, 20_000)
    stall.notes.refuses, stall.wallet.forgets_after_s = True, forgets_after_s
    stall.close_session(session)
    stall.work()
    assert len(stall.wallet.sends) == (1 if forgets_after_s is None else 0)
    stall.notes.refuses = False
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, 20_000)]
    assert stall.saved(session).refund_status is RefundStatus.SENT


def test_the_note_of_an_earlier_wattline_is_read(stall: StillStall) -> None:
    session = stall.open()
    assert stall.pay(session, 1, 20)
    copy = stall.copy_of_ledger()
    stall.close_session(session)
    stall.work()
    stall.notes.notes = {"receipts": "1"}
    stall.kill()
    assert stall.app.older_copy.noticed_at is None
    stall.put_back(copy)
    assert stall.app.older_copy.noticed_at == stall.time_s


def test_a_node_that_notes_nothing_holds_up_no_receipt_but_one_that_does_not_answer_does(stall: StillStall) -> None:
    session = stall.open()
    assert stall.pay(session, 1, 20)
    stall.close_session(session)
    stall.notes.gone = True
    stall.work()
    assert not stall.is_over(session) or stall.app.sessions.is_served(session), "nobody has been told of it"
    record = stall.ledger.session(session)
    assert record is not None
    assert stall.ledger.last_receipt_number() == 1
    with pytest.raises(NodeUnavailable):
        stall.app.receipts.newest(record)  # also not who asks for it
    stall.notes.gone = False
    assert stall.app.receipts.newest(record).receipt
    assert (stall.notes.note("ledger") or "").startswith("1:")
    stall.work()
    assert not stall.app.sessions.is_served(session)
    assert CREDIT_CAP_SAT > VALUE_SAT


@pytest.mark.parametrize("outcome", ["paid", "lost", "the chain comes back"])
def test_without_the_chain_such_a_session_closes_and_frees_its_outlet(stall: StillStall, outcome: str) -> None:
    session = stall.open()
    wallet = Wallet.of(stall.chain, stall.invite(session).script)
    assert stall.hand_over(session, 1, wallet.sign(VALUE_SAT)) == ""
    stall.deliver(VALUE_SAT * MSAT_PER_SAT // 2)
    stall.app.sessions.save_changed()
    copy = stall.copy_of_ledger()
    other = stall.open(2, "A2")
    assert stall.pay(other, 77, 20)
    stall.close_session(other)
    stall.work()  # its receipt is what tells that the copy is older
    stall.put_back(copy)
    stall.chain.away = True
    stall.work()
    assert stall.session(session).state is not State.CLOSED, "the chain may be back in a moment"
    stall.time_s += int(SEEN_WAIT_S)
    stall.work()
    assert stall.saved(session).state is State.CLOSED
    assert not stall.hardware["A1"].closed
    assert stall.aggregate(session).status is AggregateStatus.OPEN
    told = receipt(stall, session)
    assert (told.onchain_value_sat, told.onchain_txid) == (VALUE_SAT, wallet.versions[-1].txid)
    assert stall.open(3, "A1"), "the outlet is free"
    if outcome == "the chain comes back":
        stall.chain.away = False
        end(stall)
        assert stall.aggregate(session).status is AggregateStatus.SETTLED
        assert stall.aggregate(session).mined_value_sat == VALUE_SAT
        return
    resolving(stall).resolve(session, outcome, "bitcoind is gone")
    status = AggregateStatus.SETTLED if outcome == "paid" else AggregateStatus.LOST
    assert stall.aggregate(session).status is status
    assert stall.aggregate(session).lost_msat == (0 if outcome == "paid" else VALUE_SAT * MSAT_PER_SAT)


@pytest.mark.parametrize("outcome", ["refund", "keep", "paid"])
def test_a_refund_in_doubt_of_which_the_node_knows_nothing_is_ended_by_the_operator(
    stall: StillStall, outcome: str
) -> None:
    session, _ = keysend_session(stall)
    stall.wallet.forgets_after_s = 86_400
    stall.wallet.ending = SendStatus.PENDING
    stall.close_session(session)
    stall.work()
    with pytest.raises(UsageError, match="still under way"):
        resolving(stall).resolve(session, outcome, "too early")
    stall.wallet.record.clear()  # autoclean, or it never arrived there
    stall.wallet.ending = SendStatus.COMPLETE
    stall.time_s += 400 * 86_400
    stall.app.refunds.retry()
    assert stall.saved(session).refund_status is RefundStatus.OWED, "nobody knows"
    sends = len(stall.wallet.sends)
    resolving(stall).resolve(session, outcome, "looked at the cable's invoices")
    stall.app.refunds.retry()
    saved, intent = stall.saved(session), stall.ledger.outgoing.of(Purpose.REFUND, session, 0)
    assert intent is not None
    assert len(stall.wallet.sends) == sends + (outcome == "refund")
    assert saved.refund_status is (RefundStatus.KEPT if outcome == "keep" else RefundStatus.SENT)
    assert intent.status is (IntentStatus.FAILED if outcome == "keep" else IntentStatus.COMPLETE)


@pytest.mark.parametrize("outcome", ["refund", "keep"])
def test_a_refund_that_no_channel_carries_need_not_be_owed_for_ever(stall: StillStall, outcome: str) -> None:
    session, _ = keysend_session(stall)
    stall.wallet.ending = SendStatus.FAILED
    stall.close_session(session)
    stall.work()
    stall.app.refunds.retry()
    assert stall.saved(session).refund_status is RefundStatus.OWED
    stall.wallet.ending = SendStatus.COMPLETE
    sends = len(stall.wallet.sends)
    resolving(stall).resolve(session, outcome, "it is not worth a channel")
    stall.app.refunds.retry(stall.app.refunds._is_due)
    assert len(stall.wallet.sends) == sends + (outcome == "refund")
    assert stall.saved(session).refund_status is (RefundStatus.KEPT if outcome == "keep" else RefundStatus.SENT)
