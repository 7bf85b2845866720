"""``method = "auto"``: over Lightning as long as that works, and on-chain from then on, in one and the same session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness.direct_payment import channels, level
from harness.onchain_trade import (
    FLOOR_SAT,
    FUNDS_SAT,
    TRADE,
    bury,
    cable_changes,
    cable_row,
    check_settled,
    clean,
    closed,
    end,
    keysend_msat,
    ledger_of,
    live_session,
    session_when,
)

from wattline.core.aggregate import MSAT_PER_SAT
from wattline.regtest.books import books_of
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import Json, Scene
from wattline.regtest.settlement import Settlement
from wattline.regtest.waiting import wait_until

pytestmark = [pytest.mark.lightningd, pytest.mark.long, pytest.mark.timeout(180)]

CHEAPER = replace(TRADE, energy_msat_per_kwh=400_000_000)
"""1300 W cost 144 sat a second."""
CHANNEL_SAT = 100_000
PUSH_MSAT = 80_000_000
DRY_SAT = 800
"""What the cable can spend in its one channel: some five seconds of delivery."""
INCREMENT_MSAT = 200_000
"""The largest that is paid over Lightning at a time."""
LARGE_MSAT = 600_000
BOTH_CHANNELS_SINCE = (25, 9)
"""An older getroutes may find no single path though the second channel could carry the payment."""
"""No dust on a commitment transaction (BOLT #3): of that a channel can carry somewhat more than it says."""
TWIN_SAT = LARGE_MSAT // MSAT_PER_SAT + 400
"""In each of two channels: one large increment, and a rest that makes another only together with the other's."""
WORTH_IT = {"max_fee_ratio": 0.9}
"""What is left to pay on-chain is little, and these sessions are about other things."""


@pytest.fixture(scope="module")
def scene(onchain_module_network: RegtestNetwork) -> Iterator[Scene]:
    with Scene(onchain_module_network, CHEAPER) as scene:
        socket = scene.start_node()
        single, twin, bare = onchain_module_network.nodes("single", "twin", "bare")
        for wallet, count in ((single, 1), (twin, 2)):
            for _ in range(count):
                onchain_module_network.open_channel(wallet, socket, CHANNEL_SAT, push_msat=PUSH_MSAT)
        for wallet in (single, twin, bare):
            onchain_module_network.fund_wallet(wallet, FUNDS_SAT, outputs=2)
        scene.wait_running()
        wait_until("the socket sees the chain", lambda: scene.status()["onchain"]["trouble"] is None, 20)
        yield scene


@pytest.fixture(autouse=True)
def _clean(scene: Scene) -> Iterator[None]:
    yield
    clean(scene)


@pytest.fixture(scope="module")
def wallets(scene: Scene) -> dict[str, Node]:
    return {node.name: node for node in scene.network.all_nodes}


def config(scene: Scene, wallet: Node, name: str, **payment: int) -> Path:
    increments = {"min_increment_msat": 1_000, "max_increment_msat": INCREMENT_MSAT, **payment}
    limits = {"max_prepaid_msat": 1_500_000}
    changes = cable_changes(payment={"method": "auto", **increments}, limits=limits, onchain=WORTH_IT)
    return scene.write_cable_config(wallet, name, changes=changes)


def charged_beyond_lightning(session: Json, by_keysend_msat: int) -> bool:
    """More than the floor is owed on-chain, so that the final version pays an exact charge."""
    return bool(session["charged_msat"] > by_keysend_msat + (FLOOR_SAT + 100) * MSAT_PER_SAT)


def check_both_methods(
    scene: Scene, wallet: Node, path: Path, session_id: str, settlement: Settlement, moves: int
) -> Json:
    """The end of a session that went over: the relay never opened on the way, every node lives, and each method's books
    agree by themselves."""
    assert [move.closed for move in scene.world.history(0)[moves:]] == [True, False]
    for node in scene.network.all_nodes:
        assert node.is_running
        assert node.rpc.getinfo()["id"] == node.node_id
    session = check_settled(scene, session_id, settlement)
    by_keysend_msat = keysend_msat(scene, session_id)
    assert by_keysend_msat > 0
    assert scene.books(wallet, session_id).agree
    books = books_of(session_id, scene.node, wallet, scene.ledger_path, ledger_of(path))
    assert books.agree, books
    assert books.increments.sent_by_node == by_keysend_msat
    payments = len(scene.books(wallet, session_id).credited)
    assert session["payments"] == payments + settlement.increments
    return session


def test_when_the_channel_runs_dry_the_session_goes_on_on_chain_and_the_relay_stays_closed(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    wallet = wallets["single"]
    level(wallet, scene.node, DRY_SAT * MSAT_PER_SAT)
    path = config(scene, wallet, "dry")
    moves = len(scene.world.history(0))
    cable = scene.run_cable(path)
    live = live_session(scene, increments=2)
    session_id = live["session_id"]
    by_keysend_msat = keysend_msat(scene, session_id)
    assert by_keysend_msat > DRY_SAT * MSAT_PER_SAT // 2, "it began over Lightning"
    session_when(scene, session_id, "on-chain", lambda session: charged_beyond_lightning(session, by_keysend_msat))
    settlement, summary = end(scene, cable, session_id)
    session = check_both_methods(scene, wallet, path, session_id, settlement, moves)
    assert settlement.value_sat == -(-(session["charged_msat"] - by_keysend_msat) // MSAT_PER_SAT) > FLOOR_SAT
    assert (session["refund_status"], session["stop_reason"]) == ("kept", "cable_closed")
    assert session["balance_msat"] < MSAT_PER_SAT
    assert (summary["method"], summary["increments"]) == ("onchain", settlement.increments)
    assert summary["paid_msat"] == session["credited_msat"]
    assert summary["fees_msat"] == settlement.fee_sat * MSAT_PER_SAT


def test_where_two_channels_could_only_together_carry_an_increment_it_goes_over_and_no_node_dies(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    wallet = wallets["twin"]
    level(wallet, scene.node, TWIN_SAT * MSAT_PER_SAT)
    path = config(scene, wallet, "twin", min_increment_msat=LARGE_MSAT, max_increment_msat=LARGE_MSAT)
    moves = len(scene.world.history(0))
    cable = scene.run_cable(path)
    live = live_session(scene, increments=2)
    session_id = live["session_id"]
    left_msat = [channel.spendable_msat for channel in channels(wallet, scene.node)]
    by_keysend_msat = keysend_msat(scene, session_id)
    if scene.node.program.version >= BOTH_CHANNELS_SINCE:
        assert max(left_msat) < LARGE_MSAT <= sum(left_msat)
        assert by_keysend_msat == 2 * LARGE_MSAT, "both channels were used up first"
    assert by_keysend_msat >= LARGE_MSAT
    session_when(scene, session_id, "on-chain", lambda session: charged_beyond_lightning(session, by_keysend_msat))
    settlement, _ = end(scene, cable, session_id)
    check_both_methods(scene, wallet, path, session_id, settlement, moves)
    assert bury(scene, session_id)["onchain"]["status"] == "settled"


def test_a_session_that_ends_before_anything_is_owed_on_chain_broadcasts_nothing_and_gets_its_rest_by_lightning(
    scene: Scene, wallets: dict[str, Node]
) -> None:
    wallet = wallets["single"]
    level(wallet, scene.node, DRY_SAT * MSAT_PER_SAT)
    path = config(scene, wallet, "void")
    moves = len(scene.world.history(0))
    cable = scene.run_cable(path)
    session_id = live_session(scene, increments=1)["session_id"]
    scene.world.plug(0, "constant-0")
    cable.interrupt()
    session = closed(scene, session_id)
    status, summary = cable.result()
    assert status == 0, (summary, cable.log_text())
    by_keysend_msat = keysend_msat(scene, session_id)
    assert session["charged_msat"] < by_keysend_msat
    onchain = session["onchain"]
    assert (onchain["status"], onchain["exposure_sat"], onchain["mined_txid"]) == ("void", 0, None)
    assert session["returned_msat"] == session["onchain_credited_msat"] > 0
    assert session["refund_status"] == "sent"
    assert session["refunded_msat"] - session["returned_msat"] == by_keysend_msat - session["charged_msat"]
    assert session["balance_msat"] == 0
    assert [move.closed for move in scene.world.history(0)[moves:]] == [True, False]
    books = books_of(session_id, scene.node, wallet, scene.ledger_path, ledger_of(path))
    assert books.agree, books
    assert books.refunds.received_by_node == by_keysend_msat - session["charged_msat"]

    row = cable_row(path, session_id)
    # The socket still holds what was signed: the cable goes on looking, though nothing may rightly be mined.
    assert (row.status, row.agreed_sat) == ("ended", 0)
    (taken,) = row.inputs
    chain = scene.network.chain
    assert onchain["txid"] is None or onchain["txid"] not in chain.call("getrawmempool")
    assert chain.call("gettxout", taken.outpoint.txid, taken.outpoint.vout, True), "the input is not spent"
    outputs = wallet.rpc.listfunds()["outputs"]
    (own,) = [item for item in outputs if (item["txid"], item["output"]) == (taken.outpoint.txid, taken.outpoint.vout)]
    assert not own["reserved"], "and free again"
    assert (summary["fees_msat"], summary["txid"], summary["onchain_value_sat"]) == (0, "", 0)


def test_without_any_channel_a_session_is_paid_on_chain_from_its_start(scene: Scene, wallets: dict[str, Node]) -> None:
    wallet = wallets["bare"]
    path = config(scene, wallet, "bare")
    cable = scene.run_cable(path)
    session_id = live_session(scene, increments=4)["session_id"]
    settlement, summary = end(scene, cable, session_id)
    session = check_settled(scene, session_id, settlement)
    assert keysend_msat(scene, session_id) == 0
    assert (session["method"], summary["method"]) == ("onchain", "onchain")
    assert session["payments"] == settlement.increments


def test_while_lightning_carries_it_nothing_is_prepared_on_chain(scene: Scene, wallets: dict[str, Node]) -> None:
    wallet = wallets["single"]
    level(wallet, scene.node, 10_000 * MSAT_PER_SAT)
    path = config(scene, wallet, "fluid")
    cable = scene.run_cable(path, for_s=6)
    status, summary = cable.result()
    assert status == 0, (summary, cable.log_text())
    session = scene.session(summary["session_id"])
    assert summary["method"] == session["method"] == "keysend"
    assert "onchain" not in session
    assert not any(output["reserved"] for output in wallet.rpc.listfunds()["outputs"])
    assert session["refund_status"] == "sent"
