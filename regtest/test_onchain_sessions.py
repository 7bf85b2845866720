"""Sessions that the real cable pays on-chain: from opening to the bookkeeper, and those that it does not open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.onchain_trade import (
    CONFIRMATIONS,
    FUNDS_SAT,
    PRICE_MSAT_PER_KWH,
    TRADE,
    bury,
    cable_changes,
    cable_row,
    check_settled,
    clean,
    closed,
    end,
    income,
    live_session,
)

from wattline.core.aggregate import MSAT_PER_SAT
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import CableProcess, Json, Scene, Trade
from wattline.regtest.settlement import confirmed, seen_in_block, settlement_of, transaction, wait_sent
from wattline.regtest.waiting import wait_until

pytestmark = [pytest.mark.lightningd, pytest.mark.long, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def wallets(onchain_module_network: RegtestNetwork) -> dict[str, Node]:
    nodes = onchain_module_network.nodes("cable", "second", "poor")
    return {node.name: node for node in nodes}


@pytest.fixture(scope="module")
def scene(onchain_module_network: RegtestNetwork, wallets: dict[str, Node]) -> Iterator[Scene]:
    with Scene(onchain_module_network, TRADE) as scene:
        scene.start_node()
        onchain_module_network.fund_wallet(wallets["cable"], FUNDS_SAT, outputs=2)
        onchain_module_network.fund_wallet(wallets["second"], FUNDS_SAT)
        scene.wait_running()
        wait_until("the socket sees the chain", lambda: scene.status()["onchain"]["trouble"] is None, 20)
        yield scene


@pytest.fixture(autouse=True)
def _clean(scene: Scene) -> Iterator[None]:
    yield
    clean(scene)


def config(scene: Scene, wallet: Node, name: str, circuit: int = 0) -> Path:
    return scene.write_cable_config(wallet, name, circuit, cable_changes())


def refused(cable: CableProcess) -> Json:
    """The summary of a cable that opened no session."""
    status, summary = cable.result()
    assert status == 1, summary
    assert summary["session_id"] == ""
    return summary


def test_a_cable_without_any_channel_pays_a_whole_session_by_one_transaction(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    wallet = wallets["cable"]
    assert wallet.rpc.listpeerchannels()["channels"] == []
    path = config(scene, wallet, "whole")
    moves = len(scene.world.history(0))
    cable = scene.run_cable(path, for_s=7)
    live = live_session(scene, increments=5)
    session_id = live["session_id"]
    assert (live["method"], live["state"], live["onchain"]["status"]) == ("onchain", "delivering", "open")
    growing = live["onchain"]
    assert growing["exposure_sat"] == growing["value_sat"] == live["onchain_credited_msat"] // MSAT_PER_SAT
    assert growing["txid"]
    assert growing["mined_txid"] is None
    assert growing["confirmations"] == 0
    status = scene.status()["onchain"]
    assert status["exposure_sat"] >= growing["exposure_sat"]
    assert status["unfinished"] == 1
    assert growing["txid"] not in scene.network.chain.call("getrawmempool"), "nothing is broadcast before the end"

    closed(scene, session_id)
    sent = settlement_of(scene, session_id)
    assert sent.confirmations == sent.value_sat == 0
    assert scene.session(session_id)["onchain"]["exposure_sat"] == sent.counted_sat, "not before it is in a block"
    settlement = confirmed(scene, scene.network, session_id)
    done, summary = cable.result()
    assert done == 0, cable.log_text()
    session = check_settled(scene, session_id, settlement)
    assert [move.closed for move in scene.world.history(0)[moves:]] == [True, False]

    # What the cable says is what the socket and the chain say.
    assert (summary["stop_reason"], summary["method"], summary["objections"]) == ("done", "onchain", [])
    assert (summary["txid"], summary["fee_sat"]) == (settlement.txid, settlement.fee_sat)
    assert summary["onchain_value_sat"] == settlement.value_sat
    assert summary["increments"] == settlement.increments == session["payments"] >= 8
    assert summary["fees_msat"] == settlement.fee_sat * MSAT_PER_SAT
    for key in ("credited_msat", "charged_msat", "refunded_msat", "balance_msat"):
        assert summary[key] == session[key], key
    row = cable_row(path, session_id)
    assert (row.status, row.mined_txid, row.mined_sat) == ("settled", settlement.txid, settlement.value_sat)

    # And the node's own bookkeeper.
    def booked() -> list[Json] | None:
        rows = income(scene.node, settlement.txid)
        return rows if rows and all("description" in row for row in rows) else None

    (deposit,) = wait_until("the bookkeeper knows of it", booked, 20)
    assert int(deposit["credit_msat"]) == settlement.value_sat * MSAT_PER_SAT
    assert deposit["description"] == f"wattline:1:{session_id}"

    assert session["onchain"]["status"] == "sent", "one confirmation is not final yet"
    final = bury(scene, session_id)
    assert final["onchain"]["status"] == "settled"
    assert final["onchain"]["confirmations"] >= CONFIRMATIONS
    status = scene.status()["onchain"]
    assert (status["exposure_sat"], status["unfinished"], status["refused_cables"]) == (0, 0, 0)
    totals = scene.node.rpc.call("wattline-report")
    assert totals["onchain_credited_msat"] == session["onchain_credited_msat"]
    assert totals["lost_msat"] == 0
    assert scene.node.rpc.call("wattline-refused") == {"refused": []}


def test_a_session_too_short_to_be_worth_the_fee_is_not_opened_and_the_cable_says_why(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    before = len(scene.sessions())
    summary = refused(scene.run_cable(config(scene, wallets["cable"], "short"), for_s=1))
    assert summary["stop_reason"] == "onchain_not_worth"
    for words in ("miner fee", "max_fee_ratio", "rated power"):
        assert words in summary["message"]
    assert len(scene.sessions()) == before


def test_at_a_price_at_which_toast_is_cheap_no_session_is_opened(scene: Scene, wallets: dict[str, Node]) -> None:
    before = len(scene.sessions())
    scene.node.rpc.call("wattline-tariff", {"energy_msat_per_kwh": 300_000})
    try:
        summary = refused(scene.run_cable(config(scene, wallets["cable"], "cheap"), for_s=30))
    finally:
        scene.node.rpc.call("wattline-tariff", {"energy_msat_per_kwh": PRICE_MSAT_PER_KWH})
    assert summary["stop_reason"] == "onchain_not_worth"
    assert "546 sat at the least" in summary["message"]
    assert len(scene.sessions()) == before


def test_a_wallet_without_a_confirmed_output_is_told_what_it_needs(scene: Scene, wallets: dict[str, Node]) -> None:
    before = len(scene.sessions())
    summary = refused(scene.run_cable(config(scene, wallets["poor"], "poor"), for_s=20))
    assert summary["stop_reason"] == "no_onchain_funds"
    assert "newaddr" in summary["message"]
    assert len(scene.sessions()) == before


def test_the_next_session_is_paid_from_the_change_as_soon_as_that_is_confirmed(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    wallet = wallets["second"]
    path = config(scene, wallet, "change")
    first_cable = scene.run_cable(path)
    first = live_session(scene, increments=3)["session_id"]
    first_cable.interrupt()
    closed(scene, first)
    status, summary = first_cable.result()
    assert status == 0, first_cable.log_text()
    assert summary["txid"] == scene.session(first)["onchain"]["txid"]
    assert cable_row(path, first).status == "ended", "nothing is mined yet"

    # All that the wallet has is in the transaction that no block has yet.
    early = refused(scene.run_cable(path))
    assert early["stop_reason"] == "no_onchain_funds"
    assert "confirm" in early["message"]

    first_settlement = confirmed(scene, scene.network, first)
    check_settled(scene, first, first_settlement)
    second_cable = scene.run_cable(path)
    second = live_session(scene, increments=3)["session_id"]
    assert second != first
    row = cable_row(path, first)
    assert (row.status, row.mined_sat) == ("settled", first_settlement.value_sat), "seen at the next start"
    second_settlement, _ = end(scene, second_cable, second)
    check_settled(scene, second, second_settlement)
    tx = transaction(scene.network.chain, second_settlement.txid)
    assert tx is not None
    assert [item["txid"] for item in tx["vin"]] == [first_settlement.txid]


def test_several_outlets_are_paid_at_once_by_a_transaction_each_two_of_them_from_one_wallet(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    owners = [wallets["cable"], wallets["cable"], wallets["second"]]
    before_uwh = [scene.world.energy_uwh(circuit) for circuit in range(3)]
    paths = [config(scene, wallet, f"outlet-{number}", number) for number, wallet in enumerate(owners)]
    cables = [scene.run_cable(path) for path in paths]
    session_ids = [live_session(scene, f"A{number + 1}", 4)["session_id"] for number in range(3)]
    exposure_sat = sum(scene.session(session_id)["onchain"]["exposure_sat"] for session_id in session_ids)
    assert scene.status()["onchain"]["exposure_sat"] >= exposure_sat
    for cable in cables:
        cable.interrupt()
    for session_id in session_ids:
        closed(scene, session_id)
        wait_sent(scene, session_id)
    scene.network.mine(1)
    settlements = [seen_in_block(scene, session_id) for session_id in session_ids]
    assert len({settlement.txid for settlement in settlements}) == 3
    for number, (session_id, settlement, cable) in enumerate(zip(session_ids, settlements, cables, strict=True)):
        status, summary = cable.result()
        assert status == 0, cable.log_text()
        session = check_settled(scene, session_id, settlement)
        assert summary["txid"] == settlement.txid
        delivered_uwh = scene.world.energy_uwh(number) - before_uwh[number]
        assert session["energy_uwh"] == pytest.approx(delivered_uwh, rel=0.005, abs=200)


def test_the_operator_stops_a_session_and_the_exact_charge_is_paid_all_the_same(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    path = config(scene, wallets["cable"], "stopped")
    cable = scene.run_cable(path)
    session_id = live_session(scene, increments=5)["session_id"]
    assert scene.node.rpc.call("wattline-stop", {"session_id": session_id})["stopped"] is True
    assert closed(scene, session_id)["stop_reason"] == "operator_stopped"
    assert not scene.world.relay_closed(0)
    settlement = confirmed(scene, scene.network, session_id)
    _, summary = cable.result()
    assert (summary["stop_reason"], summary["socket_stop_reason"]) == ("socket_closed", "operator_stopped")
    assert summary["objections"] == []
    assert summary["onchain_value_sat"] == settlement.value_sat
    session = check_settled(scene, session_id, settlement)
    assert session["onchain"]["choice_reason"] == "final"
    assert session["returned_msat"] == session["onchain_credited_msat"] - settlement.value_sat * MSAT_PER_SAT


def test_a_wallet_that_spends_the_input_elsewhere_is_cut_off_and_refused_until_the_operator_forgives(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    wallet = wallets["second"]
    path = config(scene, wallet, "thief")
    cable = scene.run_cable(path)
    live = live_session(scene, increments=3)
    session_id = live["session_id"]
    row = cable_row(path, session_id)
    cable.freeze()  # it would reserve its input again
    (taken,) = row.inputs
    wallet.rpc.call("unreserveinputs", {"psbt": row.base_psbt, "reserve": 2 * 72})
    destination = wallet.rpc.newaddr("p2tr")["p2tr"]
    rival = wallet.rpc.call(
        "withdraw",
        {"destination": destination, "satoshi": "all", "feerate": "5000perkw", "utxos": [str(taken.outpoint)]},
    )["txid"]
    stopped = closed(scene, session_id)
    assert stopped["stop_reason"] == "double_spent"
    assert not scene.world.relay_closed(0)
    scene.network.mine(1)

    def lost() -> Json | None:
        session = scene.session(session_id)
        return session if session["onchain"]["mined_txid"] == rival else None

    session = wait_until("the loss is booked", lost, 20)
    assert session["missing_msat"] == session["onchain_credited_msat"] - session["returned_msat"] > 0
    assert session["lost_msat"] == session["charged_msat"] > 0, "all that was delivered"
    settlement = settlement_of(scene, session_id)
    assert settlement.agrees
    assert settlement.value_sat == 0
    assert session["lost_msat"] <= 10_000 * MSAT_PER_SAT, "the exposure cap"
    assert scene.node.rpc.call("wattline-report")["lost_msat"] == session["lost_msat"]
    cable.thaw()
    cable.result()

    (told,) = scene.node.rpc.call("wattline-refused")["refused"]
    assert (told["cable_node_id"], told["reason"], told["session_id"]) == (wallet.node_id, "double_spent", session_id)
    assert scene.status()["onchain"]["refused_cables"] == 1
    before = len(scene.sessions())
    summary = scene.run_cable(path).result()[1]
    assert summary["stop_reason"] not in ("done", "operator")
    assert not scene.world.relay_closed(0)
    assert all(newer["credited_msat"] == 0 for newer in scene.sessions()[: len(scene.sessions()) - before])

    scene.node.rpc.call("wattline-refused", {"forgive": wallet.node_id})
    assert scene.status()["onchain"]["refused_cables"] == 0
    again = scene.run_cable(path)
    forgiven = live_session(scene, increments=2)["session_id"]
    settlement, _ = end(scene, again, forgiven)
    check_settled(scene, forgiven, settlement)


def test_a_socket_that_takes_nothing_on_chain_says_so_before_anything_is_opened(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    trade = Trade(energy_msat_per_kwh=PRICE_MSAT_PER_KWH, profiles=("constant-1300",), session=TRADE.session)
    with Scene(scene.network, trade, name="other") as other:
        other.start_node()
        other.wait_running()
        assert other.status()["onchain"] == {"enabled": False}
        summary = refused(other.run_cable(config(other, wallets["cable"], "keysend-only"), for_s=20))
        assert summary["stop_reason"] == "method_not_supported"
        assert other.sessions() == []
