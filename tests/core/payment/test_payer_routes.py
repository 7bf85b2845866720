"""The kept route of a payer, and the ways out of a wallet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.payment.payer_fakes import MIDDLE, SOCKET, Clock, FakeStore, FakeWallet
from wattline.core.ledger.outgoing import Intent
from wattline.core.lightning.node import NoRoute, SendStatus
from wattline.core.lightning.routes import FeeTooHigh, KeptRoutes, shrunk, ways_out
from wattline.core.payer import Payer


def kept(fee_msat: int = 0) -> tuple[KeptRoutes, FakeWallet, Clock]:
    clock = Clock()
    wallet = FakeWallet(clock, fee_msat=fee_msat)
    return KeptRoutes(wallet, clock), wallet, clock


@given(st.integers(1, 10**12), st.integers(0, 10**6), st.data())
def test_a_shrunk_route_delivers_the_smaller_amount_and_pays_every_node_the_same_fee(
    amount_msat: int, fee_msat: int, data: st.DataObject
) -> None:
    wallet = FakeWallet(Clock(), fee_msat=fee_msat, capacity_msat=10**12)
    route = wallet.find_route(SOCKET, amount_msat, 10**6, 45)
    smaller_msat = data.draw(st.integers(1, amount_msat))
    small = shrunk(route, smaller_msat)
    assert small.amount_msat == small.hops[-1].amount_out_msat == smaller_msat
    assert small.fee_msat == route.fee_msat
    for before, after in zip(route.hops, small.hops, strict=True):
        assert before.amount_in_msat - before.amount_out_msat == after.amount_in_msat - after.amount_out_msat
        assert (before.cltv_in, before.cltv_out) == (after.cltv_in, after.cltv_out)


@pytest.mark.parametrize("amount_msat", [1001, 0, -1])
def test_a_route_does_not_grow_nor_shrink_to_nothing(amount_msat: int) -> None:
    route = FakeWallet(Clock()).find_route(SOCKET, 1000, 0, 45)
    with pytest.raises(ValueError, match="shrunk"):
        shrunk(route, amount_msat)


def test_one_search_serves_a_stream_of_equal_payments_and_one_each_that_is_smaller_than_all_before() -> None:
    """A channel may carry the larger ones only."""
    routes, wallet, _ = kept()
    for amount_msat in (1000, 1000, 400, 999, 400, 500):
        assert routes.route(SOCKET, amount_msat, 0).amount_msat == amount_msat
    assert wallet.searches == [1000, 400]


def test_a_larger_payment_needs_a_new_search() -> None:
    routes, wallet, _ = kept()
    for amount_msat in (1000, 1001, 1000):
        routes.route(SOCKET, amount_msat, 0)
    assert wallet.searches == [1000, 1001]


def test_a_kept_route_that_is_too_dear_for_a_smaller_payment_is_searched_anew() -> None:
    routes, wallet, _ = kept(fee_msat=10)
    routes.route(SOCKET, 1000, 10)
    wallet.fee_msat = 3
    assert routes.route(SOCKET, 500, 5).fee_msat == 3
    assert wallet.searches == [1000, 500]


def test_a_block_renews_the_route_within_seconds() -> None:
    routes, wallet, clock = kept()
    routes.route(SOCKET, 1000, 0)
    wallet.height += 1
    clock.pass_by(6)
    routes.route(SOCKET, 1000, 0)
    assert wallet.searches == [1000, 1000]


def test_without_a_block_the_route_stays() -> None:
    routes, wallet, clock = kept()
    for _ in range(10):
        routes.route(SOCKET, 1000, 0)
        clock.pass_by(6)
    assert wallet.searches == [1000]


def test_a_dropped_route_is_searched_anew() -> None:
    routes, wallet, _ = kept()
    routes.route(SOCKET, 1000, 0)
    routes.drop(SOCKET)
    routes.route(SOCKET, 1000, 0)
    assert wallet.searches == [1000, 1000]


def test_a_failed_payment_drops_its_route() -> None:
    clock = Clock()
    wallet = FakeWallet(clock, outcome=lambda: SendStatus.FAILED)
    payer = Payer(wallet, FakeStore(), clock.moment, clock, clock.pass_by)
    for sequence in range(2):
        payer.pay(
            Intent(
                purpose="increment",
                session_id="S",
                sequence=sequence,
                destination=SOCKET,
                amount_msat=1000,
                maxfee_msat=0,
                record="record",
                label="label",
            )
        )
    assert wallet.searches == [1000, 1000]


def test_no_way_and_a_way_that_is_too_dear_are_different_errors() -> None:
    routes, wallet, _ = kept(fee_msat=10)
    with pytest.raises(FeeTooHigh, match="10 msat, the limit 9 msat"):
        routes.route(SOCKET, 1000, 9)
    with pytest.raises(NoRoute):
        routes.route(SOCKET, wallet.capacity_msat + 1, 10)


def test_the_ways_out_show_channel_fee_and_what_could_come_back() -> None:
    wallet = FakeWallet(Clock(), fee_msat=7)
    ways = ways_out(wallet, SOCKET, 1000)
    assert [channel.peer_id for channel in ways.channels] == [SOCKET, MIDDLE]
    assert ways.direct
    assert (ways.fee_msat, ways.spendable_msat, ways.receivable_msat) == (7, 10**9, 7000)
    assert ways.no_route_reason == ""


def test_the_ways_out_say_why_there_is_none() -> None:
    wallet = FakeWallet(Clock(), capacity_msat=500)
    ways = ways_out(wallet, SOCKET, 1000)
    assert (ways.route, ways.fee_msat) == (None, None)
    assert ways.no_route_reason == "too large"
