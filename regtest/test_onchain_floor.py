"""Payments on the chain while the mempool is full and asks for more than they pay: settled before, or mined once its
floor falls; on a real bitcoind that holds little."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.attacker import Coin, large, spend
from harness.place import Place, check_books, place

from wattline.core.aggregate import AggregateStatus
from wattline.core.bitcoin.bitcoind import Bitcoind
from wattline.core.bitcoin.chain import Outpoint, TxOutput
from wattline.core.session.state import StopReason
from wattline.regtest.chain import Chain
from wattline.regtest.waiting import wait_until

OLD_SAT, NEW_SAT = 2_000, 5_000
FILLERS = 150
FILLER_SAT = 2_000_000
TOWARDS, ABOVE = 1.3, 4.0
"""sat/vB of what fills the mempool. What is driven out raises the floor to 1 sat/vB above its own rate; versions pay
about 2.6 sat/vB."""
A_LONG_TIME_S = 5 * 86_400
"""bitcoind lowers the floor by half in 12 hours at most (src/txmempool.h, ROLLING_FEE_HALFLIFE)."""


class SmallMempool(Place):
    """A place whose bitcoind holds little, with coins enough to fill it."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        outputs = [TxOutput(FILLER_SAT, self.cable_wallet.script())] * FILLERS
        (purse,) = self.cable_wallet.fund([FILLERS * FILLER_SAT + 100_000])
        txid = self.cable_wallet.broadcast(spend([purse], outputs))
        self.chain.mine(1)
        self._fillers = [Coin(Outpoint(txid, vout), FILLER_SAT) for vout in range(FILLERS)]

    def fill(self, rate_sat_per_vb: float) -> None:
        """Until the mempool has driven out what pays no more than this."""
        for number in range(FILLERS):
            self.cable_wallet.broadcast(large(self._fillers.pop(), rate_sat_per_vb + number / 1000))
            if self.floor_per_kw() > 250 * rate_sat_per_vb:
                return

    def floor_per_kw(self) -> int:
        return Bitcoind(self.access).floor().feerate_per_kw

    def calm(self) -> None:
        """Everything is mined, and the floor comes down with time."""
        while self.chain.call("getrawmempool"):
            self.chain.mine(1)
        now = self.chain.call("getblockheader", self.chain.call("getbestblockhash"))["time"]
        self.chain.call("setmocktime", now + A_LONG_TIME_S)
        wait_until("the floor to come down", lambda: not Bitcoind(self.access).floor().is_raised)
        self.chain.mine(1)


@pytest.fixture(scope="module")
def small() -> Iterator[SmallMempool]:
    with place(SmallMempool, "maxmempool=5") as made:
        yield made


@pytest.mark.long
def test_a_floor_that_rises_towards_the_fee_rate_has_the_session_settled_before(
    small: SmallMempool, tmp_path: Path
) -> None:
    with small.stall(tmp_path) as stall:
        cable = small.paying_cable(stall, OLD_SAT, NEW_SAT)

        small.fill(TOWARDS)

        wait_until("the relay to open", lambda: not stall.is_relay_closed())
        wait_until("the session to be over", lambda: stall.is_over(cable.session_id))
        receipt = stall.receipt(cable.session_id)
        assert receipt.stop_reason == StopReason.FEERATE_LOW
        small.chain.wait_for_tx(receipt.onchain_txid)
        small.is_mined_as_chosen(stall, cable.session_id, receipt.onchain_value_sat)
        assert check_books(stall, cable) == 0
        assert stall.ledger.refused_cable(cable.node_id) is None
    small.calm()


@pytest.mark.long
def test_a_floor_that_jumps_above_the_fee_rate_has_the_settlement_mined_once_it_falls(
    small: SmallMempool, tmp_path: Path
) -> None:
    with small.stall(tmp_path) as stall:
        cable = small.paying_cable(stall, OLD_SAT, NEW_SAT)

        small.fill(ABOVE)

        wait_until("the session to be over", lambda: stall.is_over(cable.session_id))
        receipt = stall.receipt(cable.session_id)
        assert receipt.stop_reason == StopReason.FEERATE_LOW
        assert receipt.onchain_txid not in small.chain.call("getrawmempool")
        assert stall.aggregate(cable.session_id).status is AggregateStatus.SENT
        small.calm()
        small.chain.wait_for_tx(receipt.onchain_txid)
        small.is_mined_as_chosen(stall, cable.session_id, receipt.onchain_value_sat)
        assert check_books(stall, cable) == 0


@pytest.mark.long
def test_a_settlement_that_is_driven_out_of_the_mempool_is_mined_once_the_floor_falls(
    small: SmallMempool, tmp_path: Path
) -> None:
    with small.stall(tmp_path) as stall:
        cable = small.paying_cable(stall, OLD_SAT, NEW_SAT)
        cable.close()
        wait_until("the session to be over", lambda: stall.is_over(cable.session_id))
        txid = stall.receipt(cable.session_id).onchain_txid
        small.chain.wait_for_tx(txid)

        small.fill(ABOVE)

        assert txid not in small.chain.call("getrawmempool")
        small.calm()
        small.chain.wait_for_tx(txid)
        small.is_mined_as_chosen(stall, cable.session_id, stall.receipt(cable.session_id).onchain_value_sat)
        assert check_books(stall, cable) == 0
