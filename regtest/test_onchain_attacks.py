"""Attacks of a cable on a socket that has credited it already, on a real bitcoind: the relay opens at once, the loss is
within the cap and booked, the cable is refused from then on, and the ledger says what the chain says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.attacker import Coin, Draft, Wallet, large, spend
from harness.cable import FEE_SAT, Cable
from harness.chains import HeldBitcoind
from harness.outlet_hardware import now_ms
from harness.place import COIN_SAT, Place, begin, check_books, is_refused, opened_after_ms, place
from harness.stall import METER_INTERVAL_MS, WATCH_INTERVAL_MS, Stall

from wattline.core.aggregate import AggregateStatus
from wattline.core.bitcoin.chain import Outpoint, TxOutput
from wattline.core.session.state import StopReason
from wattline.regtest.waiting import wait_until

pytestmark = pytest.mark.long

BUSY_MS = 400
"""For the few questions of one look, on a machine that has other things to do."""
AT_ONCE_MS = WATCH_INTERVAL_MS + METER_INTERVAL_MS + BUSY_MS
OLD_SAT, MIDDLE_SAT, NEW_SAT = 2_000, 3_000, 5_000
HIGH_FEE_SAT = 5_000
NOT_STARTED_SAT = 600
TOO_LITTLE_SAT = (600, 900)
"""Less than the session's fee."""
"""Less than the session fee: a version of this value lets nothing flow."""


@pytest.fixture(scope="module")
def ground() -> Iterator[Place]:
    with place(Place) as made:
        yield made


@pytest.fixture
def stall(ground: Place, tmp_path: Path) -> Iterator[Stall]:
    with ground.stall(tmp_path) as made:
        yield made


# In mid-session.


def broadcast(cable: Cable, draft: Draft) -> None:
    cable.wallet.broadcast(draft)


def mine_directly(cable: Cable, draft: Draft) -> None:
    cable.wallet.mine_at_once(cable.wallet.raw(draft))


WAYS = {"broadcast": broadcast, "mined directly": mine_directly}
Way = Callable[[Cable, Draft], None]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("which", [0, 1])
def test_an_older_version_that_pays_less_than_is_owed_opens_the_relay_and_costs_the_difference(
    ground: Place, stall: Stall, way: Way, which: int
) -> None:
    cable = ground.paying_cable(stall, *TOO_LITTLE_SAT, NEW_SAT)

    since_ms = now_ms()
    way(cable, cable.versions[which])

    assert opened_after_ms(stall, since_ms) <= AT_ONCE_MS
    lost_sat = is_stopped_and_lost(ground, stall, cable, StopReason.OLDER_VERSION)
    assert lost_sat == NEW_SAT - TOO_LITTLE_SAT[which]


def test_an_older_version_that_pays_what_is_owed_ends_the_session_and_is_no_fraud(ground: Place, stall: Stall) -> None:
    cable = ground.paying_cable(stall, MIDDLE_SAT, NEW_SAT)
    cable.wallet.broadcast(cable.versions[0])
    wait_until("the session to be over", lambda: stall.is_over(cable.session_id))
    assert stall.session(cable.session_id).stop_reason is StopReason.PAID_EARLY
    assert ground.settle(stall, cable.session_id) is AggregateStatus.SETTLED
    assert check_books(stall, cable) == NEW_SAT - MIDDLE_SAT
    assert stall.ledger.totals(0, 2**40).lost_msat == 0
    assert stall.ledger.refused_cable(cable.node_id) is None


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_double_spend_in_mid_session_opens_the_relay_and_costs_what_was_credited(
    ground: Place, stall: Stall, way: Way
) -> None:
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)

    since_ms = now_ms()
    way(cable, cable.theft(HIGH_FEE_SAT))

    assert opened_after_ms(stall, since_ms) <= AT_ONCE_MS
    assert is_stopped_and_lost(ground, stall, cable, StopReason.DOUBLE_SPENT) == NEW_SAT


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("which", [0, 1])
def test_a_double_spend_of_one_of_two_inputs_is_one(ground: Place, stall: Stall, way: Way, which: int) -> None:
    cable = ground.cable(stall, COIN_SAT, COIN_SAT)
    cable.coins.sort(key=lambda coin: coin.outpoint)
    begin(cable, OLD_SAT, NEW_SAT)
    wait_until("the relay to close", stall.is_relay_closed)
    stolen = spend([cable.coins[which]], [TxOutput(COIN_SAT - HIGH_FEE_SAT, cable.wallet.script())])

    since_ms = now_ms()
    way(cable, stolen)

    assert opened_after_ms(stall, since_ms) <= AT_ONCE_MS
    assert is_stopped_and_lost(ground, stall, cable, StopReason.DOUBLE_SPENT) == NEW_SAT


def test_a_double_spend_that_pays_less_than_ours_is_replaced_and_costs_nothing(ground: Place, stall: Stall) -> None:
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)

    since_ms = now_ms()
    cable.wallet.broadcast(cable.theft(FEE_SAT // 3))

    assert opened_after_ms(stall, since_ms) <= AT_ONCE_MS
    assert ground.end(stall, cable) is AggregateStatus.SETTLED
    assert stall.session(cable.session_id).stop_reason is StopReason.DOUBLE_SPENT
    assert check_books(stall, cable) == 0
    assert stall.aggregate(cable.session_id).mined_value_sat == NEW_SAT
    assert is_refused(stall, cable)


def test_a_wallet_whose_reservation_ran_out_spends_the_input_itself(ground: Place, stall: Stall) -> None:
    """No ill will is needed: nothing holds the coin, and it is the only one that there is."""
    forgetful = Wallet(ground.chain, "forgetful")
    cable = Cable(stall, forgetful, ground.new_node_id(), forgetful.fund([COIN_SAT]))
    begin(cable, NEW_SAT)
    wait_until("the relay to close", stall.is_relay_closed)

    since_ms = now_ms()
    forgetful.call("sendtoaddress", forgetful.address(), "0.005", "", "", False, True, None, "unset", None, 50)

    assert opened_after_ms(stall, since_ms) <= AT_ONCE_MS
    assert is_stopped_and_lost(ground, stall, cable, StopReason.DOUBLE_SPENT) == NEW_SAT


def test_the_newest_version_broadcast_by_the_cable_ends_the_session_and_costs_nothing(
    ground: Place, stall: Stall
) -> None:
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)

    since_ms = now_ms()
    cable.wallet.broadcast(cable.versions[-1])

    assert opened_after_ms(stall, since_ms) <= AT_ONCE_MS
    assert ground.end(stall, cable) is AggregateStatus.SETTLED
    assert stall.session(cable.session_id).stop_reason is StopReason.PAID_EARLY
    assert check_books(stall, cable) == 0
    assert stall.aggregate(cable.session_id).mined_value_sat == NEW_SAT


def test_the_same_input_at_two_sockets_costs_one_of_them_no_more_than_it_credited(
    ground: Place, tmp_path: Path
) -> None:
    """Two sockets that know nothing of each other; the first to settle wins."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with ground.stall(tmp_path / "here") as here, ground.stall(tmp_path / "there") as there:
        paid = ground.paying_cable(here, OLD_SAT)
        cheated = Cable(there, paid.wallet, paid.node_id, paid.coins)
        begin(cheated, NEW_SAT)
        wait_until("the relay to close", there.is_relay_closed)

        since_ms = now_ms()
        paid.close()
        wait_until("the session to be over", lambda: here.is_over(paid.session_id))

        opened_after_ms(there, since_ms)
        assert is_stopped_and_lost(ground, there, cheated, StopReason.DOUBLE_SPENT) == NEW_SAT
        assert ground.settle(here, paid.session_id) is AggregateStatus.SETTLED
        assert check_books(here, paid) == 0


# At the close and after it.


def test_an_older_version_broadcast_before_the_final_one_costs_the_difference(ground: Place, tmp_path: Path) -> None:
    chain = HeldBitcoind(ground.access)
    with ground.stall(tmp_path, chain) as stall:
        cable = ground.paying_cable(stall, NOT_STARTED_SAT, NEW_SAT)
        cable.close()
        assert chain.wants_to_send.wait(10)
        (due,) = {message.value_sat for message in cable.finals_due}
        assert stall.aggregate(cable.session_id).choice_reason == "final"

        cable.wallet.broadcast(cable.versions[0])
        chain.may_send.set()

        lost_sat = is_stopped_and_lost(ground, stall, cable, StopReason.CABLE_CLOSED)
        assert lost_sat == due - NOT_STARTED_SAT


def test_an_older_version_worth_more_than_the_final_one_costs_nothing(ground: Place, tmp_path: Path) -> None:
    """The cable harms itself; it is no fraud."""
    chain = HeldBitcoind(ground.access)
    with ground.stall(tmp_path, chain) as stall:
        cable = ground.paying_cable(stall, MIDDLE_SAT, NEW_SAT)
        cable.close()
        assert chain.wants_to_send.wait(10)
        session_id = cable.session_id

        cable.wallet.broadcast(cable.versions[0])
        chain.may_send.set()

        assert ground.end(stall, cable) is AggregateStatus.SETTLED
        assert stall.aggregate(session_id).lost_msat == 0
        assert stall.aggregate(session_id).mined_value_sat == stall.funds.received_sat(cable.address) == MIDDLE_SAT
        assert stall.ledger.refused_cable(cable.node_id) is None


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("signs_final", [True, False], ids=["final", "newest"])
def test_a_double_spend_while_ours_is_in_flight_costs_what_was_chosen(
    ground: Place, stall: Stall, way: Way, signs_final: bool
) -> None:
    """In the mempool ours is replaced; mined directly, it was never seen before."""
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)
    cable.signs_final = signs_final
    value_sat = is_in_flight(ground, stall, cable)

    way(cable, cable.theft(HIGH_FEE_SAT))

    wait_until("the cable to be refused", lambda: stall.ledger.refused_cable(cable.node_id))
    assert is_stopped_and_lost(ground, stall, cable, StopReason.CABLE_CLOSED) == value_sat


def test_a_final_version_of_another_value_does_not_count_as_the_final_one(ground: Place, stall: Stall) -> None:
    """The newest is broadcast instead: nobody is cheated but the cable by itself."""
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)
    cable.final_discount_sat = 1
    value_sat = is_in_flight(ground, stall, cable)

    assert value_sat == NEW_SAT
    assert ground.settle(stall, cable.session_id) is AggregateStatus.SETTLED
    assert check_books(stall, cable) == 0


# Pinned by a child on the change.

Pin = Callable[[Cable, Coin], None]
DESCENDANTS = 24
"""bitcoind's limit is 25 with the parent itself (-limitdescendantcount)."""
LOWEST_RATE = 1.01
"""sat/vB."""


def pin_by_number(cable: Cable, change: Coin) -> None:
    """As many descendants as the mempool bears."""
    coin = change
    for _ in range(DESCENDANTS):
        draft = spend([coin], [TxOutput(coin.value_sat - 200, cable.wallet.script())])
        coin = coin_of(cable.wallet.broadcast(draft), 0, draft)


def pin_by_size(cable: Cable, change: Coin) -> None:
    """A large child at the lowest fee rate."""
    cable.wallet.broadcast(large(change, LOWEST_RATE))


@pytest.mark.parametrize("pin", [pin_by_number, pin_by_size])
def test_a_child_attached_to_pin_a_stuck_settlement_costs_nothing(ground: Place, stall: Stall, pin: Pin) -> None:
    cable = ground.paying_cable(stall, OLD_SAT, NEW_SAT)
    cable.signs_final = False
    is_in_flight(ground, stall, cable)
    newest = cable.versions[-1]
    txid = stall.receipt(cable.session_id).onchain_txid
    pin(cable, coin_of(txid, 1, newest))
    stall.funds.estimate_per_kw = 1_500

    for _ in range(3):
        cable.wallet.mine_nothing(1)
    wait_until("the socket to try to help", lambda: stall.funds.bumps)

    (outcome,) = stall.funds.bumps
    # bitcoind's limits leave room for one child of ours (the CPFP carve-out); one that leaves none refuses it.
    is_helped = outcome in ground.chain.call("getrawmempool")
    # It is written after it was sent.
    if is_helped:
        wait_until("the child to be on record", lambda: stall.aggregate(cable.session_id).child_txid == outcome)
    else:
        assert stall.aggregate(cable.session_id).child_txid is None
    assert ground.chain.call("getmempoolentry", txid)
    assert ground.settle(stall, cable.session_id) is AggregateStatus.SETTLED
    assert check_books(stall, cable) == 0
    assert stall.aggregate(cable.session_id).mined_txid == txid


def coin_of(txid: str, vout: int, draft: Draft) -> Coin:
    return Coin(Outpoint(txid, vout), draft.outputs[vout].value_sat)


def is_in_flight(ground: Place, stall: Stall, cable: Cable) -> int:
    """The cable closes its session, and the socket's choice is in the mempool; its value, sat."""
    cable.close()
    wait_until("the session to be over", lambda: stall.is_over(cable.session_id))
    receipt = stall.receipt(cable.session_id)
    ground.chain.wait_for_tx(receipt.onchain_txid)
    return receipt.onchain_value_sat


def is_stopped_and_lost(ground: Place, stall: Stall, cable: Cable, reason: StopReason) -> int:
    """The session is over for ``reason``, and what it did not pay is booked; that, in sat."""
    status = ground.end(stall, cable)

    assert status is AggregateStatus.LOST
    assert stall.session(cable.session_id).stop_reason is reason
    assert not stall.is_relay_closed()
    assert is_refused(stall, cable)
    return check_books(stall, cable)
