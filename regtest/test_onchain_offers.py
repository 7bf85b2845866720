"""Which coins a socket with a real bitcoind takes for an aggregate, from whom, and for which session: everything else
credits nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness.attacker import Coin, spend
from harness.cable import FEE_SAT, Cable
from harness.nodes import TrustingSigner, node_id
from harness.place import COIN_SAT, Place, begin, ends_as_if_nothing_had_been_tried, place
from harness.stall import CREDIT_CAP_SAT, FLOOR_SAT, Stall

from wattline.core.bitcoin.chain import TxOutput
from wattline.plugin.streams import Refused

FIRST_SAT = 3_000


@pytest.fixture(scope="module")
def ground() -> Iterator[Place]:
    with place(Place) as made:
        yield made


@pytest.fixture
def stall(ground: Place, tmp_path: Path) -> Iterator[Stall]:
    with ground.stall(tmp_path) as made:
        yield made


def test_the_chain_takes_what_a_wallet_may_make_of_any_height(ground: Place) -> None:
    """Even with locktime 21, which Knots refuses unless told otherwise."""
    (coin,) = ground.cable_wallet.fund([COIN_SAT])
    draft = replace(spend([coin], [TxOutput(COIN_SAT - FEE_SAT, ground.cable_wallet.script())]), locktime=21)
    (answer,) = ground.chain.call("testmempoolaccept", [ground.cable_wallet.raw(draft)])
    assert answer["allowed"], answer


# First versions: the coins that a cable offers.


def test_a_first_version_below_the_floor_is_refused(ground: Place, stall: Stall) -> None:
    cable = ground.cable(stall)
    begin(cable)

    assert cable.refusal(1, cable.wallet.signed(cable.draft(FLOOR_SAT - 1))) == "dust_output"

    is_worth_nothing(stall, cable)


def test_a_first_version_above_the_credit_cap_is_refused(ground: Place, tmp_path: Path) -> None:
    with ground.stall(tmp_path, exposure_cap_sat=2 * CREDIT_CAP_SAT) as stall:
        cable = ground.cable(stall)
        begin(cable)

        assert cable.refusal(1, cable.wallet.signed(cable.draft(CREDIT_CAP_SAT + 1))) == "credit_cap"

        is_worth_nothing(stall, cable)


def test_a_coin_that_is_not_confirmed_is_refused(ground: Place, stall: Stall) -> None:
    cable = ground.cable(stall)
    parent = cable.theft(FEE_SAT)
    txid = cable.wallet.broadcast(parent)
    cable.coins = [Coin(replace(cable.coins[0].outpoint, txid=txid, vout=0), parent.outputs[0].value_sat)]
    begin(cable)

    assert cable.refusal(1, cable.wallet.signed(cable.draft(FIRST_SAT))) == "input_spent"

    is_worth_nothing(stall, cable)


def test_a_coin_with_too_few_confirmations_is_refused(ground: Place, tmp_path: Path) -> None:
    with ground.stall(tmp_path, input_confirmations=2) as stall:
        cable = ground.cable(stall)
        begin(cable)

        assert cable.refusal(1, cable.wallet.signed(cable.draft(FIRST_SAT))) == "input_unconfirmed"

        is_worth_nothing(stall, cable)


def test_a_coin_whose_parent_was_replaced_is_refused(ground: Place, stall: Stall) -> None:
    cable = ground.cable(stall)
    parent = cable.theft(FEE_SAT)
    txid = cable.wallet.broadcast(parent)
    child_coin = Coin(replace(cable.coins[0].outpoint, txid=txid, vout=0), parent.outputs[0].value_sat)
    replacement = cable.theft(10 * FEE_SAT)
    cable.coins = [child_coin]
    begin(cable)
    psbt = cable.wallet.signed(cable.draft(FIRST_SAT))
    cable.wallet.broadcast(replacement)

    assert cable.refusal(1, psbt) == "input_spent"

    is_worth_nothing(stall, cable)


def test_a_coin_that_is_spent_is_refused(ground: Place, stall: Stall) -> None:
    cable = ground.cable(stall)
    cable.wallet.broadcast(cable.theft(FEE_SAT))
    ground.chain.mine(1)
    begin(cable)

    assert cable.refusal(1, cable.wallet.signed(cable.draft(FIRST_SAT))) == "input_spent"

    is_worth_nothing(stall, cable)


def test_a_coin_that_is_being_spent_is_refused(ground: Place, stall: Stall) -> None:
    cable = ground.cable(stall)
    cable.wallet.broadcast(cable.theft(FEE_SAT))
    begin(cable)

    assert cable.refusal(1, cable.wallet.signed(cable.draft(FIRST_SAT))) == "input_spent"

    is_worth_nothing(stall, cable)


def test_more_coins_than_the_rules_allow_are_refused(ground: Place, tmp_path: Path) -> None:
    with ground.stall(tmp_path, max_inputs=2) as stall:
        cable = ground.cable(stall, *[COIN_SAT] * 3)
        begin(cable)

        assert cable.refusal(1, cable.wallet.signed(cable.draft(FIRST_SAT))) == "other_inputs"

        is_worth_nothing(stall, cable)


def test_a_coin_that_pays_another_session_of_the_socket_is_refused(ground: Place, stall: Stall) -> None:
    first = ground.paying_cable(stall, FIRST_SAT, outlet_id="A2")
    second = ground.cable(stall)
    second.coins = first.coins
    begin(second)

    assert second.refusal(1, second.wallet.signed(second.draft(FIRST_SAT))) == "input_refused"

    is_worth_nothing(stall, second)
    ends_as_if_nothing_had_been_tried(ground, stall, first)


# Whose session it is.


def test_a_version_without_an_invitation_is_refused(ground: Place, stall: Stall) -> None:
    cable = ground.cable(stall)
    cable.open()
    cable.script = ground.socket_wallet.script()

    assert cable.refusal(1, cable.wallet.signed(cable.draft(FIRST_SAT))) == "not_invited"

    assert stall.credited_sat(cable.session_id) == 0
    assert stall.ledger.aggregate(cable.session_id) is None


def test_a_version_that_pays_another_session_is_refused(ground: Place, stall: Stall) -> None:
    other = ground.paying_cable(stall, FIRST_SAT, outlet_id="A2")
    cable = ground.cable(stall)
    begin(cable)
    cable.script = other.script

    assert cable.refusal(1, cable.wallet.signed(cable.draft(FIRST_SAT))) == "wrong_output"

    is_worth_nothing(stall, cable)
    ends_as_if_nothing_had_been_tried(ground, stall, other)


def test_an_address_is_given_to_nobody_but_the_cable_that_opened_the_session(ground: Place, stall: Stall) -> None:
    cable = ground.cable(stall)
    cable.open()

    answer = cable.request(TrustingSigner(node_id(7)))

    assert answer.version_refused.code == "not_invited"
    assert stall.ledger.aggregate(cable.session_id) is None


def test_the_session_of_another_cable_cannot_be_taken_over(ground: Place, stall: Stall) -> None:
    cable = ground.paying_cable(stall, FIRST_SAT)

    with pytest.raises(Refused) as refused:
        cable.resume(stall, token=bytes(32))

    assert refused.value.code == "wrong_token"
    ends_as_if_nothing_had_been_tried(ground, stall, cable)


def is_worth_nothing(stall: Stall, cable: Cable) -> None:
    """Nothing is credited, and the relay stays open."""
    session_id = cable.session_id
    assert stall.credited_sat(session_id) == 0
    assert stall.ledger.newest_version(session_id) is None
    assert stall.aggregate(session_id).inputs == ()
    assert stall.hardware["A1"].opened_ms == 0
    assert not stall.is_relay_closed("A1")
