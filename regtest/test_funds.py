"""The node's own on-chain wallet, for both sides of an aggregate: what is reserved, signed, sent and bumped."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import pytest

from wattline.core.bitcoin.address import script_of
from wattline.core.bitcoin.bitcoind import Bitcoind
from wattline.core.bitcoin.bitcoind_rpc import BitcoindSettings, locate
from wattline.core.bitcoin.chain import Outpoint, Tx, TxOutput
from wattline.core.bitcoin.psbt import finalized_psbt, signed_tx
from wattline.core.errors import RetryError
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.node import NodeRefused
from wattline.core.lightning.onchain import RESERVE_BLOCKS, Base, PayingFunds, ReceivingFunds
from wattline.core.lightning.rpc import NodeRpc
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.waiting import wait_until

pytestmark = pytest.mark.lightningd

COIN_SAT = 100_000
FEE_SAT = 1_000
EXACT_WEIGHT_SINCE = (25, 9)
LESS_EXACT = 41
"""An older fundpsbt reckons so many weight units more for a P2TR input; the fee is then that of ten vbytes higher."""


@dataclass(frozen=True, slots=True)
class Side:
    """A node and what wattline knows of it."""

    node: Node
    funds: CoreLightningFunds

    def call(self, method: str, **params: object) -> dict[str, Any]:
        answer: dict[str, Any] = self.node.rpc.call(method, params)
        return answer

    def reserved_until(self, outpoint: Outpoint) -> int:
        """The height; 0 when it is not reserved."""
        (row,) = [
            row
            for row in self.call("listfunds")["outputs"]
            if (row["txid"], row["output"]) == (outpoint.txid, outpoint.vout)
        ]
        return int(row["reserved_to_block"]) if row["reserved"] else 0


@pytest.fixture(scope="module")
def sides(onchain_module_network: RegtestNetwork) -> tuple[Side, Side]:
    nodes = onchain_module_network.nodes("cable", "socket")
    cable, socket = (Side(node, CoreLightningFunds(NodeRpc(node.rpc_path))) for node in nodes)
    return cable, socket


@pytest.fixture
def cable(sides: tuple[Side, Side]) -> Side:
    return sides[0]


@pytest.fixture
def socket(sides: tuple[Side, Side]) -> Side:
    return sides[1]


@pytest.fixture(scope="module")
def bitcoind(sides: tuple[Side, Side]) -> Bitcoind:
    """Found by what the socket's lightningd says of it."""
    options = sides[1].funds.bitcoin_options()
    found = Bitcoind(locate(BitcoindSettings(), options, "regtest"))
    found.check("regtest")
    return found


@pytest.fixture
def coin(onchain_module_network: RegtestNetwork, cable: Side) -> Outpoint:
    """A new confirmed output of the cable's wallet."""
    txid = onchain_module_network.fund_wallet(cable.node, COIN_SAT)
    (new,) = [output.outpoint for output in cable.funds.outputs() if output.outpoint.txid == txid]
    return new


def versions(cable: Side, socket: Side, base: Base, *values_sat: int, fee_sat: int = FEE_SAT) -> list[Tx]:
    """Signed versions that pay the socket these values."""
    script, change = (script_of(side.funds.new_address(), "regtest") for side in (socket, cable))
    return [
        signed_tx(
            cable.funds.sign(base, [TxOutput(value_sat, script), TxOutput(COIN_SAT - value_sat - fee_sat, change)])
        )
        for value_sat in values_sat
    ]


def psbt_of(tx: Tx, bitcoind: Bitcoind) -> str:
    """As the socket hands it to its node: with what the chain knows of the inputs."""
    spent = [bitcoind.unspent(item.outpoint, include_mempool=False) for item in tx.inputs]
    return finalized_psbt(tx, [TxOutput(output.value_sat, output.script) for output in spent if output is not None])


def test_a_wallet_is_both_a_payers_and_a_receivers(cable: Side) -> None:
    paying: PayingFunds = cable.funds
    receiving: ReceivingFunds = cable.funds
    assert paying.feerate_per_kw() == receiving.feerate_per_kw() >= 253
    assert paying.new_address().startswith("bcrt1p")
    assert paying.new_address() != paying.new_address()


def test_the_nodes_bitcoind_is_found_by_its_own_options(socket: Side, bitcoind: Bitcoind) -> None:
    assert bitcoind.tip().height == socket.node.blockheight


def test_confirmed_outputs_are_listed_largest_first_until_they_are_reserved(
    onchain_module_network: RegtestNetwork, cable: Side, coin: Outpoint
) -> None:
    onchain_module_network.fund(cable.node, COIN_SAT * 3)
    outputs = cable.funds.outputs()
    values = [output.value_sat for output in outputs]
    assert values == sorted(values, reverse=True)
    assert COIN_SAT * 3 in values
    (own,) = [output for output in outputs if output.outpoint == coin]
    assert (own.value_sat, own.blockheight) == (COIN_SAT, cable.node.blockheight - 1)
    unconfirmed = onchain_module_network.chain.send(cable.funds.new_address(), COIN_SAT)
    onchain_module_network.chain.wait_for_tx(unconfirmed)
    base = cable.funds.reserve([coin])
    assert {output.outpoint for output in cable.funds.outputs()} == {o.outpoint for o in outputs} - {coin}
    cable.funds.release(base)
    assert coin in {output.outpoint for output in cable.funds.outputs()}


def test_a_version_is_the_smallest_transaction_with_these_outputs_and_bitcoind_takes_it(
    cable: Side, socket: Side, coin: Outpoint, bitcoind: Bitcoind
) -> None:
    base = cable.funds.reserve([coin])
    for value_sat in (600, 601, 5_000):
        (tx,) = versions(cable, socket, base, value_sat)
        assert (tx.version, tx.locktime, tx.outpoints) == (2, 0, frozenset({coin}))
        assert [item.sequence for item in tx.inputs] == [0xFFFFFFFD]
        assert [output.value_sat for output in tx.outputs] == [value_sat, COIN_SAT - value_sat - FEE_SAT]
        verdict = bitcoind.verdict(tx.raw)
        assert verdict.allowed, verdict.reason
        # The smallest that there is with one P2TR input and two P2TR outputs, which weigh 172 each.
        assert tx.vsize == 154
        too_much = base.inputs_weight - (154 * 4 - 2 * 172)
        assert 0 <= too_much <= (0 if cable.node.program.version >= EXACT_WEIGHT_SINCE else LESS_EXACT)
    cable.funds.release(base)


def test_an_output_is_reserved_for_one_aggregate_alone(cable: Side, coin: Outpoint) -> None:
    base = cable.funds.reserve([coin])
    with pytest.raises(NodeRefused, match="already reserved"):
        cable.funds.reserve([coin])
    assert cable.reserved_until(coin) == cable.node.blockheight + RESERVE_BLOCKS
    with pytest.raises(NodeRefused, match="Unknown UTXO"):
        cable.funds.reserve([Outpoint("77" * 32, 0)])
    cable.funds.release(base)


def test_a_renewed_reservation_counts_from_now_however_often_it_is_renewed(
    onchain_module_network: RegtestNetwork, cable: Side, coin: Outpoint
) -> None:
    base = cable.funds.reserve([coin])
    for _ in range(3):
        cable.funds.renew(base)
    assert cable.reserved_until(coin) == cable.node.blockheight + RESERVE_BLOCKS
    onchain_module_network.mine(2)
    cable.funds.renew(base)
    assert cable.reserved_until(coin) == cable.node.blockheight + RESERVE_BLOCKS
    cable.funds.release(base)
    assert cable.reserved_until(coin) == 0
    cable.funds.release(base)
    assert cable.reserved_until(coin) == 0


def test_what_was_reserved_many_times_over_is_given_back_at_once(cable: Side, coin: Outpoint) -> None:
    base = cable.funds.reserve([coin])
    for _ in range(5):
        cable.call("reserveinputs", psbt=base.psbt, exclusive=False, reserve=10_000)
    cable.funds.release(base)
    assert cable.reserved_until(coin) == 0


def test_a_lapsed_reservation_stops_signing_until_it_is_renewed(
    onchain_module_network: RegtestNetwork, cable: Side, socket: Side, coin: Outpoint, bitcoind: Bitcoind
) -> None:
    base = cable.funds.reserve([coin])
    cable.call("unreserveinputs", psbt=base.psbt, reserve=RESERVE_BLOCKS - 1)
    versions(cable, socket, base, 600)
    onchain_module_network.mine(1)
    assert cable.reserved_until(coin) == 0
    with pytest.raises(NodeRefused, match="is not reserved") as caught:
        versions(cable, socket, base, 600)
    assert caught.value.code == "reservation_lapsed"
    cable.funds.renew(base)
    (tx,) = versions(cable, socket, base, 600)
    assert bitcoind.verdict(tx.raw).allowed
    assert cable.reserved_until(coin) == cable.node.blockheight + RESERVE_BLOCKS
    cable.funds.release(base)


def test_an_output_that_the_wallet_would_not_make_is_refused(cable: Side, socket: Side, coin: Outpoint) -> None:
    base = cable.funds.reserve([coin])
    with pytest.raises(NodeRefused, match="dust limit"):
        versions(cable, socket, base, 545)
    cable.funds.release(base)


def test_inputs_that_the_wallet_does_not_know_cannot_be_renewed(cable: Side, socket: Side, coin: Outpoint) -> None:
    base = cable.funds.reserve([coin])
    with pytest.raises(NodeRefused, match="does not know these inputs"):
        socket.funds.renew(base)
    cable.funds.release(base)


def test_an_aggregate_is_sent_seen_mined_and_described_in_the_books(
    onchain_module_network: RegtestNetwork, cable: Side, socket: Side, coin: Outpoint, bitcoind: Bitcoind
) -> None:
    base = cable.funds.reserve([coin])
    (tx,) = versions(cable, socket, base, 5_000)
    psbt = psbt_of(tx, bitcoind)
    outpoint = Outpoint(tx.txid, 0)
    assert socket.funds.send(psbt) == tx.txid
    assert socket.funds.send(psbt) == tx.txid
    assert [
        (row["status"], int(row["amount_msat"]))
        for row in socket.call("listfunds")["outputs"]
        if row["txid"] == tx.txid
    ] == [("unconfirmed", 5_000_000)]
    assert cable.funds.spender(coin) is None
    with pytest.raises(RetryError) as caught:
        socket.funds.describe_income(outpoint, "wattline: too early")
    assert caught.value.code == "income_not_booked"
    height = onchain_module_network.mine(1)
    spender = cable.funds.spender(coin)
    assert spender is not None
    assert (spender.txid, spender.blockheight, spender.inputs) == (tx.txid, height, frozenset({coin}))
    assert spender.paid_to(tx.outputs[0].script) == 5_000
    assert cable.funds.spender(Outpoint("77" * 32, 0)) is None
    with pytest.raises(NodeRefused) as refused:
        socket.funds.send(psbt)
    assert refused.value.code == "already_mined"
    assert any(output.outpoint == outpoint and output.value_sat == 5_000 for output in socket.funds.outputs())
    _describe_when_booked(socket, outpoint, "wattline: session X")
    rows = socket.call("bkpr-listincome")["income_events"]
    assert [
        (row["tag"], int(row["credit_msat"]), row["description"])
        for row in rows
        if row.get("outpoint") == str(outpoint)
    ] == [("deposit", 5_000_000, "wattline: session X")]


def _describe_when_booked(side: Side, outpoint: Outpoint, text: str) -> None:
    def described() -> bool:
        side.funds.describe_income(outpoint, text)
        return True

    wait_until("the bookkeeper to have the deposit", described)


def test_a_broadcast_that_bitcoind_refuses_says_why(
    onchain_module_network: RegtestNetwork, cable: Side, socket: Side, coin: Outpoint, bitcoind: Bitcoind
) -> None:
    base = cable.funds.reserve([coin])
    (tx,) = versions(cable, socket, base, 600, fee_sat=10)
    cheap = psbt_of(tx, bitcoind)
    with pytest.raises(NodeRefused, match="min relay fee not met") as caught:
        socket.funds.send(cheap)
    assert caught.value.code == "broadcast_refused"
    assert "0200000000" not in caught.value.message
    (paying,) = versions(cable, socket, base, 5_000)
    bitcoind.broadcast(paying.raw)
    onchain_module_network.mine(1)
    with pytest.raises(NodeRefused, match="missingorspent") as caught:
        socket.funds.send(cheap)
    assert caught.value.code == "broadcast_refused"
    with pytest.raises(NodeRefused, match="Already spent"):
        cable.funds.reserve([coin])
    with pytest.raises(NodeRefused, match="already spent"):
        cable.funds.renew(base)
    cable.funds.release(base)


def test_a_psbt_with_one_odd_key_is_refused_and_one_of_our_own_for_the_same_transaction_is_helped_by_a_child(
    onchain_module_network: RegtestNetwork, cable: Side, socket: Side, coin: Outpoint, bitcoind: Bitcoind
) -> None:
    """Whoever hands a transaction over cannot keep the node from knowing its own output."""
    base = cable.funds.reserve([coin])
    (version,) = versions(cable, socket, base, 20_000)
    own = base64.b64decode(psbt_of(version, bitcoind))
    # A global extended public key (BIP 174, key type 1) that is none.
    odd = base64.b64encode(own[:5] + bytes([2, 1, 0xAA, 1, 0xBB]) + own[5:]).decode("ascii")
    with pytest.raises(NodeRefused):
        socket.funds.send(odd)
    taken = signed_tx(base64.b64decode(odd))
    assert taken.txid == version.txid
    outpoint = Outpoint(socket.funds.send(psbt_of(taken, bitcoind)), 0)
    child = socket.funds.bump(outpoint, 5_000)
    assert bitcoind.mempool_spenders([outpoint]) == {outpoint: child}
    script = version.outputs[0].script
    height = onchain_module_network.mine(1)
    (income,) = socket.funds.income(script)
    assert (income.outpoint, income.value_sat, income.blockheight) == (outpoint, 20_000, height), (
        "also when it is spent"
    )


def test_an_unconfirmed_income_is_bumped_by_a_child_that_pays_for_both(
    onchain_module_network: RegtestNetwork, cable: Side, socket: Side, coin: Outpoint, bitcoind: Bitcoind
) -> None:
    base = cable.funds.reserve([coin])
    (version,) = versions(cable, socket, base, 20_000)
    outpoint = Outpoint(socket.funds.send(psbt_of(version, bitcoind)), 0)
    child = socket.funds.bump(outpoint, 5_000)
    tx = bitcoind.mempool_tx(child)
    assert tx is not None
    assert tx.outpoints == {outpoint}
    assert bitcoind.mempool_spenders([outpoint]) == {outpoint: child}
    fee_sat = 20_000 - sum(output.value_sat for output in tx.outputs)
    assert fee_sat >= 5_000 * (tx.vsize * 4 - 3) // 1000
    height = onchain_module_network.mine(1)
    mined = bitcoind.mined_spender(coin, height)
    assert mined is not None
    assert mined.tx.txid == outpoint.txid


@pytest.mark.real_only
def test_what_lightningd_keeps_for_its_anchor_channels_is_not_reserved(onchain_network: RegtestNetwork) -> None:
    cable, peer = onchain_network.nodes("cable", "peer")
    onchain_network.open_channel(cable, peer, 500_000)
    funds = CoreLightningFunds(NodeRpc(cable.rpc_path))
    (change,) = funds.outputs()
    with pytest.raises(NodeRefused, match="min-emergency-msat") as caught:
        funds.reserve([change.outpoint])
    assert caught.value.code == "funds_kept_back"
    assert [output.outpoint for output in funds.outputs()] == [change.outpoint]
    onchain_network.fund_wallet(cable, COIN_SAT)
    base = funds.reserve([change.outpoint])
    script = script_of(funds.new_address(), "regtest")
    assert funds.sign(base, [TxOutput(600, script)]).startswith(b"psbt\xff")
