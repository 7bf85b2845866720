"""What the watch does where chain or node do not say what they should: our own node refuses, blocks are gone, the chain
is another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugin.fakes import CABLE
from tests.plugin.still_stall import CONFIRMATIONS, StillStall, Wallet
from tests.plugin.test_input_watch import VALUE_SAT, broadcast, served
from wattline.core.aggregate import MSAT_PER_SAT, AggregateStatus
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.clock import Clock
from wattline.core.errors import UsageError
from wattline.core.lightning.onchain import WalletOutput
from wattline.core.session.state import State, StopReason
from wattline.plugin.resolving import Resolving


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[StillStall]:
    with StillStall(tmp_path / "socket.sqlite3") as stall:
        yield stall


@pytest.fixture
def session(stall: StillStall) -> str:
    return stall.open()


@pytest.fixture
def wallet(stall: StillStall, session: str) -> Wallet:
    """Of a cable that has handed over two versions, of which half is used."""
    return served(stall, session)


# What our own node does not take.


def test_what_our_own_node_refuses_is_told_it_again_ever_more_rarely_and_shown_until_it_takes_it(
    stall: StillStall, session: str, wallet: Wallet, caplog: pytest.LogCaptureFixture
) -> None:
    object.__setattr__(stall.settings, "bump_after_blocks", 1)
    stall.funds.refusal = "psbt is odd"
    txid = broadcast(stall, session, wallet)
    tries = 0
    for _ in range(200):
        stall.time_s += 1
        stall.look()
        asked, stall.funds.asked = stall.funds.asked, 0
        tries += asked
    assert 4 <= tries <= 7
    assert "does not take" in stall.watch.trouble
    assert session in stall.watch.trouble
    assert not stall.watch.intake.trouble, "other cables are served"
    assert caplog.text.count("does not take") == 1, "said once"
    stall.funds.refusal = ""
    stall.time_s += 600
    stall.look()
    assert stall.funds.told == [txid]
    assert not stall.watch.trouble
    stall.funds.estimate_per_kw = 1000
    stall.chain.mine([])
    stall.time_s += 600
    stall.look()
    assert stall.funds.children, "it can be helped by a child"
    assert stall.aggregate(session).child_txid == stall.funds.children[0]


def test_a_refusal_of_our_own_node_is_no_trouble_any_more_once_the_payment_is_in_a_block(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.funds.refusal = "Transaction outputs already in utxo set"
    broadcast(stall, session, wallet)
    assert session in stall.watch.trouble
    stall.mine()
    assert not stall.watch.trouble


# The chain is not what it was.


@pytest.mark.parametrize("is_delivering", [True, False])
def test_a_payment_in_a_block_that_bitcoind_has_deleted_is_known_by_the_own_wallet(
    stall: StillStall, session: str, wallet: Wallet, is_delivering: bool
) -> None:
    if not is_delivering:
        broadcast(stall, session, wallet)
    stall.chain.mine([wallet.versions[1]])
    stall.chain.mine(count=2)
    stall.chain.pruned_below = len(stall.chain.blocks)
    stall.look()
    assert not stall.hardware["A1"].closed
    stall.work()
    stall.look()
    stall.mine(CONFIRMATIONS)
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.mined_txid) == (AggregateStatus.SETTLED, wallet.versions[1].txid)
    assert stall.ledger.refused_cable(CABLE) is None
    assert stall.ledger.exposure_sat() == 0
    assert not stall.watch.trouble


def test_a_coin_spent_nobody_knows_by_what_ends_the_delivery_and_waits_for_the_operator(
    stall: StillStall, session: str, wallet: Wallet, caplog: pytest.LogCaptureFixture
) -> None:
    stall.chain.mine([wallet.double_spend(1000)])
    stall.chain.mine(count=2)
    stall.chain.pruned_below = len(stall.chain.blocks)
    stall.look()
    assert not stall.hardware["A1"].closed
    assert stall.session(session).stop_reason is StopReason.INPUT_GONE
    stall.work()
    stall.chain.looks.clear()
    for _ in range(5):
        stall.time_s += 10
        stall.look()
    assert stall.chain.looks.count("mined_spender") <= 2, "not all blocks are read at each look"
    assert "spender_unknown" in stall.watch.trouble
    assert caplog.text.count("settlement of session") <= 2
    assert stall.ledger.refused_cable(CABLE) is None, "nobody is accused"
    assert stall.ledger.exposure_sat() == VALUE_SAT
    at_77 = Clock(wall=lambda: 77.0)
    resolving = Resolving(
        stall.ledger,
        stall.app.older_copy,
        stall.app.onchain,
        stall.app.refunds.settle,
        at_77,
        stall.app.refunds._payer,
        stall.app.refunds.hurry,
    )
    for subject, outcome, reason in (
        (session, "refund", "x"),
        (session, "bread", "x"),
        (session, "lost", ""),
        (session, "lost", "\x1b"),
        (session, "accept", "x"),
        ("chain", "lost", "x"),
    ):
        with pytest.raises(UsageError):
            resolving.resolve(subject, outcome, reason)
    resolving.resolve(session, "lost", "looked at mempool.space")
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.lost_msat) == (AggregateStatus.LOST, VALUE_SAT * MSAT_PER_SAT)
    assert stall.ledger.exposure_sat() == 0
    event = stall.ledger.last_event("payment_resolved", session)
    assert event is not None
    assert (event.at, event.detail["reason"]) == (77, "looked at mempool.space")
    stall.look()
    assert not stall.watch.trouble


def test_a_payment_that_the_operator_says_has_come_is_settled(stall: StillStall, session: str, wallet: Wallet) -> None:
    broadcast(stall, session, wallet)
    resolving = Resolving(
        stall.ledger,
        stall.app.older_copy,
        stall.app.onchain,
        stall.app.refunds.settle,
        stall.app.clock,
        stall.app.refunds._payer,
        stall.app.refunds.hurry,
    )
    resolving.resolve(session, "paid", "it is in the wallet")
    assert stall.aggregate(session).status is AggregateStatus.SETTLED
    assert stall.ledger.exposure_sat() == 0
    with pytest.raises(UsageError, match="settled"):
        resolving.resolve(session, "lost", "no")


def test_on_another_chain_nothing_is_believed_and_nobody_accused(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.look()
    own = stall.chain.blocks
    stall.chain.blocks = own[:1]
    stall.chain.mine(count=len(own) + 100)
    for is_restarted in (False, True):
        if is_restarted:
            stall.kill()
        for _ in range(2 * CONFIRMATIONS):
            stall.chain.mine()
            stall.time_s += 600
            assert not stall.look()
            assert stall.trouble == "bitcoind_other_chain"
    assert stall.ledger.refused_cable(CABLE) is None
    assert stall.is_live(session)
    assert stall.aggregate(session).status is AggregateStatus.OPEN
    assert not stall.hardware["A1"].closed, "after a restart nothing is delivered for what nobody can look up"
    stall.chain.blocks = own
    assert stall.look()
    stall.deliver(0)
    assert stall.hardware["A1"].closed


@pytest.mark.parametrize("length", [1, 2, 5, 13, 14, 200])
def test_another_regtest_with_the_same_first_block_is_noticed_from_the_second_start_on_by_a_socket_that_holds_nothing(
    tmp_path: Path, length: int
) -> None:
    with StillStall(tmp_path / "socket.sqlite3") as stall:
        first = stall.chain.blocks[:1]
        stall.chain.blocks = list(first)
        stall.chain.mine(count=length)
        assert stall.look()
        own = stall.chain.blocks
        stall.chain.blocks = list(first)
        stall.chain.mine(count=length + 100)
        stall.kill()
        assert not stall.look()
        assert stall.trouble == "bitcoind_other_chain"
        stall.chain.blocks = own
        assert stall.look()


def test_the_operator_may_take_another_chain_for_the_right_one(stall: StillStall) -> None:
    stall.look()
    stall.chain.reorg(14)
    stall.time_s += 10
    assert not stall.look()
    Resolving(
        stall.ledger,
        stall.app.older_copy,
        stall.app.onchain,
        stall.app.refunds.settle,
        stall.app.clock,
        stall.app.refunds._payer,
        stall.app.refunds.hurry,
    ).resolve("chain", "accept", "testnet")
    assert stall.look()
    event = stall.ledger.last_event("block_remembered")
    assert event is not None
    assert event.detail["accepted_because"] == "testnet"


def test_a_bitcoind_that_does_not_know_the_coins_of_our_own_node_is_on_another_chain(stall: StillStall) -> None:
    unknown = WalletOutput(Outpoint("ab" * 32, 0), 1000, 7)
    stall.funds.holds = [unknown]
    assert not stall.look()
    assert stall.trouble == "bitcoind_other_chain"
    stall.funds.holds = [WalletOutput(stall.chain.fund(1000), 1000, 8), unknown]
    assert stall.look()


def test_another_first_block_is_another_chain(stall: StillStall) -> None:
    stall.chain.blocks[0].block_hash = "cd" * 32
    assert not stall.look()
    assert stall.trouble == "bitcoind_other_chain"


def test_after_a_restart_nothing_is_delivered_on_credit_of_the_chain_before_that_was_looked_at(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.app.sessions.save_changed()
    stall.chain.away = True
    stall.kill()
    stall.deliver(0)
    assert stall.session(session).state is State.PAUSED
    assert not stall.look()
    stall.deliver(0)
    assert not stall.hardware["A1"].closed
    stall.chain.away = False
    assert stall.look()
    assert stall.session(session).state is State.DELIVERING
    assert stall.hardware["A1"].closed
    stall.kill()
    stall.chain.offer(wallet.double_spend(1000))
    assert stall.look()
    stall.deliver(0)
    assert not stall.hardware["A1"].closed
    assert stall.session(session).stop_reason is StopReason.DOUBLE_SPENT
