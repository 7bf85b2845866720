"""A practice node without a bitcoind: it says so where it is asked for what only a bitcoind can do."""

from __future__ import annotations

import pytest
from pyln.client import RpcError

from wattline.regtest.node.fault import UNKNOWN_METHOD
from wattline.regtest.node.wallet_rpc import NAMES
from wattline.regtest.practice_network import PracticeNetwork


def test_a_node_without_bitcoind_refuses_the_wallets_commands_and_names_no_bitcoind() -> None:
    with PracticeNetwork() as network:
        node = network.node("cable")
        for name in NAMES:
            with pytest.raises(RpcError, match="this practice node has no bitcoind") as caught:
                node.rpc.call(name, {})
            assert caught.value.error["code"] == UNKNOWN_METHOD
        configs = node.rpc.listconfigs()["configs"]
        assert [name for name in configs if name.startswith("bitcoin-")] == []


def test_a_wallet_on_the_practice_chain_is_funded_with_as_many_outputs_as_asked_for() -> None:
    with PracticeNetwork() as network:
        node = network.node("cable")
        txid = network.fund_wallet(node, 5_000, outputs=2)
        outputs = node.rpc.listfunds()["outputs"]
        assert [(row["txid"], row["output"], row["status"]) for row in outputs] == [
            (txid, 0, "confirmed"),
            (txid, 1, "confirmed"),
        ]
