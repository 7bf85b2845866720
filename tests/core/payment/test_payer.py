"""The payer, step by step."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.core.payment.payer_fakes import SOCKET, Clock, Crash, FakeStore, FakeWallet
from wattline.core.errors import RetryError, StopError, UsageError
from wattline.core.ledger.database import LedgerBusy
from wattline.core.ledger.outgoing import AlreadyPaying, Intent, IntentStatus
from wattline.core.lightning.node import NodeUnavailable, NoRoute, SendFailure, SendStatus
from wattline.core.payer import FeeTooHigh, Outcome, Payer


class Bench:
    """A payer with its fakes; ``faults`` maps a step to what goes wrong there, in turn, then nothing does."""

    def __init__(self, **faults: list[str]) -> None:
        self.clock = Clock()
        self.faults = faults
        self.store = FakeStore(self._fault)
        self.wallet = FakeWallet(self.clock, self._fault)
        self.restart()

    def _fault(self, step: str) -> str:
        left = self.faults.get(step)
        return left.pop(0) if left else "ok"

    def restart(self) -> None:
        self.payer = Payer(self.wallet, self.store, self.clock.moment, self.clock, self.clock.pass_by)

    def pay(self, sequence: int = 1, amount_msat: int = 1000, maxfee_msat: int = 50) -> Outcome:
        return self.payer.pay(order(sequence, amount_msat, maxfee_msat), timeout_s=5.0)

    def statuses(self) -> list[IntentStatus]:
        return [row.status for row in self.store.rows.values()]


def order(sequence: int = 1, amount_msat: int = 1000, maxfee_msat: int = 50) -> Intent:
    return Intent(
        purpose="increment",
        session_id="S",
        sequence=sequence,
        destination=SOCKET,
        amount_msat=amount_msat,
        maxfee_msat=maxfee_msat,
        record=f"record {sequence}",
        label=f"label {sequence}",
    )


def test_a_payment_that_arrives_is_complete_with_what_left_the_wallet() -> None:
    bench = Bench()
    bench.wallet.fee_msat = 7
    outcome = bench.pay()
    assert (outcome.status, outcome.amount_msat, outcome.amount_sent_msat) == (SendStatus.COMPLETE, 1000, 1007)
    assert outcome.failure is None
    (row,) = bench.store.rows.values()
    assert (row.status, row.amount_sent_msat, row.record) == (IntentStatus.COMPLETE, 1007, "record 1")


def test_every_payment_has_its_own_preimage() -> None:
    bench = Bench()
    hashes = {bench.pay(sequence).payment_hash for sequence in range(20)}
    assert len(hashes) == 20


@pytest.mark.parametrize(("amount_msat", "maxfee_msat"), [(0, 0), (-1, 0), (1, -1)])
def test_an_intent_that_pays_nothing_or_less_is_none(amount_msat: int, maxfee_msat: int) -> None:
    with pytest.raises(StopError, match="not"):
        order(1, amount_msat, maxfee_msat)


def test_an_intent_without_a_known_purpose_is_none() -> None:
    with pytest.raises(StopError, match="increment, refund, orphan_refund"):
        Intent(
            purpose="gift",
            session_id="S",
            sequence=1,
            destination=SOCKET,
            amount_msat=1,
            maxfee_msat=0,
            record="record",
            label="label",
        )


def test_the_intent_is_durable_before_anything_is_sent() -> None:
    bench = Bench(add=["crash before"])
    with pytest.raises(Crash):
        bench.pay()
    assert bench.wallet.sends == []
    bench = Bench(add=["crash after"])
    with pytest.raises(Crash):
        bench.pay()
    assert bench.wallet.sends == []
    assert bench.statuses() == [IntentStatus.PENDING]


def test_without_a_route_nothing_is_written_and_a_smaller_amount_may_pass() -> None:
    bench = Bench()
    bench.wallet.capacity_msat = 5000
    with pytest.raises(NoRoute):
        bench.pay(amount_msat=5001)
    assert bench.store.rows == {}
    assert bench.pay(amount_msat=5000).status is SendStatus.COMPLETE


def test_a_fee_over_the_limit_is_told_with_both_figures_and_nothing_is_sent() -> None:
    bench = Bench()
    bench.wallet.fee_msat = 80
    with pytest.raises(FeeTooHigh) as caught:
        bench.pay(maxfee_msat=79)
    assert (caught.value.fee_msat, caught.value.limit_msat) == (80, 79)
    assert isinstance(caught.value, RetryError)
    assert bench.store.rows == {}
    assert bench.pay(maxfee_msat=80).amount_sent_msat == 1080


def test_a_node_that_is_gone_before_the_intent_is_told_as_such() -> None:
    bench = Bench(find_route=["gone"])
    with pytest.raises(NodeUnavailable):
        bench.pay()
    assert bench.store.rows == {}


@pytest.mark.parametrize(
    ("step", "fault"), [("send", "gone before"), ("send", "gone after"), ("wait", "gone"), ("wait", "late")]
)
def test_what_cannot_be_known_is_in_doubt_and_counts_with_its_whole_fee_limit(step: str, fault: str) -> None:
    bench = Bench(**{step: [fault]})
    outcome = bench.pay()
    assert (outcome.status, outcome.amount_sent_msat, outcome.failure) == (SendStatus.PENDING, 1050, None)
    assert bench.statuses() == [IntentStatus.PENDING]
    with pytest.raises(AlreadyPaying):
        bench.pay()


def test_a_refusal_of_the_node_itself_is_a_failure_at_once() -> None:
    bench = Bench(send=["refused"])
    outcome = bench.pay()
    assert outcome.status is SendStatus.FAILED
    assert outcome.failure is not None
    assert outcome.failure.code == "temporary_channel_failure"
    assert outcome.amount_sent_msat == 0
    assert bench.pay().status is SendStatus.COMPLETE


def test_the_destinations_refusal_is_told_from_a_blocked_way() -> None:
    bench = Bench()
    bench.wallet.outcome = lambda: SendStatus.FAILED
    bench.wallet.refusal = SendFailure("incorrect_or_unknown_payment_details", "no", True)
    refused = bench.pay(1).failure
    assert refused is not None
    assert refused.at_destination


def test_a_failure_that_the_nodes_record_contradicts_is_not_believed() -> None:
    bench = Bench(wait=["lie"], sent=["ended"])
    outcome = bench.pay()
    assert outcome.status is SendStatus.COMPLETE
    assert bench.statuses() == [IntentStatus.COMPLETE]


@pytest.mark.parametrize("step", ["complete", "fail"])
def test_an_end_that_cannot_be_written_down_now_stays_in_doubt_and_is_settled_later(step: str) -> None:
    bench = Bench(**{step: ["busy"]})
    status = SendStatus.COMPLETE if step == "complete" else SendStatus.FAILED
    bench.wallet.outcome = lambda: status
    assert bench.pay().status is SendStatus.PENDING
    assert [outcome.status for outcome in bench.payer.resolve()] == [status]


def test_an_intent_that_cannot_be_written_down_is_not_sent() -> None:
    bench = Bench(add=["busy"])
    with pytest.raises(LedgerBusy):
        bench.pay()
    assert bench.wallet.sends == []


def test_a_failure_that_cannot_be_checked_leaves_a_doubt() -> None:
    bench = Bench(wait=["lie"], sent=["gone"])
    assert bench.pay().status is SendStatus.PENDING


def test_a_payment_cut_off_after_it_was_sent_is_found_complete_by_the_next_run() -> None:
    bench = Bench(send=["crash after"])
    with pytest.raises(Crash):
        bench.pay()
    bench.wallet.end_all()
    bench.restart()
    (outcome,) = bench.payer.resolve()
    assert (outcome.status, outcome.amount_sent_msat) == (SendStatus.COMPLETE, 1000)
    assert bench.payer.resolve() == []


def test_a_payment_under_way_is_waited_for() -> None:
    bench = Bench(wait=["gone"])
    bench.pay()
    (outcome,) = bench.payer.resolve()
    assert outcome.status is SendStatus.COMPLETE


def test_a_payment_that_stays_under_way_stays_in_doubt_and_is_waited_for_no_longer_than_told() -> None:
    bench = Bench(wait=["gone", "late"])
    bench.pay()
    began = bench.clock()
    (outcome,) = bench.payer.resolve(timeout_s=4.0)
    assert outcome.status is SendStatus.PENDING
    assert bench.clock() - began == 4.0


def test_a_payment_that_failed_meanwhile_is_settled_as_failed_and_may_be_ordered_again() -> None:
    bench = Bench(wait=["gone"])
    bench.pay()
    bench.wallet.outcome = lambda: SendStatus.FAILED
    bench.wallet.end_all()
    (outcome,) = bench.payer.resolve()
    assert outcome.status is SendStatus.FAILED
    bench.wallet.outcome = lambda: SendStatus.COMPLETE
    assert bench.pay().status is SendStatus.COMPLETE


def test_what_the_node_never_heard_of_is_sent_again_with_the_same_hash_when_asked_to() -> None:
    bench = Bench(send=["crash before"])
    with pytest.raises(Crash):
        bench.pay()
    bench.restart()
    (outcome,) = bench.payer.resolve(resend=True)
    assert outcome.status is SendStatus.COMPLETE
    assert list(bench.store.rows) == [outcome.payment_hash]
    assert bench.wallet.sends == [outcome.payment_hash] * 2


def test_what_the_node_never_heard_of_is_given_up_only_when_old() -> None:
    bench = Bench(send=["gone before"])
    bench.pay()
    (outcome,) = bench.payer.resolve()
    assert outcome.status is SendStatus.PENDING
    bench.clock.pass_by(10.0)
    (outcome,) = bench.payer.resolve()
    assert (outcome.status, outcome.amount_sent_msat) == (SendStatus.FAILED, 0)
    assert bench.statuses() == [IntentStatus.FAILED]


def test_a_payment_whose_record_the_node_may_have_deleted_stays_in_doubt() -> None:
    bench = Bench(send=["gone before"])
    bench.wallet.sent_kept_s = 3_600
    bench.pay()
    bench.clock.pass_by(4_000.0)
    (outcome,) = bench.payer.resolve()
    assert outcome.status is SendStatus.PENDING
    assert bench.statuses() == [IntentStatus.PENDING]


def test_a_clock_set_back_does_not_make_the_node_s_forgetting_look_like_its_word() -> None:
    bench = Bench(send=["gone before"])
    bench.wallet.sent_kept_s = 3_600
    bench.pay()
    bench.clock.pass_by(4_000.0)
    bench.clock.wall_offset_s = -5_000
    assert [outcome.status for outcome in bench.payer.resolve()] == [SendStatus.PENDING]
    bench.clock.pass_by(100.0)
    assert [outcome.status for outcome in bench.payer.resolve()] == [SendStatus.PENDING]


def test_a_request_that_the_node_reads_late_is_not_given_up_even_after_the_clock_jumped_ahead() -> None:
    bench = Bench(send=["gone, read late"])
    bench.pay()
    bench.clock.wall_offset_s = 100_000
    (outcome,) = bench.payer.resolve()
    assert outcome.status is SendStatus.PENDING  # read between the two questions
    (outcome,) = bench.payer.resolve()
    assert outcome.status is SendStatus.COMPLETE


def test_a_clock_set_back_does_not_keep_a_doubt_for_ever() -> None:
    bench = Bench(send=["gone before"])
    bench.pay()
    bench.clock.wall_offset_s = -100_000
    (outcome,) = bench.payer.resolve()
    assert outcome.status is SendStatus.PENDING
    bench.clock.pass_by(10.0)
    (outcome,) = bench.payer.resolve()
    assert outcome.status is SendStatus.FAILED


def test_a_resend_that_is_refused_does_not_fail_what_may_still_arrive() -> None:
    bench = Bench(send=["gone, read late", "refused"])
    bench.pay()
    (outcome,) = bench.payer.resolve(resend=True)
    assert outcome.status is SendStatus.PENDING
    bench.clock.pass_by(2.0)
    (outcome,) = bench.payer.resolve()
    assert outcome.status is SendStatus.COMPLETE


def test_a_resend_without_a_route_or_a_node_leaves_the_doubt() -> None:
    bench = Bench(send=["gone before"], find_route=["ok", "gone"])
    bench.pay()
    assert [outcome.status for outcome in bench.payer.resolve(resend=True)] == [SendStatus.PENDING]
    bench.wallet.capacity_msat = 1
    assert [outcome.status for outcome in bench.payer.resolve(resend=True)] == [SendStatus.PENDING]


def test_a_node_that_does_not_answer_leaves_every_doubt() -> None:
    bench = Bench(send=["gone before"], sent=["gone"])
    bench.pay()
    bench.clock.pass_by(100.0)
    assert [outcome.status for outcome in bench.payer.resolve()] == [SendStatus.PENDING]
    assert bench.statuses() == [IntentStatus.PENDING]


def test_resolve_leaves_a_payment_alone_that_another_thread_is_making() -> None:
    bench = Bench()
    sending, go_on = threading.Event(), threading.Event()

    def hold(step: str) -> str:
        if step == "send" and not go_on.is_set():
            sending.set()
            assert go_on.wait(10)
        return "ok"

    bench.wallet.fault = hold
    with ThreadPoolExecutor(1) as pool:
        paying = pool.submit(bench.pay)
        assert sending.wait(10)
        bench.clock.pass_by(100.0)
        assert bench.payer.resolve(resend=True) == []
        go_on.set()
        assert paying.result(10).status is SendStatus.COMPLETE
    assert len(bench.wallet.sends) == 1


def test_many_payments_at_a_time_are_each_paid_once() -> None:
    bench = Bench()
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(bench.pay, range(64)))
    assert {outcome.status for outcome in outcomes} == {SendStatus.COMPLETE}
    assert bench.wallet.spent_msat() == sum(outcome.amount_sent_msat for outcome in outcomes) == 64_000
    assert len(bench.wallet.searches) == 1


def test_a_person_decides_only_what_the_node_does_not_know() -> None:
    bench = Bench(send=["gone after", "gone before", "gone before"])
    known, lost, spent = (bench.pay(sequence).payment_hash for sequence in (1, 2, 3))
    bench.wallet.sent_kept_s = 60
    bench.clock.boot_id = ""
    with pytest.raises(UsageError, match="only just made"):
        bench.payer.decide(lost, is_paid=False, why="looked")
    bench.clock.pass_by(100 * 86_400)
    bench.payer.resolve(resend=False)
    assert [each.payment_hash for each in bench.store.pending()] == [lost, spent], "the node may have forgotten them"
    assert bench.payer.decide(lost, is_paid=False, why="looked").status is SendStatus.FAILED
    outcome = bench.payer.decide(spent, is_paid=True, why="looked")
    assert (outcome.status, outcome.amount_sent_msat) == (SendStatus.COMPLETE, 1050)
    with pytest.raises(UsageError, match="not in doubt"):
        bench.payer.decide(known, is_paid=False, why="looked")  # resolve() had the node's word


def test_a_payment_before_the_clock_was_set_is_not_taken_for_one_that_the_node_has_forgotten() -> None:
    bench = Bench(send=["gone before"])
    bench.clock.boot_id = "one"
    bench.wallet.sent_kept_s = 86_400
    bench.pay()
    bench.clock.wall_offset_s = 55 * 365 * 86_400
    bench.clock.pass_by(60.0)
    bench.payer.resolve(resend=False)
    assert bench.statuses() == [IntentStatus.FAILED]
