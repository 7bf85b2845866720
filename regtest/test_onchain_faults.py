"""What happens to payments on the chain when bitcoind goes away, the chain is reorganised, the mempool is full, or the
socket is started again: the right version is mined in the end, only one, and the ledger says what the chain says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.attacker import Coin, spend
from harness.cable import Cable
from harness.chains import MuteBitcoind
from harness.outlet_hardware import now_ms
from harness.place import COIN_SAT, Place, begin, check_books, is_refused, opened_after_ms, place
from harness.stall import METER_INTERVAL_MS, WATCH_INTERVAL_MS, Stall

from wattline.core.aggregate import AggregateStatus
from wattline.core.bitcoin.chain import Outpoint, TxOutput
from wattline.core.session.state import StopReason
from wattline.regtest.waiting import wait_until

OLD_SAT, NEW_SAT = 2_000, 5_000
HIGH_FEE_SAT = 5_000
BUSY_MS = 400
"""For the few questions of one look, on a machine that has other things to do."""
AT_ONCE_MS = WATCH_INTERVAL_MS + METER_INTERVAL_MS + BUSY_MS


@pytest.fixture(scope="module")
def ground() -> Iterator[Place]:
    with place(Place) as made:
        yield made


@pytest.fixture
def stall(ground: Place, tmp_path: Path) -> Iterator[Stall]:
    with ground.stall(tmp_path) as made:
        yield made


# bitcoind goes away.


def test_bitcoind_away_at_the_close_and_back_has_the_newest_version_mined(ground: Place, stall: Stall) -> None:
    """The cable cannot sign a final version then, nor could the socket check it."""
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)
    further = cable.wallet.signed(cable.draft(NEW_SAT + 1))
    ground.chain.stop()
    try:
        assert cable.refusal(3, further) == "onchain_unavailable"
        assert stall.credited_sat(cable.session_id) == NEW_SAT
        since_ms = now_ms()
        cable.close()
        assert opened_after_ms(stall, since_ms) <= METER_INTERVAL_MS + BUSY_MS
        wait_until("the session to be over", lambda: stall.is_over(cable.session_id))
        wait_until("the trouble to be told", lambda: stall.onchain.trouble)
        assert stall.aggregate(cable.session_id).status is AggregateStatus.SENT
    finally:
        ground.chain.start()

    ground.is_mined_as_chosen(stall, cable.session_id, NEW_SAT)
    assert check_books(stall, cable) == 0
    assert stall.onchain.trouble == ""


# Reorgs.


def test_a_settlement_that_a_reorg_took_out_is_mined_again(ground: Place, stall: Stall) -> None:
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)
    cable.close()
    block = is_mined_once(ground, stall, cable.session_id)

    ground.chain.call("invalidateblock", block)
    cable.wallet.mine_nothing(2)

    wait_until("the reorg to be booked", lambda: stall.aggregate(cable.session_id).mined_block is None)
    ground.chain.wait_for_tx(stall.receipt(cable.session_id).onchain_txid)
    ground.is_mined_as_chosen(stall, cable.session_id, stall.receipt(cable.session_id).onchain_value_sat)
    assert check_books(stall, cable) == 0
    assert stall.ledger.refused_cable(cable.node_id) is None


def test_a_double_spend_that_wins_by_a_reorg_is_booked_as_lost(ground: Place, stall: Stall) -> None:
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)
    cable.close()
    block = is_mined_once(ground, stall, cable.session_id)
    assert stall.aggregate(cable.session_id).lost_msat == 0

    ground.chain.call("invalidateblock", block)
    cable.wallet.mine_at_once(cable.wallet.raw(cable.theft(HIGH_FEE_SAT)))
    cable.wallet.mine_nothing(1)

    assert ground.settle(stall, cable.session_id) is AggregateStatus.LOST
    assert check_books(stall, cable) == stall.receipt(cable.session_id).onchain_value_sat
    assert is_refused(stall, cable)


def test_a_double_spend_that_a_reorg_undoes_is_no_loss(ground: Place, stall: Stall) -> None:
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)
    session_id = cable.session_id
    block = cable.wallet.mine_at_once(cable.wallet.raw(cable.theft(HIGH_FEE_SAT)))
    wait_until("the loss to be booked", lambda: stall.aggregate(session_id).lost_msat == NEW_SAT * 1000)

    ground.chain.call("invalidateblock", block)
    # What was in the block is in the mempool again, and pays more than ours: miners of the other chain had ours.
    cable.wallet.mine_at_once(cable.wallet.raw(cable.versions[-1]))
    cable.wallet.mine_nothing(1)

    ground.is_mined_as_chosen(stall, session_id, NEW_SAT)
    assert check_books(stall, cable) == 0
    assert is_refused(stall, cable)


def begin_with_a_coin_that_a_reorg_undoes(ground: Place, stall: Stall) -> Cable:
    """The session delivers when the block is undone with which the coin came; the coin never comes again."""
    cable = ground.cable(stall)
    (grandparent,) = cable.coins
    parent = cable.theft(HIGH_FEE_SAT)
    block = cable.wallet.mine_at_once(cable.wallet.raw(parent))
    txid = cable.wallet.call("getblock", block)["tx"][1]
    cable.coins = [Coin(Outpoint(txid, 0), parent.outputs[0].value_sat)]
    begin(cable, OLD_SAT, NEW_SAT)
    wait_until("the relay to close", stall.is_relay_closed)
    replaced = spend([grandparent], [TxOutput(COIN_SAT - 2 * HIGH_FEE_SAT, cable.wallet.script())])

    ground.chain.call("invalidateblock", block)
    cable.wallet.mine_at_once(cable.wallet.raw(replaced))
    cable.wallet.mine_nothing(1)
    return cable


def test_a_coin_that_a_reorg_undoes_opens_the_relay_at_once(ground: Place, stall: Stall) -> None:
    """Confirmed once is not for ever."""
    cable = begin_with_a_coin_that_a_reorg_undoes(ground, stall)

    assert opened_after_ms(stall, now_ms()) <= AT_ONCE_MS
    wait_until("the session to be over", lambda: stall.is_over(cable.session_id))
    assert stall.session(cable.session_id).stop_reason is StopReason.INPUT_GONE
    assert not is_refused(stall, cable), "a reorg is nobody's fault, as long as nothing is lost for good"


def test_a_coin_that_a_reorg_undoes_is_booked_as_lost(ground: Place, stall: Stall) -> None:
    cable = begin_with_a_coin_that_a_reorg_undoes(ground, stall)
    wait_until("the session to be over", lambda: stall.is_over(cable.session_id))

    assert ground.settle(stall, cable.session_id, timeout_s=5) is AggregateStatus.LOST

    assert is_refused(stall, cable)
    assert check_books(stall, cable) == NEW_SAT


# The socket is started again.


@pytest.mark.parametrize("signs_final", [True, False], ids=["final", "newest"])
def test_an_aggregate_that_was_chosen_and_never_broadcast_is_mined_after_a_restart(
    ground: Place, tmp_path: Path, signs_final: bool
) -> None:
    chain = MuteBitcoind(ground.access)
    with ground.stall(tmp_path, chain) as before:
        cable = ground.paying_cable(before, OLD_SAT, NEW_SAT)
        cable.signs_final = signs_final
        cable.close()
        assert chain.wants_to_send.wait(10)
        wait_until("the session to be over", lambda: before.is_over(cable.session_id))
        chosen = before.aggregate(cable.session_id).chosen_number
        promised = before.receipt(cable.session_id)
    assert ground.chain.call("getrawmempool") == []

    with ground.again(tmp_path, before) as after:
        ground.chain.wait_for_tx(promised.onchain_txid)
        ground.is_mined_as_chosen(after, cable.session_id, promised.onchain_value_sat)
        assert after.aggregate(cable.session_id).chosen_number == chosen == 2 + signs_final
        assert check_books(after, cable) == 0


def test_a_session_goes_on_after_a_restart_with_the_version_that_the_ledger_holds(
    ground: Place, tmp_path: Path
) -> None:
    with ground.stall(tmp_path) as before:
        cable = ground.paying_cable(before, OLD_SAT)
        before.app.sessions.save_changed()

    with ground.again(tmp_path, before) as after:
        cable.resume(after)
        invited = cable.request().onchain_invitation
        assert (invited.newest_number, invited.newest_value_sat, invited.script) == (1, OLD_SAT, cable.script)
        assert after.credited_sat(cable.session_id) == OLD_SAT
        cable.pay(NEW_SAT)
        wait_until("the relay to close", after.is_relay_closed)
        cable.close()

        wait_until("the session to be over", lambda: after.is_over(cable.session_id))
        (due,) = {message.value_sat for message in cable.finals_due}
        ground.is_mined_as_chosen(after, cable.session_id, due)
        assert check_books(after, cable) == 0


def test_a_double_spend_while_the_socket_was_away_ends_the_session_at_its_return(ground: Place, tmp_path: Path) -> None:
    with ground.stall(tmp_path) as before:
        cable = ground.paying_cable(before, OLD_SAT, NEW_SAT)
        before.app.sessions.save_changed()
    cable.wallet.mine_at_once(cable.wallet.raw(cable.theft(HIGH_FEE_SAT)))

    with ground.again(tmp_path, before) as after:
        assert ground.end(after, cable) is AggregateStatus.LOST
        assert after.session(cable.session_id).stop_reason is StopReason.DOUBLE_SPENT
        assert check_books(after, cable) == NEW_SAT
        assert is_refused(after, cable)


def is_mined_once(ground: Place, stall: Stall, session_id: str) -> str:
    """The session is over, and its settlement has one confirmation; the hash of the block."""
    wait_until("the session to be over", lambda: stall.is_over(session_id))
    ground.chain.wait_for_tx(stall.receipt(session_id).onchain_txid)
    ground.chain.mine(1)
    return wait_until("the settlement to be seen", lambda: stall.aggregate(session_id).mined_block)
