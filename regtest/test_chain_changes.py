"""The chain, or the socket's ledger, is not what it was, on a real bitcoind: a ledger that was put back to a copy, a
bitcoind that has deleted the blocks that matter, a bitcoind of another chain."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from harness.cable import Cable
from harness.needs import need_bitcoind
from harness.nodes import KeptNotes, SocketFunds
from harness.place import Place, place
from harness.stall import CONFIRMATIONS, Stall

from wattline.core.aggregate import AggregateStatus
from wattline.core.bitcoin.bitcoind import Bitcoind
from wattline.core.bitcoin.bitcoind_rpc import BitcoindRpc
from wattline.core.errors import WattlineError
from wattline.core.session.state import StopReason
from wattline.plugin.resolving import Resolving
from wattline.regtest.chain import Chain
from wattline.regtest.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]

OLD_SAT, NEW_SAT = 2_000, 5_000
HIGH_FEE_SAT = 5_000
KEPT_BLOCKS, BLOCKS_OF_A_FILE = 288, 300
"""bitcoind deletes none of the last 288 (src/validation.h, MIN_BLOCKS_TO_KEEP), and whole files, with ``-fastprune`` of
64 KiB: more than 200 empty blocks."""


@pytest.fixture(scope="module")
def ground() -> Iterator[Place]:
    with place(Place) as made:
        yield made


def copy_of(stall: Stall, to: Path) -> None:
    """As an operator's backup makes it while the socket runs."""
    stall.app.sessions.save_changed()
    source_path = stall.ledger._database.engine.url.database
    to.mkdir()
    with closing(sqlite3.connect(str(source_path))) as source, closing(sqlite3.connect(to / "socket.sqlite3")) as copy:
        source.backup(copy)


def test_a_ledger_that_was_put_back_to_a_copy_accuses_no_cable_and_contradicts_no_receipt(
    ground: Place, tmp_path: Path
) -> None:
    notes, copy = KeptNotes(), tmp_path / "copy"
    (tmp_path / "first").mkdir()
    with ground.stall(tmp_path / "first", notes=notes) as before:
        cable = ground.paying_cable(before, OLD_SAT, NEW_SAT)
        copy_of(before, copy)
        cable.close()
        wait_until("the session to be over", lambda: before.is_over(cable.session_id))
        first = before.receipt(cable.session_id)
        assert before.aggregate(cable.session_id).choice_reason == "final"
        ground.chain.wait_for_tx(first.onchain_txid)
    ground.chain.mine(1)

    hardware = before.hardware
    with Stall(copy, Bitcoind(ground.access), SocketFunds(ground.socket_wallet), hardware, notes=notes) as after:
        wait_until("the session to be over", lambda: after.is_over(cable.session_id))
        assert after.session(cable.session_id).stop_reason is StopReason.LEDGER_RESTORED
        assert ground.settle(after, cable.session_id) is AggregateStatus.SETTLED
        aggregate, second = after.aggregate(cable.session_id), after.receipt(cable.session_id)
        assert (aggregate.mined_txid, aggregate.lost_msat) == (first.onchain_txid, 0)
        assert (second.onchain_txid, second.onchain_value_sat) == (first.onchain_txid, first.onchain_value_sat)
        assert second.from_restored_ledger
        assert second.charged_msat <= first.charged_msat
        assert after.ledger.refused_cable(cable.node_id) is None


def test_a_payment_in_a_deleted_block_is_known_by_the_wallet_or_shown_until_the_operator_decides(
    tmp_path: Path,
) -> None:
    need_bitcoind()
    with Chain(arguments=("-txindex=0", "-prune=1", "-fastprune")) as chain:
        ground = Place(chain)
        with ground.stall(tmp_path) as before:
            honest = ground.paying_cable(before, OLD_SAT, NEW_SAT)
            thief = ground.paying_cable(before, OLD_SAT, NEW_SAT, outlet_id="A2")
            before.app.sessions.save_changed()
        raws = [honest.wallet.raw(honest.versions[-1]), thief.wallet.raw(thief.theft(HIGH_FEE_SAT))]
        height = chain.call("getblockheader", honest.wallet.mine_at_once(*raws))["height"]
        chain.mine(KEPT_BLOCKS + BLOCKS_OF_A_FILE)
        assert chain.call("pruneblockchain", chain.height - KEPT_BLOCKS) > height

        with Stall(tmp_path, Bitcoind(ground.access), SocketFunds(ground.socket_wallet), before.hardware) as after:
            assert settled(after, honest) is AggregateStatus.SETTLED
            assert after.aggregate(honest.session_id).mined_value_sat == NEW_SAT
            assert after.ledger.refused_cable(honest.node_id) is None
            wait_until("the other session to be over", lambda: after.is_over(thief.session_id))
            assert after.session(thief.session_id).stop_reason is StopReason.INPUT_GONE
            assert not after.is_relay_closed("A2")
            wait_until("the trouble to be told", lambda: "spender_unknown" in after.onchain.trouble)
            assert after.onchain.intake.trouble == "", "others are served"
            assert after.ledger.refused_cable(thief.node_id) is None
            assert after.ledger.exposure_sat() == NEW_SAT
            decide = Resolving(
                after.ledger,
                after.app.older_copy,
                after.onchain,
                after.app.refunds.settle,
                after.app.clock,
                after.app.refunds._payer,
                after.app.refunds.hurry,
            )
            decide.resolve(thief.session_id, "lost", "seen in an explorer")
            assert after.aggregate(thief.session_id).status is AggregateStatus.LOST
            wait_until("the trouble to be over", lambda: not after.onchain.trouble)
            assert after.ledger.exposure_sat() == 0


def settled(stall: Stall, cable: Cable) -> AggregateStatus:
    wait_until("the payment to be final", lambda: not stall.aggregate(cable.session_id).status.is_live)
    return stall.aggregate(cable.session_id).status


def test_on_another_chain_nobody_is_accused_and_back_on_the_right_one_all_goes_on(
    ground: Place, tmp_path: Path
) -> None:
    chain = Bitcoind(ground.access)
    with ground.stall(tmp_path, chain) as stall, place(Place) as elsewhere:
        cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)
        own, other = chain._rpc, BitcoindRpc(elsewhere.access)
        elsewhere.chain.mine(ground.chain.height)
        chain._rpc = other
        try:
            wait_until("the other chain to be noticed", lambda: "another chain" in stall.onchain.trouble)
            elsewhere.chain.mine(2 * CONFIRMATIONS)
            with pytest.raises(WattlineError) as refused:
                stall.onchain.look()
            assert refused.value.code == "bitcoind_other_chain"
            assert stall.ledger.refused_cable(cable.node_id) is None
            assert stall.aggregate(cable.session_id).status is AggregateStatus.OPEN
        finally:
            chain._rpc = own
        wait_until("the right chain to be seen", lambda: not stall.onchain.trouble)
        cable.close()
        assert ground.end(stall, cable) is AggregateStatus.SETTLED
        assert stall.ledger.refused_cable(cable.node_id) is None
