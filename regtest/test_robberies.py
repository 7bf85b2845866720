"""The robberies of the unit tests once more, with real nodes: the cable's lightningd signs every version, a socket that
does as it likes signs with its own node what it says, and bitcoind mines what that socket wants."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import TlsPair, make_certificate
from tests.cable.robbery import HONESTY, ROBBERIES, Robbery
from wattline.cable.opening import Equipment
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.rpc import NodeRpc
from wattline.core.payer import Payer
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork

pytestmark = [pytest.mark.lightningd, pytest.mark.real_only]

COIN_SAT = 50_000
COINS = 4


class SocketNode:
    """The node behind a socket that lies."""

    def __init__(self, node: Node) -> None:
        self.node_id = node.node_id
        self.sign = CoreLightning(node.rpc_path).sign


class RealBench(Bench):
    """A bench whose wallets and chain are real."""

    def __init__(self, folder: Path, tls: TlsPair, network: RegtestNetwork, cable: Node, socket: Node) -> None:
        super().__init__(folder, tls, SocketNode(socket))
        self.socket.new_address = lambda: _address_of(network, socket)
        self._network, self._cable = network, cable

    @property
    def equipment(self) -> Equipment:
        node = CoreLightning(self._cable.rpc_path)
        return Equipment(
            node=node,
            payer=Payer(node, self.ledger.outgoing),
            ledger=self.ledger,
            funds=CoreLightningFunds(NodeRpc(self._cable.rpc_path)),
            open_meter=lambda max_power_mw: self.meter,
            clock_ms=super().equipment.clock_ms,
            wall=self.wall,
        )

    def mine(self, psbt: bytes) -> None:
        chain = self._network.chain
        made = chain.call("finalizepsbt", base64.b64encode(psbt).decode("ascii"), True)
        assert made["complete"], made
        address, _ = _address_of(self._network, self._cable)
        chain.call("generateblock", address, [made["hex"]])
        self._cable.wait_for_height(chain.height)


def _address_of(network: RegtestNetwork, node: Node) -> tuple[str, str]:
    """A new one of the node's wallet, and its script."""
    address = str(node.rpc.newaddr("p2tr")["p2tr"])
    return address, str(network.chain.call("validateaddress", address)["scriptPubKey"])


@pytest.fixture(scope="module")
def tls() -> TlsPair:
    return make_certificate()


@pytest.fixture(scope="module")
def nodes(onchain_module_network: RegtestNetwork) -> list[Node]:
    return onchain_module_network.nodes("cable", "socket")


@pytest.fixture
def bench(
    onchain_module_network: RegtestNetwork,
    nodes: list[Node],
    tls: TlsPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RealBench]:
    monkeypatch.setattr("wattline.cable.service.MINED_WAIT_S", 0.0)
    monkeypatch.setattr("wattline.cable.closing.SETTLE_MS", 600)
    monkeypatch.setattr("wattline.cable.closing.RECEIPT_MS", 600)
    onchain_module_network.fund_wallet(nodes[0], COIN_SAT, outputs=COINS)
    made = RealBench(tmp_path, tls, onchain_module_network, *nodes)
    yield made
    made.close()


@pytest.mark.parametrize("name", [*ROBBERIES, *HONESTY])
def test_a_robbery_ends_in_a_refusal_and_an_honest_socket_is_never_accused(bench: RealBench, name: str) -> None:
    Robbery(bench, seed=1).prove((ROBBERIES | HONESTY)[name])
