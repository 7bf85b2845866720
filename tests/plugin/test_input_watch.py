"""The watch on the chain: whose inputs move, when a session has to end, and what becomes of what was broadcast."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.plugin.fakes import CABLE, node_id
from tests.plugin.still_stall import (
    CONFIRMATIONS,
    EXPOSURE_CAP_SAT,
    Killed,
    StillStall,
    Wallet,
)
from wattline.core.aggregate import MSAT_PER_SAT, AggregateStatus, lost_msat
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.ledger.database import BUSY_TIMEOUT_MS, LedgerError
from wattline.core.ledger.ledger import Ledger
from wattline.core.session.state import State, StopReason
from wattline.plugin.onchain.input_watch import BLOCK_S

OTHER_CABLE = node_id(5)
VALUE_SAT = 2000


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[StillStall]:
    with StillStall(tmp_path / "socket.sqlite3") as stall:
        yield stall


@pytest.fixture
def session(stall: StillStall) -> str:
    return stall.open()


@pytest.fixture
def wallet(stall: StillStall, session: str) -> Wallet:
    """Of a cable that gets its energy for what it has handed over: two versions, of which half is used."""
    return served(stall, session)


def served(stall: StillStall, session: str, *coins: int) -> Wallet:
    wallet = Wallet.of(stall.chain, stall.invite(session).script, *coins)
    assert stall.hand_over(session, 1, wallet.sign(1000)) == ""
    assert stall.hand_over(session, 2, wallet.sign(VALUE_SAT)) == ""
    stall.look()
    stall.deliver(1000 * MSAT_PER_SAT)
    assert stall.hardware["A1"].closed
    return wallet


def broadcast(stall: StillStall, session: str, wallet: Wallet) -> str:
    """All of it is used, the session ends, and the newest version is in the mempool; its txid."""
    stall.deliver(1000 * MSAT_PER_SAT)
    stall.close_session(session)
    stall.work()
    stall.look()
    txid = wallet.versions[1].txid
    assert txid in stall.chain.mempool
    return txid


def check_fraud(stall: StillStall, session: str, wallet: Wallet, reason: StopReason) -> None:
    assert not stall.hardware["A1"].closed
    assert stall.session(session).stop_reason is reason
    assert stall.saved(session).state is State.SETTLING, "no restart lets it deliver again"
    assert stall.aggregate(session).choice_reason == reason
    assert stall.ledger.refused_cable(CABLE) == reason
    assert [stall.ledger.refused_input(outpoint) for outpoint in wallet.inputs] == [reason] * len(wallet.inputs)


# While an aggregate grows.


def test_a_double_spend_opens_the_relay_at_once_and_the_cable_is_refused(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    double = wallet.double_spend(1000)
    stall.chain.offer(double)
    stall.look()
    check_fraud(stall, session, wallet, StopReason.DOUBLE_SPENT)
    assert stall.chain.sent == {wallet.versions[1].txid}, "ours was tried all the same"
    stall.work()
    stall.mine(CONFIRMATIONS)
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.mined_txid) == (AggregateStatus.LOST, double.txid)
    assert aggregate.lost_msat == VALUE_SAT * MSAT_PER_SAT
    stall.app.refunds.retry()
    assert not stall.wallet.sends
    assert not stall.ledger.owed_refunds()


def test_an_older_version_in_the_mempool_is_a_fraud_and_costs_the_difference(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.deliver(500 * MSAT_PER_SAT)
    stall.chain.offer(wallet.versions[0])
    stall.look()
    check_fraud(stall, session, wallet, StopReason.OLDER_VERSION)
    stall.work()
    stall.mine(CONFIRMATIONS)
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.lost_msat) == (AggregateStatus.LOST, (VALUE_SAT - 1000) * MSAT_PER_SAT)
    assert lost_msat(aggregate.lost_msat, stall.saved(session).account.balance_msat) == 500 * MSAT_PER_SAT


@pytest.mark.parametrize("which", ["older", "made"])
@pytest.mark.parametrize("mined", [False, True])
def test_whatever_pays_what_is_owed_is_no_fraud(
    stall: StillStall, session: str, wallet: Wallet, which: str, mined: bool
) -> None:
    stall.app.sessions.save_changed()
    tx = wallet.versions[0] if which == "older" else wallet.sign(1001, fee_sat=900)
    if mined:
        stall.chain.mine([tx])
    else:
        stall.chain.offer(tx)
    stall.look()
    assert stall.session(session).stop_reason is StopReason.PAID_EARLY
    assert not stall.hardware["A1"].closed
    stall.work()
    stall.mine(CONFIRMATIONS)
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.mined_txid) == (AggregateStatus.SETTLED, tx.txid)
    assert stall.ledger.refused_cable(CABLE) is None
    assert lost_msat(aggregate.lost_msat, stall.saved(session).account.balance_msat) == 0
    stall.app.refunds.retry()
    # What never came does not go back.
    assert stall.wallet.sends == ([] if which == "older" else [(CABLE, 1000)])


def test_a_double_spend_that_was_mined_without_being_seen_is_found_at_the_new_block(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.chain.mine([wallet.double_spend(1000)])
    stall.look()
    check_fraud(stall, session, wallet, StopReason.DOUBLE_SPENT)


def test_of_several_inputs_one_spent_elsewhere_is_enough(stall: StillStall, session: str) -> None:
    wallet = served(stall, session, 50_000, 50_000)
    last = sorted(wallet.inputs)[-1:]
    stall.chain.mine([wallet.double_spend(1000, last)])
    stall.look()
    check_fraud(stall, session, wallet, StopReason.DOUBLE_SPENT)
    stall.work()
    stall.mine(CONFIRMATIONS + 1)
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.lost_msat) == (AggregateStatus.LOST, VALUE_SAT * MSAT_PER_SAT)


def test_the_mempool_is_looked_at_every_time(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.look()
    stall.chain.looks.clear()
    stall.look()
    assert stall.chain.looks == ["tip", "mempool_spenders"], "and nothing else, for there is no new block"
    stall.chain.offer(wallet.double_spend(1000))
    stall.look()
    assert not stall.is_live(session)


def test_a_cable_that_broadcasts_the_newest_version_ends_its_session_and_is_no_cheat(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.chain.offer(wallet.versions[1])
    stall.look()
    assert stall.session(session).stop_reason is StopReason.PAID_EARLY
    assert not stall.hardware["A1"].closed
    assert stall.ledger.refused_cable(CABLE) is None
    stall.work()
    stall.mine(CONFIRMATIONS)
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.mined_value_sat) == (AggregateStatus.SETTLED, VALUE_SAT)


def test_a_double_spend_is_seen_after_a_restart_too(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.chain.offer(wallet.double_spend(1000))
    stall.kill()
    assert stall.is_live(session)
    stall.look()
    check_fraud(stall, session, wallet, StopReason.DOUBLE_SPENT)


@pytest.mark.parametrize("calls", range(0, 60, 3))
def test_a_kill_while_a_double_spend_is_dealt_with_leaves_nothing_undone(
    stall: StillStall, session: str, wallet: Wallet, calls: int
) -> None:
    stall.app.sessions.save_changed()
    stall.chain.offer(wallet.double_spend(1000))
    stall.tripwire.left = calls
    try:
        stall.look()
    except Killed:
        stall.boot()
        if stall.aggregate(session).status is AggregateStatus.SENT:
            assert not stall.is_live(session)
    stall.tripwire.left = None
    stall.look()
    check_fraud(stall, session, wallet, StopReason.DOUBLE_SPENT)


def test_the_cable_is_refused_even_when_bitcoind_goes_before_ours_is_broadcast(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    def away(_: object) -> None:
        stall.chain.away = True

    stall.chain.offer(wallet.double_spend(1000))
    stall.chain.before_broadcast = away
    assert not stall.look()
    check_fraud(stall, session, wallet, StopReason.DOUBLE_SPENT)


def test_a_version_whose_check_hangs_holds_up_the_watch_on_no_session(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    other = stall.open(2, "A2", OTHER_CABLE)
    second = Wallet.of(stall.chain, stall.invite(other, OTHER_CABLE).script)
    assert stall.hand_over(other, 1, second.sign(VALUE_SAT)) == ""
    verdict = stall.chain.verdict
    under_way, may_answer = threading.Event(), threading.Event()

    def hangs(raw: str) -> object:
        found = verdict(raw)
        under_way.set()
        assert may_answer.wait(BUSY_TIMEOUT_MS / 1000)
        return found

    stall.chain.verdict = hangs  # type: ignore[method-assign,assignment]
    with ThreadPoolExecutor(1) as pool:
        handed_over = pool.submit(stall.hand_over, session, 3, wallet.sign(VALUE_SAT + 100))
        assert under_way.wait(5)
        stall.chain.offer(wallet.double_spend(1000))
        stall.chain.offer(second.double_spend(1000))
        begun = time.monotonic()
        assert stall.look()
        assert time.monotonic() - begun < BUSY_TIMEOUT_MS / 1000 / 2
        assert not stall.is_live(session)
        assert not stall.is_live(other)
        may_answer.set()
        assert handed_over.result(5) == "session_closed"
    assert stall.aggregate(session).chosen_number == 2, "what came too late was not taken"


def test_an_input_whose_own_block_is_taken_back_is_no_fraud(stall: StillStall, session: str) -> None:
    script = stall.invite(session).script
    wallet = Wallet(stall.chain, [stall.chain.fund(100_000, depth=1)], script)
    assert stall.hand_over(session, 1, wallet.sign(1000)) == ""
    stall.chain.reorg(1)
    assert wallet.inputs[0].txid in stall.chain.mempool
    stall.look()
    assert stall.is_live(session)
    assert stall.ledger.refused_cable(CABLE) is None


def test_what_is_wrong_with_one_session_does_not_keep_the_others(
    stall: StillStall, session: str, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = stall.open(2, "A2", OTHER_CABLE)
    second = Wallet.of(stall.chain, stall.invite(other, OTHER_CABLE).script)
    stall.hand_over(other, 1, second.sign(1500))
    choose = Ledger.choose

    def broken(ledger: Ledger, session_id: str, *rest: object) -> object:
        if session_id == session:
            raise LedgerError("ledger_failed", "a damaged page")
        return choose(ledger, session_id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "choose", broken)
    stall.chain.offer(wallet.double_spend(1000))
    stall.chain.offer(second.double_spend(1000))
    assert stall.look()
    assert not stall.is_live(session), "the relay opens whatever becomes of the books"
    assert stall.aggregate(other).status is AggregateStatus.SENT


# When a session has to end although nothing is wrong with its inputs.


@pytest.mark.parametrize(("floor_per_kw", "ends"), [(257, False), (262, True), (1000, True)])
def test_a_floor_that_rises_towards_the_fee_rate_ends_the_session(
    stall: StillStall, session: str, wallet: Wallet, floor_per_kw: int, ends: bool
) -> None:
    stall.chain.floor_per_kw, stall.chain.is_raised = floor_per_kw, True  # it pays 324 sat/kw
    stall.time_s += 10
    stall.look()
    assert stall.session(session).stop_reason is (StopReason.FEERATE_LOW if ends else None)
    assert stall.hardware["A1"].closed is not ends


def test_a_fee_rate_near_a_floor_that_is_not_raised_is_no_reason_to_end(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.chain.floor_per_kw = 320
    stall.time_s += 10
    stall.look()
    assert stall.is_live(session)


def test_below_the_floor_it_is_sent_again_until_the_mempool_takes_it(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.chain.floor_per_kw, stall.chain.is_raised = 1000, True
    stall.time_s += 10
    stall.look()
    stall.work()
    stall.look()
    chosen = stall.ledger.version(session, stall.aggregate(session).chosen_number or 0)
    assert chosen is not None
    assert not stall.chain.mempool
    assert chosen.txid in stall.chain.sent
    stall.chain.floor_per_kw, stall.chain.is_raised = 250, False
    stall.time_s += 10
    stall.look()
    assert chosen.txid in stall.chain.mempool
    stall.mine(CONFIRMATIONS)
    assert stall.aggregate(session).status is AggregateStatus.SETTLED


def test_a_payment_is_not_kept_back_for_longer_than_allowed(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.look()
    stall.time_s += stall.settings.max_age_s - 10
    stall.look()
    assert stall.is_live(session)
    stall.time_s += 10
    stall.look()
    assert stall.session(session).stop_reason is StopReason.PAYMENT_AGED


def test_a_payment_that_has_no_version_yet_is_not_as_old_as_the_chain(stall: StillStall, session: str) -> None:
    stall.chain.mine(count=stall.settings.max_age_s // BLOCK_S + 1)
    wallet = Wallet.of(stall.chain, stall.invite(session).script)
    stall.look()
    assert stall.hand_over(session, 1, wallet.sign(1000)) == ""
    stall.mine()
    assert stall.is_live(session)


def test_the_blocks_before_a_restart_make_a_payment_older(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.chain.mine(count=stall.settings.max_age_s // BLOCK_S)
    stall.kill()
    stall.boot()
    stall.look()
    assert stall.session(session).stop_reason is StopReason.PAYMENT_AGED


def test_a_wall_clock_that_is_set_makes_no_payment_older(
    stall: StillStall, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stall.look()
    monkeypatch.setattr(stall.watch, "_now", lambda: 2**33)
    stall.time_s += 10
    stall.look()
    assert stall.is_live(session)


def test_at_the_exposure_cap_a_session_delivers_what_is_paid_and_then_ends(stall: StillStall, session: str) -> None:
    wallet = Wallet.of(stall.chain, stall.invite(session).script)
    for number, value_sat in enumerate(range(2000, EXPOSURE_CAP_SAT + 1, 2000), start=1):
        assert stall.hand_over(session, number, wallet.sign(value_sat)) == ""
        stall.deliver(1900 * MSAT_PER_SAT)
        stall.time_s += 10
        stall.look()
        assert stall.is_live(session)
    stall.deliver(500 * MSAT_PER_SAT)
    assert stall.session(session).state is State.PAUSED
    stall.time_s += 10
    stall.look()
    assert stall.session(session).stop_reason is StopReason.EXPOSURE_CAP
    stall.work()
    stall.mine(CONFIRMATIONS)
    assert stall.aggregate(session).mined_value_sat == EXPOSURE_CAP_SAT


def test_a_paused_session_that_may_still_pay_goes_on(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.deliver(1000 * MSAT_PER_SAT)
    assert stall.session(session).state is State.PAUSED
    stall.time_s += 10
    stall.look()
    assert stall.is_live(session)


# What was chosen.


def test_a_settlement_is_followed_to_its_confirmations_and_described(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    txid = broadcast(stall, session, wallet)
    assert stall.funds.told == [txid], "the node knows of its own output"
    stall.mine(CONFIRMATIONS - 1)
    assert stall.aggregate(session).status is AggregateStatus.SENT
    stall.mine()
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.mined_txid, aggregate.lost_msat) == (AggregateStatus.SETTLED, txid, 0)
    assert stall.funds.descriptions == {Outpoint(txid, 0): f"wattline:1:{session}"}
    assert stall.watch.tip_height == stall.chain.blocks[-1].height


def test_the_income_is_described_as_soon_as_the_bookkeeper_knows_of_it(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    txid = broadcast(stall, session, wallet)
    stall.funds.knows_income = False
    stall.mine()
    assert not stall.funds.descriptions
    stall.funds.knows_income = True
    stall.mine()
    assert Outpoint(txid, 0) in stall.funds.descriptions


def test_a_reorg_that_takes_it_out_is_noticed_and_it_is_sent_again(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    txid = broadcast(stall, session, wallet)
    stall.mine()
    assert stall.aggregate(session).mined_txid == txid
    stall.chain.reorg(1)
    stall.chain.drop(txid)
    stall.look()
    assert stall.aggregate(session).mined_txid is None
    assert stall.events("aggregate_unmined") == 1
    assert txid in stall.chain.mempool
    stall.mine(CONFIRMATIONS)
    assert stall.aggregate(session).status is AggregateStatus.SETTLED


def test_it_is_found_in_a_block_below_the_tip_at_which_it_was_first_seen(stall: StillStall, session: str) -> None:
    wallet = served(stall, session)
    height = stall.chain.blocks[-1].height
    txid = broadcast(stall, session, wallet)
    tx = stall.chain.mempool[txid]
    stall.chain.reorg(2, [tx])
    stall.look()
    aggregate = stall.aggregate(session)
    assert aggregate.mined_txid == txid
    assert (aggregate.mined_height or 0) < height


def test_a_double_spend_mined_while_ours_is_in_flight_is_booked_as_lost(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    broadcast(stall, session, wallet)
    stall.chain.mine([wallet.double_spend(1000)])
    stall.look()
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.lost_msat) == (AggregateStatus.SENT, VALUE_SAT * MSAT_PER_SAT)
    assert stall.ledger.refused_cable(CABLE) == StopReason.DOUBLE_SPENT
    stall.mine(CONFIRMATIONS)
    assert stall.aggregate(session).status is AggregateStatus.LOST


def test_a_loss_is_taken_back_when_a_reorg_lets_ours_in_after_all(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    txid = broadcast(stall, session, wallet)
    ours, double = stall.chain.mempool[txid], wallet.double_spend(1000)
    stall.chain.mine([double])
    stall.look()
    assert stall.aggregate(session).lost_msat
    stall.chain.reorg(1)
    stall.chain.drop(double.txid)
    stall.chain.mine([ours])
    stall.look()
    stall.mine(CONFIRMATIONS)
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.mined_txid, aggregate.lost_msat) == (AggregateStatus.SETTLED, txid, 0)
    assert stall.ledger.refused_cable(CABLE), "that it tried is remembered"


@pytest.mark.parametrize("calls", range(0, 40, 3))
def test_a_kill_while_a_loss_is_booked_books_it_once(
    stall: StillStall, session: str, wallet: Wallet, calls: int
) -> None:
    broadcast(stall, session, wallet)
    stall.chain.mine([wallet.double_spend(1000)])
    stall.tripwire.left = calls
    try:
        stall.look()
    except Killed:
        stall.boot()
    stall.tripwire.left = None
    stall.look()
    assert stall.aggregate(session).lost_msat == VALUE_SAT * MSAT_PER_SAT
    assert stall.ledger.refused_cable(CABLE)
    assert stall.events("aggregate_mined") == 1


def test_a_replacement_of_ours_in_the_mempool_is_noticed(stall: StillStall, session: str, wallet: Wallet) -> None:
    txid = broadcast(stall, session, wallet)
    double = wallet.double_spend(5000)
    assert stall.chain.offer(double) == ""
    assert txid not in stall.chain.mempool
    stall.time_s += 10
    stall.look()
    assert stall.ledger.refused_cable(CABLE) == StopReason.DOUBLE_SPENT
    assert stall.aggregate(session).lost_msat == 0, "nothing is lost before it is mined"


def test_what_falls_out_of_the_mempool_is_sent_again(stall: StillStall, session: str, wallet: Wallet) -> None:
    txid = broadcast(stall, session, wallet)
    stall.chain.drop(txid)
    stall.time_s += 10
    stall.look()
    assert txid in stall.chain.mempool


def test_a_chosen_version_is_sent_by_the_next_process(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.deliver(1000 * MSAT_PER_SAT)
    stall.close_session(session)
    stall.work()
    assert not stall.chain.sent
    stall.kill()
    stall.look()
    assert stall.chain.sent == {wallet.versions[1].txid}


def test_the_node_is_told_later_when_it_is_away(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.funds.gone = True
    txid = broadcast(stall, session, wallet)
    assert not stall.funds.told
    stall.funds.gone = False
    stall.time_s += 10
    stall.look()
    assert stall.funds.told == [txid]


# Stuck.


def wait_in_mempool(stall: StillStall, blocks: int) -> None:
    for _ in range(blocks):
        stall.chain.mine([])
        stall.time_s += 600
        stall.look()


def test_a_stuck_settlement_is_helped_once_by_a_child(stall: StillStall, session: str, wallet: Wallet) -> None:
    txid = broadcast(stall, session, wallet)
    stall.funds.estimate_per_kw = 1000
    wait_in_mempool(stall, stall.settings.bump_after_blocks - 1)
    assert not stall.funds.children
    wait_in_mempool(stall, 5)
    (child,) = stall.funds.children
    assert stall.aggregate(session).child_txid == child
    fee_sat = (stall.chain.fee_sat(stall.chain.mempool[txid]) or 0) + (
        stall.chain.fee_sat(stall.chain.mempool[child]) or 0
    )
    assert fee_sat * 1000 // ((154 + 111) * 4) in (999, 1000), "both together pay what the node estimates"
    stall.kill()
    wait_in_mempool(stall, 10)
    assert stall.funds.children == [child]


@pytest.mark.parametrize(
    ("estimate_per_kw", "why"), [(300, "it pays enough"), (20_000, "it would cost more than half of it")]
)
def test_a_child_that_is_not_worth_it_is_not_made(
    stall: StillStall, session: str, wallet: Wallet, estimate_per_kw: int, why: str
) -> None:
    broadcast(stall, session, wallet)
    stall.funds.estimate_per_kw = estimate_per_kw
    wait_in_mempool(stall, 12)
    assert not stall.funds.children, why


def test_a_child_that_cannot_be_made_now_is_made_later(stall: StillStall, session: str, wallet: Wallet) -> None:
    broadcast(stall, session, wallet)
    stall.funds.estimate_per_kw = 1000
    stall.funds.gone = True
    wait_in_mempool(stall, 8)
    assert stall.aggregate(session).child_txid is None
    stall.funds.gone = False
    wait_in_mempool(stall, 1)
    assert stall.aggregate(session).child_txid in stall.funds.children


# The watch itself.


def test_a_bitcoind_that_came_back_some_blocks_behind_accuses_nobody(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    lost = stall.chain.blocks[-2:]
    del stall.chain.blocks[-2:]
    assert not stall.look()
    assert stall.trouble == "bitcoind_unavailable"
    assert stall.session(session).state.is_live
    assert stall.ledger.refused_cable(CABLE) is None
    stall.chain.blocks += lost
    assert stall.look()
    assert stall.session(session).state.is_live


def test_a_coin_that_is_gone_without_a_spender_ends_the_session_and_accuses_nobody(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.chain.forget(stall.aggregate(session).inputs[0].outpoint)
    stall.chain.mine()
    assert stall.look()
    assert stall.session(session).stop_reason is StopReason.INPUT_GONE
    assert stall.session(session).state is not State.DELIVERING
    assert stall.ledger.refused_cable(CABLE) is None


def test_a_bitcoind_of_another_chain_is_not_believed(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.kill()
    stall.chain.network = "bitcoin"
    stall.chain.offer(wallet.double_spend(1000))
    assert not stall.look()
    assert stall.trouble == "bitcoind_other_network"
    assert stall.ledger.refused_cable(CABLE) is None


def test_a_look_that_was_broken_off_is_made_up_for(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.chain.mine([wallet.double_spend(1000)])
    mempool_spenders = stall.chain.mempool_spenders

    def away(_: object) -> object:
        stall.chain.away = True
        return mempool_spenders([])

    stall.chain.mempool_spenders = away  # type: ignore[method-assign,assignment]
    assert not stall.look()
    stall.chain.mempool_spenders = mempool_spenders  # type: ignore[method-assign]
    stall.chain.away = False
    assert stall.look()
    assert not stall.is_live(session)
