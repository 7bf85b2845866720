"""What the cable makes of the end: what it keeps on record, what was mined of it, and who owes something for it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cable.conftest import Bench
from tests.cable.fake_funds import FakeFunds, KeptAggregates
from tests.cable.fakes import SOCKET_NODE, wait_for
from tests.cable.test_buyer import SESSION
from tests.cable.test_onchain import aggregate, dear, row, until_charged, until_versions
from tests.cable.test_onchain_caps import TARIFF, Trade
from wattline.cable.pay.settlement import (
    KEEP_BLOCKS,
    Aftermath,
    Bill,
    Evidence,
    agreed_sat,
    ended,
    forgive,
    judged,
    least_refund_msat,
)
from wattline.cable.policy.events import FinalFailed, FinalSigned, OnchainEvent, PaymentEvent, Receipt, SignedReceipt
from wattline.cable.service import make_aftermath
from wattline.core.aggregate import AggregateInput
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.bitcoin.psbt import unsigned_tx
from wattline.core.ledger.cable import CableAggregate, CableAggregateStatus
from wattline.core.lightning.onchain import WalletTx
from wattline.v1 import charging_pb2 as pb

SCRIPT = "5120" + "ab" * 32
INPUT = Outpoint("11" * 32, 0)
NEWEST, FINAL = 2_425, 1_400
HELD = CableAggregate(
    session_id=SESSION,
    node_id=SOCKET_NODE,
    address="socket-1",
    script=SCRIPT,
    change_address="cable-1",
    base_psbt="",
    inputs_weight=272,
    inputs=(AggregateInput(INPUT, 10_000),),
    fee_sat=156,
    floor_sat=600,
    number=4,
    signed_sat=NEWEST,
    accepted_sat=NEWEST,
    final_sat=FINAL,
    created_at=1,
)
ENDED, SETTLED, UNANSWERED, CHEATED, VOID = (
    CableAggregateStatus.ENDED,
    CableAggregateStatus.SETTLED,
    CableAggregateStatus.UNANSWERED,
    CableAggregateStatus.CHEATED,
    CableAggregateStatus.VOID,
)


def receipt(value_sat: int) -> Receipt:
    return Receipt(
        session_id=SESSION,
        node_id=SOCKET_NODE,
        outlet_id="A1",
        stop_reason="cable_closed",
        tariff=TARIFF,
        energy_uwh=0,
        delivered_ms=0,
        credited_msat=NEWEST * 1000,
        charged_msat=FINAL * 1000,
        refunded_msat=0,
        balance_msat=(value_sat - FINAL) * 1000,
        payments=4,
        refund_status="owed",
        refund_fee_msat=0,
        refund_payment_hash="",
        signed=SignedReceipt(b"", ""),
        onchain_credited_msat=NEWEST * 1000,
        onchain_value_sat=value_sat,
    )


def mined(value_sat: int) -> WalletTx:
    return WalletTx("22" * 32, 101, frozenset({INPUT}), ((SCRIPT, value_sat),) if value_sat else ())


@pytest.fixture
def onchain(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A dear session on-chain, whose end is not waited for long."""
    bench.payment["method"] = "onchain"
    dear(bench)
    monkeypatch.setattr("wattline.cable.service.MINED_WAIT_S", 0.0)
    monkeypatch.setattr("wattline.cable.closing.SETTLE_MS", 800)
    monkeypatch.setattr("wattline.cable.closing.RECEIPT_MS", 500)
    bench.socket.final_timeout_s = 0.5
    return bench


# What may be mined, and what is due.


@pytest.mark.parametrize(
    ("known", "told", "value_sat", "status"),
    [
        (False, None, NEWEST, UNANSWERED),
        (False, None, FINAL, SETTLED),
        (False, receipt(NEWEST), NEWEST, UNANSWERED),
        (False, receipt(FINAL), NEWEST, CHEATED),
        (False, receipt(FINAL), FINAL, SETTLED),
        (True, None, NEWEST, CHEATED),
        (True, None, FINAL, SETTLED),
        (True, receipt(NEWEST), NEWEST, CHEATED),
        (True, receipt(FINAL), FINAL + 1, CHEATED),
        (False, receipt(0), FINAL, CHEATED),
        (False, receipt(0), 0, VOID),
    ],
)
def test_more_than_the_socket_agreed_to_is_cheating_and_more_than_the_final_version_is_owed(
    known: bool, told: Receipt | None, value_sat: int, status: CableAggregateStatus
) -> None:
    over = ended(replace(HELD, is_final_taken=known), Evidence(None, told), 5)
    due_sat = FINAL if told is None else min(FINAL, told.onchain_value_sat)
    assert (over.status, over.final_sat, over.due_sat) == (ENDED, FINAL, due_sat)
    after = judged(over, mined(value_sat), 9)
    assert after.status is status
    assert after.final_sat == FINAL
    assert (after.mined_sat, after.closed_at) == (value_sat, 9)
    assert after.owed_sat == max(0, value_sat - due_sat)


def test_where_no_final_version_was_asked_for_the_own_meter_says_what_is_due() -> None:
    bare = replace(HELD, final_sat=None)

    def bill(most_charge_msat: int, keysend_msat: int = 0) -> Evidence:
        return Evidence(Bill(most_charge_msat, keysend_msat))

    over = ended(bare, bill(1_500_001, 200_000), 5)
    assert (over.final_sat, over.due_sat, agreed_sat(over)) == (None, 1_301, NEWEST)
    after = judged(over, mined(NEWEST), 9)
    assert (after.status, after.owed_sat) == (UNANSWERED, NEWEST - 1_301)
    assert judged(over, mined(1_301), 9).status is SETTLED
    # The floor is due in any case, and all of it is due where a socket charges rightly.
    assert ended(bare, bill(1_000), 5).due_sat == 600
    assert judged(ended(bare, bill(NEWEST * 1000), 5), mined(NEWEST), 9).status is SETTLED
    # Nothing is due on-chain where Lightning has paid for everything.
    assert judged(ended(bare, bill(5_000, 5_000), 5), mined(NEWEST), 9).owed_sat == NEWEST


def test_of_the_own_bill_and_the_receipt_the_smaller_is_due() -> None:
    bare = replace(HELD, final_sat=None)
    bill = Bill(1_200_000, 0)
    assert ended(bare, Evidence(bill, receipt(NEWEST)), 5).due_sat == 1_200  # it charges 1 400
    assert ended(bare, Evidence(Bill(2_000_000, 0), receipt(NEWEST)), 5).due_sat == FINAL
    # What is taken by the receipt is the most, too.
    assert ended(bare, Evidence(bill, receipt(902)), 5).due_sat == 902
    assert judged(ended(bare, Evidence(bill, receipt(902)), 5), mined(NEWEST), 9).status is CHEATED


def test_what_a_socket_keeps_by_its_offer_is_not_owed() -> None:
    kept = replace(receipt(NEWEST), refund_status="kept", charged_msat=(NEWEST - 50) * 1000)
    bare = replace(HELD, final_sat=None)
    bill = Bill((NEWEST - 50) * 1000, 0)
    assert ended(bare, Evidence(bill, kept, min_refund_msat=50_001), 5).due_sat == NEWEST
    assert ended(bare, Evidence(bill, kept, min_refund_msat=50_000), 5).due_sat == NEWEST - 50


def test_a_refund_may_be_less_by_its_own_fee_but_not_by_much() -> None:
    owing = judged(ended(HELD, Evidence(), 5), mined(NEWEST), 9)
    assert least_refund_msat(owing) == 1_025_000 - 51_250 - 10_000
    assert least_refund_msat(replace(owing, mined_sat=FINAL + 1)) == 1


# A final version is made once.


class FinalTrade(Trade):
    """A trade that comes to its final version."""

    def __init__(self) -> None:
        self.finals: list[int] = []
        self.told: list[OnchainEvent] = []
        super().__init__()

    def aggregate_version(self, number: int, psbt: bytes, is_final: bool) -> bool:
        if not is_final:
            return super().aggregate_version(number, psbt, is_final)
        value_sat = unsigned_tx(psbt).outputs[0].value_sat
        assert self.memory.rows[SESSION].final_sat == value_sat, "it is on record before it is handed over"
        self.finals.append(value_sat)
        return True

    def on_event(self, event: PaymentEvent | OnchainEvent) -> None:
        if isinstance(event, FinalSigned | FinalFailed):
            self.told.append(event)
        else:
            super().on_event(event)


def grown() -> FinalTrade:
    """One whose newest version pays more than the final ones of these tests."""
    trade = FinalTrade()
    for _ in range(3):
        trade.step("deliver", 5_000)
        trade.step("accept", 0)
    assert trade.held[-1][1] > 651
    return trade


def test_a_final_version_is_on_record_before_it_leaves_and_never_signed_with_another_value() -> None:
    trade = grown()
    trade.payments.sign_final(650)
    trade.payments.sign_final(650)
    trade.payments.sign_final(640)
    assert trade.finals == [650, 650]
    assert trade.told[:2] == [FinalSigned(650), FinalSigned(650)]
    assert trade.told[2] == FinalFailed("a final version of 640 sat is wanted, one of 650 sat was signed")
    signed = trade.memory.rows[SESSION]
    assert (signed.final_sat, signed.signed_sat) == (650, trade.held[-1][1])


def test_after_a_kill_the_final_version_of_the_last_run_is_the_only_one() -> None:
    trade = grown()
    trade.payments.sign_final(650)
    trade.begin()
    trade.payments.sign_final(651)
    assert trade.finals == [650]
    assert trade.told[-1] == FinalFailed("a final version of 651 sat is wanted, one of 650 sat was signed")
    trade.payments.sign_final(650)
    assert trade.finals == [650, 650]


@pytest.mark.parametrize("is_known", [True, False], ids=["reserved at a known height", "by an earlier wattline"])
@given(st.lists(st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 1_000)), max_size=8))
def test_inputs_are_kept_for_so_many_blocks_whatever_the_clock_says(
    is_known: bool, starts: list[tuple[int, int]]
) -> None:
    """Each time that the cable starts: by how much its clock was set meanwhile, and how many blocks have passed."""
    funds, now_s = FakeFunds(), 1_000_000_000
    base = funds.reserve([item.outpoint for item in funds.outputs()])
    first = funds.blocks if is_known else 0
    memory = KeptAggregates()
    memory.save(
        replace(HELD, status=ENDED, base_psbt=base.psbt, due_sat=FINAL, created_at=now_s, kept_from_height=first)
    )
    for jump_s, blocks in starts:
        now_s += jump_s
        funds.blocks += blocks
        first = first or funds.blocks
        before = funds.renewals
        now = partial(int, now_s)
        aftermath = Aftermath(funds, memory, None, lambda text: None, now, lambda session_id: Evidence())  # type: ignore[arg-type]
        aftermath.look(memory.rows[HELD.session_id], keep=True)
        assert (funds.renewals > before) is (funds.blocks - first < KEEP_BLOCKS)


def test_the_inputs_stay_reserved_while_versions_are_out(onchain: Bench) -> None:
    onchain.start()
    until_charged(onchain)
    onchain.finish()
    kept = row(onchain)
    assert kept.status is ENDED
    assert {item.outpoint for item in kept.inputs} <= set(onchain.funds.reserved)


# What a socket does afterwards.


def silent(onchain: Bench) -> None:
    """The socket says nothing of the final version, nor of the end."""
    onchain.socket.swallows_finals = True
    onchain.socket.gives_receipt = False
    onchain.socket.refund_to = lambda description, amount: None


def newest_is_mined(onchain: Bench) -> CableAggregate:
    """One session to its end, of which the newest version is mined; as it was ended."""
    onchain.wish.__init__()  # type: ignore[misc]
    count = len(onchain.socket.sessions)
    onchain.start()
    wait_for(lambda: len(onchain.socket.sessions) == count + 1, what=f"a session; {onchain.listener.lines}")
    wait_for(lambda: onchain.listener.snapshots and onchain.shown.session_id == onchain.socket.session.session_id)
    until_charged(onchain)
    onchain.finish()
    over = row(onchain)
    held = aggregate(onchain)
    value_sat, tx = held.held[held.txids[held.number]]
    assert over.final_sat is not None
    assert over.final_sat < value_sat
    onchain.funds.mine(tx)
    onchain.node.height = onchain.funds.blocks
    # Meanwhile the wallet has got its change.
    onchain.funds.free.append(replace(onchain.funds.free[-1], outpoint=Outpoint(tx.txid, 1), blockheight=90))
    return over


def now(onchain: Bench, over: CableAggregate) -> CableAggregate:
    found = onchain.ledger.cable_aggregates.of(over.session_id)
    assert found is not None
    return found


def test_a_socket_that_stays_silent_and_has_the_newest_mined_is_told_of_remembered_and_then_refused(
    onchain: Bench,
) -> None:
    silent(onchain)
    first = newest_is_mined(onchain)
    second = newest_is_mined(onchain)
    owed = now(onchain, first)
    assert owed.status is UNANSWERED
    lines = onchain.listener.lines
    assert any(
        f"owes {owed.owed_sat} sat for session {first.session_id}" in line and line.startswith("warning: the socket")
        for line in lines
    ), lines
    assert any(line.startswith("warning: this socket owes something on-chain") for line in lines), lines
    # At the next start it is the second one.
    onchain.wish.__init__()  # type: ignore[misc]
    summary = onchain.run()
    assert summary.stop_reason == "socket_owes"
    assert now(onchain, second).status is UNANSWERED
    assert "wattline cable forgive" in summary.message
    for over in (first, second):
        assert f"{now(onchain, over).owed_sat} sat for session {over.session_id}" in summary.message
    assert len(onchain.socket.sessions) == 2
    assert forgive(onchain.ledger.cable_aggregates, SOCKET_NODE) == 2
    assert forgive(onchain.ledger.cable_aggregates, SOCKET_NODE) == 0
    onchain.start()
    wait_for(lambda: len(onchain.socket.sessions) == 3)
    until_versions(onchain, 1)
    onchain.finish()


def test_what_is_owed_is_settled_once_it_has_come_back(onchain: Bench) -> None:
    silent(onchain)
    over = newest_is_mined(onchain)
    refund = f"keysend: wattline:1:{over.session_id}:0"
    assert over.final_sat is not None
    owed_msat = (over.accepted_sat - over.final_sat) * 1000
    onchain.node.receive(refund, owed_msat // 2)
    onchain.funds.free = []  # so that a run looks, and ends
    assert onchain.run().stop_reason == "no_onchain_funds"
    assert now(onchain, over).status is UNANSWERED
    onchain.node.receive(refund, owed_msat - 1_000)
    onchain.node.is_down = False
    assert onchain.run().stop_reason == "no_onchain_funds"
    assert now(onchain, over).status is SETTLED
    assert f"what the socket owed for session {over.session_id} has come back" in onchain.listener.lines


def test_a_signed_receipt_that_owes_the_rest_of_the_newest_and_never_pays_it_is_remembered(onchain: Bench) -> None:
    def owe(told: pb.Receipt) -> None:
        told.refunded_msat = told.returned_msat
        told.balance_msat = told.credited_msat - told.charged_msat - told.refunded_msat
        told.refund_status = pb.REFUND_STATUS_OWED

    onchain.socket.refuses_finals = True
    onchain.socket.lie_receipt = owe
    onchain.socket.refund_to = lambda description, amount: None
    over = newest_is_mined(onchain)
    assert agreed_sat(over) == over.accepted_sat
    onchain.funds.free = []
    onchain.run()
    assert now(onchain, over).status is UNANSWERED
    assert now(onchain, over).owed_sat == over.accepted_sat - (over.final_sat or 0)
    assert onchain.ledger.cable_sessions.unfinished() is None


def test_a_socket_that_said_that_it_has_the_final_version_and_has_the_newest_mined_has_cheated(onchain: Bench) -> None:
    onchain.socket.final_timeout_s = 3.0
    onchain.socket.gives_receipt = False
    over = newest_is_mined(onchain)
    assert agreed_sat(over) == over.final_sat
    onchain.wish.__init__()  # type: ignore[misc]
    assert onchain.run().stop_reason == "socket_cheated"
    assert now(onchain, over).status is CHEATED


def test_after_a_final_version_whose_cable_died_the_rest_of_the_newest_is_owed_all_the_same(onchain: Bench) -> None:
    silent(onchain)
    onchain.start()
    until_charged(onchain)
    onchain.socket.final_timeout_s = 10.0
    onchain.wish.want("done", "enough")
    wait_for(lambda: any(is_final for _, _, is_final in onchain.socket.versions))
    onchain.crash()
    died = row(onchain)
    assert died.status is CableAggregateStatus.OPEN
    held = aggregate(onchain)
    assert died.final_sat == held.due_sat
    value_sat, tx = held.held[held.txids[held.number]]
    onchain.funds.mine(tx)
    aftermath = make_aftermath(onchain.settings, onchain.equipment, onchain.listener.event)
    aftermath.look_at_all(None)
    owed = now(onchain, died)
    assert (owed.status, owed.owed_sat) == (UNANSWERED, value_sat - held.due_sat)


def test_a_weight_that_takes_the_fee_above_its_limit_reserves_nothing(
    onchain: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By P2TR inputs and outputs it is 156 sat; what the node says that they weigh makes it more than allowed.
    onchain.onchain["max_fee_sat"] = 170
    monkeypatch.setattr("tests.cable.fake_funds.INPUT_WEIGHT", 1_000)
    summary = onchain.run()
    assert summary.stop_reason == "onchain_fee_too_high"
    assert onchain.funds.reserved == {}
    assert onchain.funds.signed == []
