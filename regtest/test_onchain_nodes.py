"""Nodes with a wallet on a real bitcoind, of either kind: what the harness promises of them, over restarts of both."""

from __future__ import annotations

from typing import Any

import pytest

from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork

pytestmark = pytest.mark.lightningd

VALUE_SAT = 100_000


def outputs(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = node.rpc.listfunds()["outputs"]
    return found


def reserve(node: Node, output: dict[str, Any]) -> str:
    params = {"satoshi": "0sat", "feerate": "253perkw", "startweight": 0, "locktime": 0}
    return str(node.rpc.call("utxopsbt", {**params, "utxos": [f"{output['txid']}:{output['output']}"]})["psbt"])


def signed(node: Node, psbt: str, *payments: tuple[str, int]) -> str:
    for address, value_sat in payments:
        params = {"satoshi": f"{value_sat}sat", "initialpsbt": psbt, "destination": address}
        psbt = node.rpc.call("addpsbtoutput", params)["psbt"]
    return str(node.rpc.call("signpsbt", {"psbt": psbt})["signed_psbt"])


def address(node: Node) -> str:
    return str(node.rpc.newaddr("p2tr")["p2tr"])


def test_a_wallet_is_funded_with_as_many_confirmed_outputs_as_asked_for(onchain_network: RegtestNetwork) -> None:
    node = onchain_network.node("cable")
    txid = onchain_network.fund_wallet(node, VALUE_SAT, outputs=3)
    found = outputs(node)
    assert [output["amount_msat"] for output in found] == [VALUE_SAT * 1000] * 3
    assert {(output["txid"], output["status"]) for output in found} == {(txid, "confirmed")}
    assert node.blockheight == onchain_network.chain.height


def test_a_node_of_the_same_name_in_a_later_network_has_nothing_of_the_earlier_one(
    onchain_network: RegtestNetwork,
) -> None:
    # The tests above and below all have a `cable`, on one chain.
    assert outputs(onchain_network.node("cable")) == []


@pytest.mark.parametrize("ends_by", ["restart", "kill"])
def test_funds_and_reservations_are_kept_over_the_end_of_the_node(
    onchain_network: RegtestNetwork, ends_by: str
) -> None:
    node, socket = onchain_network.nodes("cable", "socket")
    onchain_network.fund_wallet(node, VALUE_SAT, outputs=2)
    psbt = reserve(node, outputs(node)[0])
    before = outputs(node)
    assert [output["reserved"] for output in before] == [True, False]
    if ends_by == "kill":
        node.kill()
        onchain_network.chain.mine(2)
        node.start()
    else:
        node.restart()
    assert outputs(node) == before
    assert signed(node, psbt, (address(socket), 1_000), (address(node), VALUE_SAT - 1_200))


def test_a_version_that_the_other_node_sends_is_mined_and_both_wallets_know(onchain_network: RegtestNetwork) -> None:
    cable, socket = onchain_network.nodes("cable", "socket")
    onchain_network.fund_wallet(cable, VALUE_SAT)
    version = signed(
        cable, reserve(cable, outputs(cable)[0]), (address(socket), 1_000), (address(cable), VALUE_SAT - 1_200)
    )
    txid = socket.rpc.call("sendpsbt", {"psbt": version})["txid"]
    assert [(output["txid"], output["status"]) for output in outputs(socket)] == [(txid, "unconfirmed")]
    onchain_network.mine(1)
    assert [(output["status"], output["amount_msat"]) for output in outputs(socket)] == [("confirmed", 1_000_000)]
    assert [(output["txid"], output["amount_msat"]) for output in outputs(cable)] == [
        (txid, (VALUE_SAT - 1_200) * 1000)
    ]


def test_a_node_goes_on_when_its_bitcoind_was_away_for_a_moment(onchain_network: RegtestNetwork) -> None:
    chain = onchain_network.chain
    node = onchain_network.node("cable")
    onchain_network.fund_wallet(node, VALUE_SAT)
    chain.stop()
    try:
        assert len(outputs(node)) == 1, "the node itself still answers"
    finally:
        chain.start()
    height = onchain_network.mine(1)
    assert node.blockheight == height
    onchain_network.fund_wallet(node, VALUE_SAT)
    assert len(outputs(node)) == 2


def test_a_channel_is_funded_from_the_wallet_and_the_rest_comes_back(onchain_network: RegtestNetwork) -> None:
    cable, socket = onchain_network.nodes("cable", "socket")
    channel = onchain_network.open_channel(cable, socket, 500_000)
    (change,) = outputs(cable)
    assert change["txid"] == channel.funding_txid
    assert change["status"] == "confirmed"
    height = int(channel.short_channel_id.partition("x")[0])
    assert height == change["blockheight"]
    paid = cable.keysend(socket, 1_000)
    assert paid["amount_msat"] == 1_000
