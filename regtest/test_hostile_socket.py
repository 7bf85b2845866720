"""A socket that lies, and a cable with a real node and wallet: what the socket says never makes that node stop."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from wattline.cable.link.stream import SocketStream
from wattline.cable.pay.onchain import OnchainPayments
from wattline.cable.pay.versions import AggregateMaker
from wattline.cable.policy.events import (
    OnchainEvent,
    OnchainFailed,
    OnchainInvitation,
    OnchainReady,
    PaymentEvent,
    WantedVersion,
)
from wattline.cable.policy.onchain import Scope
from wattline.cable.settings import CableOnchainSettings
from wattline.core.aggregate import OnchainRules
from wattline.core.bitcoin.address import address_of
from wattline.core.bitcoin.chain import TxOutput
from wattline.core.bitcoin.psbt import signed_tx
from wattline.core.clock import Clock
from wattline.core.ledger.cable import CableAggregateStatus
from wattline.core.ledger.ledger import open_ledger
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.node import NodeRefused
from wattline.core.tariff import Tariff
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork

pytestmark = pytest.mark.lightningd

COIN_SAT = 200_000
SESSION = "0123456789ABCDEFGHJKMNPQRS"
RULES = OnchainRules(
    floor_sat=600,
    credit_cap_sat=3_000,
    exposure_cap_sat=20_000,
    min_feerate_per_kw=253,
    max_feerate_per_kw=100_000,
    max_age_s=3_600,
    input_confirmations=1,
    max_inputs=3,
)
PRICE = 900_000_000
"""So dear that a payment on-chain is worth its fee at once."""
SCRIPT = "5120" + "ab" * 32
HONEST = address_of(SCRIPT, "regtest")
ABORTS = "1" * 700
"""As ``destination`` of addpsbtoutput it makes lightningd v26.06.6 abort (an assertion in from_base58)."""


@pytest.fixture(scope="module")
def nodes(onchain_module_network: RegtestNetwork) -> tuple[Node, Node]:
    """The cable's, with money in its wallet, and the socket's."""
    cable, socket = onchain_module_network.nodes("cable", "socket")
    onchain_module_network.fund_wallet(cable, COIN_SAT)
    return cable, socket


@dataclass
class Stream(SocketStream):
    """The way to the socket, on which a version would be handed over."""

    versions: queue.SimpleQueue[bytes] = field(default_factory=queue.SimpleQueue)

    def onchain_request(self, signature: str) -> bool:
        return True

    def aggregate_version(self, number: int, psbt: bytes, is_final: bool) -> bool:
        self.versions.put(psbt)
        return True


@dataclass
class Cable:
    """What of a cable pays on-chain, with a real node and wallet, and a ledger."""

    payments: OnchainPayments
    stream: Stream
    told: queue.SimpleQueue[PaymentEvent | OnchainEvent]

    def invited(self, address: str, script: str) -> PaymentEvent | OnchainEvent:
        """What comes of an invitation, whoever should have looked at it before."""
        message = OnchainInvitation(address, script, RULES, newest_number=0, newest_value_sat=0)
        self.payments.on_invitation(message, Scope(Tariff.of(PRICE), 1_400_000, 100_000_000))
        return self.told.get(timeout=60)


@pytest.fixture
def cable(nodes: tuple[Node, Node], tmp_path: Path) -> Iterator[Cable]:
    node, socket = CoreLightning(nodes[0].rpc_path), nodes[1]
    stream, told = Stream(), queue.SimpleQueue[PaymentEvent | OnchainEvent]()
    limits = CableOnchainSettings(max_feerate_per_kw=100_000, max_fee_sat=50_000, max_fee_ratio=1.0).limits
    with contextlib.closing(open_ledger(tmp_path / "cable.sqlite3")) as ledger:
        maker = AggregateMaker(
            CoreLightningFunds(node.rpc), ledger.cable_aggregates, node, limits, SESSION, socket.node_id, Clock().moment
        )
        payments = OnchainPayments(maker, stream, told.put)
        yield Cable(payments, stream, told)
        payments.end(lambda row, _: replace(row, status=CableAggregateStatus.VOID, agreed_sat=0, closed_at=1), 60)
        payments.stop()


INVITATIONS: dict[str, tuple[str, str]] = {
    "700 characters": (ABORTS, SCRIPT),
    "700 characters, no script": (ABORTS, ""),
    "700 characters for a script": (HONEST, ABORTS),
    "no address": ("", SCRIPT),
    "an address of another script": (address_of("5120" + "cd" * 32, "regtest"), SCRIPT),
    "an address of bitcoin": (address_of(SCRIPT, "bitcoin"), SCRIPT),
    "upper case": (HONEST.upper(), SCRIPT),
    "mixed case": (HONEST.replace("w", "W"), SCRIPT),
    "a base58 address": ("2N8hwP1WmJrFF5QWABn38y63uYLhnJYJYTF", "a914" + "a9" * 20 + "87"),
    "a P2WSH script": (HONEST, "0020" + "ab" * 32),
    "a script in upper case": (HONEST, SCRIPT.upper()),
    "a script that is cut short": (HONEST, SCRIPT[:-2]),
    "a line break behind it": (HONEST + "\n", SCRIPT + "\n"),
    "other characters": ("bcrt1p\u202e\u0000\u00e9", "5120" + "\u0661" * 64),
}


@pytest.mark.parametrize("invitation", INVITATIONS.values(), ids=INVITATIONS)
def test_an_invitation_that_is_not_the_address_of_its_script_is_refused_and_the_node_lives_on(
    nodes: tuple[Node, Node], cable: Cable, invitation: tuple[str, str]
) -> None:
    node, _ = nodes
    pid = node.pid
    event = cable.invited(*invitation)
    assert isinstance(event, OnchainFailed)
    assert (event.code, event.passing) == ("onchain_mismatch", False)
    assert (node.pid, node.rpc.getinfo()["id"]) == (pid, node.node_id)
    assert not any(row["reserved"] for row in node.rpc.listfunds()["outputs"])


def test_an_honest_invitation_is_paid_to_our_own_encoding(cable: Cable) -> None:
    assert isinstance(cable.invited(HONEST, SCRIPT), OnchainReady)
    cable.payments.pay(1, 700_000, WantedVersion(700, 700))
    psbt = cable.stream.versions.get(timeout=60)
    assert signed_tx(psbt).outputs[0] == TxOutput(700, SCRIPT)


FORGERIES = {
    "a bad first byte": ("y" * 104, None),
    "another bad first byte": ("r9" + "y" * 102, None),
    "700 characters": ("d9" + "y" * 698, None),
    "a key that is no point": ("d9" + "y" * 102, "02" + "00" * 32),
    "a key of 700 characters": ("d9" + "y" * 102, "1" * 700),
}


@pytest.mark.parametrize(("signature", "key"), FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize("which", [0, 1], ids=["cable", "socket"])
def test_no_signature_makes_a_node_abort(nodes: tuple[Node, Node], which: int, signature: str, key: str | None) -> None:
    node = nodes[which]
    pid = node.pid
    assert not CoreLightning(node.rpc_path).verify("wattline", signature, node.node_id if key is None else key)
    assert (node.pid, node.rpc.getinfo()["id"]) == (pid, node.node_id)


HOSTILE: dict[str, Callable[[CoreLightning, str], object]] = {
    "a route to itself": lambda node, own: node.find_route(own, 1_000, 1_000, 45),
    "a route to no point": lambda node, own: node.find_route("02" + "00" * 32, 1_000, 1_000, 45),
    "a route for nothing": lambda node, own: node.find_route("02" + "33" * 32, 0, 1_000, 45),
    "a route for more than there is": lambda node, own: node.find_route("02" + "33" * 32, 2**63, 2**63, 45),
    "a hash of 700 characters": lambda node, own: node.sent("1" * 700),
    "an onion without hops": lambda node, own: node.rpc.call("createonion", {"hops": [], "assocdata": "00" * 32}),
    "a PSBT of somebody else": lambda node, own: node.rpc.call("sendpsbt", {"psbt": "cHNidP8BAAAA"}),
    "a call that is none of ours": lambda node, own: node.rpc.call("stop"),
}


@pytest.mark.parametrize("ask", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("which", [0, 1], ids=["cable", "socket"])
def test_no_value_that_makes_a_node_abort_reaches_it(
    nodes: tuple[Node, Node], which: int, ask: Callable[[CoreLightning, str], object]
) -> None:
    node = nodes[which]
    pid = node.pid
    with pytest.raises(NodeRefused) as caught:
        ask(CoreLightning(node.rpc_path), node.node_id)
    assert caught.value.code == "call_refused"
    assert (node.pid, node.rpc.getinfo()["id"]) == (pid, node.node_id)
