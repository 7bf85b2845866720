"""Whatever dies, at whatever moment of a session that is paid on-chain: the right version is mined in the end, and only
one, and the ledger equals the chain."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.onchain_trade import (
    FUNDS_SAT,
    TRADE,
    bury,
    cable_changes,
    cable_row,
    check_settled,
    clean,
    closed,
    end,
    live_session,
    session_when,
    told,
)

from wattline.cable.pay.settlement import agreed_sat
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.device.controller.plugin_starter import process_start_time
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import CableProcess, Json, Scene
from wattline.regtest.settlement import confirmed, seen_in_block, settlement_of, transaction, wait_sent
from wattline.regtest.waiting import wait_until

pytestmark = [pytest.mark.lightningd, pytest.mark.long, pytest.mark.timeout(180)]
QUIET_S = 2.0
"""Some times the pace of payments."""

OUTPUTS = 6


@pytest.fixture(scope="module")
def scene(onchain_module_network: RegtestNetwork) -> Iterator[Scene]:
    with Scene(onchain_module_network, TRADE) as scene:
        scene.start_node()
        wallet = onchain_module_network.node("cable")
        onchain_module_network.fund_wallet(wallet, FUNDS_SAT, outputs=OUTPUTS)
        scene.wait_running()
        wait_sees_chain(scene)
        yield scene


@pytest.fixture(autouse=True)
def _clean(scene: Scene) -> Iterator[None]:
    yield
    clean(scene)


@pytest.fixture(scope="module")
def wallet(scene: Scene) -> Node:
    return next(node for node in scene.network.all_nodes if node.name == "cable")


@pytest.fixture
def path(scene: Scene, wallet: Node, request: pytest.FixtureRequest) -> Path:
    """A cable's configuration, with a ledger of its own for each test."""
    return scene.write_cable_config(wallet, request.function.__name__[5:40], changes=cable_changes())


def wait_sees_chain(scene: Scene) -> None:
    wait_until("the socket sees the chain", lambda: told(scene.status)["onchain"]["trouble"] is None, 30)


def begun(scene: Scene, path: Path, increments: int = 3) -> tuple[CableProcess, Json]:
    """A cable in mid-session, and the session."""
    cable = scene.run_cable(path)
    return cable, live_session(scene, increments=increments)


def goes_on(scene: Scene, before: Json) -> Json:
    """The same session with more versions of the same transaction, and energy flowing."""
    wanted = before["onchain"]["increments"] + 2
    session = live_session(scene, increments=wanted)
    assert session["session_id"] == before["session_id"]
    assert session["onchain"]["address"] == before["onchain"]["address"]
    assert session["credited_msat"] > before["credited_msat"]
    return session


def unplug(scene: Scene, session_id: str) -> None:
    """The load is taken away, so that nothing more has to be paid: practice nodes cannot sign without bitcoind. What
    was decided on just before has arrived when this returns."""
    scene.world.plug(0, "constant-0")
    wait_until("no power", lambda: scene.status()["outlets"][0]["power_mw"] < 1_000, 20)
    last, since = -1, time.monotonic()

    def pays_no_more() -> bool:
        nonlocal last, since
        payments = scene.session(session_id)["payments"]
        if payments != last:
            last, since = payments, time.monotonic()
        return time.monotonic() - since >= QUIET_S

    wait_until("no payment", pays_no_more, 20)


def kill_plugin(scene: Scene) -> None:
    """SIGKILL; returns when the process is gone."""
    pid = scene.plugin_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until("the plugin is gone", lambda: process_start_time(pid) is None, 20)


def test_a_cable_killed_in_mid_session_goes_on_with_the_same_transaction(scene: Scene, path: Path) -> None:
    cable, before = begun(scene, path)
    session_id = before["session_id"]
    cable.kill()
    row = cable_row(path, session_id)
    again = scene.run_cable(path)
    goes_on(scene, before)
    resumed = cable_row(path, session_id)
    assert (resumed.inputs, resumed.base_psbt, resumed.fee_sat) == (row.inputs, row.base_psbt, row.fee_sat)
    settlement, summary = end(scene, again, session_id)
    check_settled(scene, session_id, settlement)
    assert summary["session_id"] == session_id
    assert summary["onchain_value_sat"] == settlement.value_sat
    assert cable_row(path, session_id).status == "settled"


def test_of_a_cable_killed_before_it_signed_the_final_version_the_newest_is_mined_and_the_rest_is_owed(
    scene: Scene, path: Path
) -> None:
    cable, before = begun(scene, path)
    session_id = before["session_id"]
    owed = scene.status()["refunds_owed"]  # to earlier sessions, which came to less than the floor
    cable.freeze()
    scene.node.rpc.call("wattline-stop", {"session_id": session_id})
    session_when(scene, session_id, "settling", lambda session: session["state"] in ("settling", "closed"))
    cable.kill()
    session = closed(scene, session_id)
    settlement = confirmed(scene, scene.network, session_id)
    check_settled(scene, session_id, settlement, is_final=False)
    assert session["onchain"]["choice_reason"] == "operator_stopped"
    assert settlement.value_sat * MSAT_PER_SAT == session["onchain_credited_msat"] > session["charged_msat"]
    assert session["refund_status"] == "owed"
    assert session["balance_msat"] == session["credited_msat"] - session["charged_msat"] > MSAT_PER_SAT
    assert scene.status()["refunds_owed"] == owed + 1
    # Without a channel it cannot be sent, final or not; it is not forgotten.
    assert bury(scene, session_id)["refund_status"] == "owed"

    # The cable finds out at its next start, remembers what it is owed, and forgives it once.
    again, _ = begun(scene, path, increments=1)
    row = cable_row(path, session_id)
    assert (row.status, row.mined_txid, row.mined_sat) == ("unanswered", settlement.txid, settlement.value_sat)
    assert row.owed_sat == settlement.value_sat - max(row.floor_sat, -(-session["charged_msat"] // MSAT_PER_SAT))
    next_id = live_session(scene)["session_id"]
    assert next_id != session_id
    check_settled(scene, next_id, end(scene, again, next_id)[0])


def test_a_killed_plugin_comes_back_and_takes_more_versions_of_the_same_transaction(scene: Scene, path: Path) -> None:
    cable, before = begun(scene, path)
    killed = len(scene.world.history(0))
    kill_plugin(scene)
    goes_on(scene, before)
    moves = [move.closed for move in scene.world.history(0)[killed:]]
    assert (moves[0], moves[-1]) == (False, True), "it opened, and energy flows again"
    settlement, _ = end(scene, cable, before["session_id"])
    check_settled(scene, before["session_id"], settlement)


def test_a_killed_lightningd_of_the_socket_takes_up_the_transaction_again(scene: Scene, path: Path) -> None:
    cable, before = begun(scene, path)
    scene.node.kill()
    wait_until("the relay is open", lambda: not scene.world.relay_closed(0), 20)
    scene.node.start()
    scene.wait_running()
    goes_on(scene, before)
    settlement, _ = end(scene, cable, before["session_id"])
    check_settled(scene, before["session_id"], settlement)


def test_while_the_cables_node_is_down_nothing_is_signed_and_the_session_waits_for_it(
    scene: Scene, wallet: Node, path: Path
) -> None:
    cable, before = begun(scene, path)
    session_id = before["session_id"]
    wallet.kill()
    try:
        session_when(scene, session_id, "paused", lambda session: bool(session["state"] == "paused"))
        wait_until("the relay is open", lambda: not scene.world.relay_closed(0), 5)
        assert scene.session(session_id)["balance_msat"] >= 0
    finally:
        wallet.start()
    goes_on(scene, before)
    settlement, _ = end(scene, cable, session_id)
    check_settled(scene, session_id, settlement)


def test_with_bitcoind_down_at_the_close_the_newest_version_is_mined_once_it_is_back(scene: Scene, path: Path) -> None:
    cable, before = begun(scene, path)
    session_id = before["session_id"]
    unplug(scene, session_id)
    chain = scene.network.chain
    chain.stop()
    try:
        cable.interrupt()
        session = closed(scene, session_id)
        assert session["onchain"]["status"] == "sent", "what is to be sent is known before it can be"
        assert session["onchain"]["choice_reason"] == "cable_closed"
        assert scene.status()["onchain"]["trouble"]
        status, summary = cable.result()
        assert (status, summary["objections"]) == (0, []), cable.log_text()
    finally:
        chain.start()
    settlement = confirmed(scene, scene.network, session_id)
    check_settled(scene, session_id, settlement, is_final=False)
    assert summary["txid"] == settlement.txid
    wait_sees_chain(scene)


def test_with_bitcoind_down_for_a_moment_at_the_close_the_exact_charge_is_mined(scene: Scene, path: Path) -> None:
    cable, before = begun(scene, path)
    session_id = before["session_id"]
    session_when(scene, session_id, "beyond the floor", lambda session: session["charged_msat"] > 600 * MSAT_PER_SAT)
    unplug(scene, session_id)
    chain = scene.network.chain
    chain.stop()
    try:
        cable.interrupt()
        session_when(scene, session_id, "settling", lambda session: session["state"] in ("settling", "closed"))
    finally:
        chain.start()
    session = closed(scene, session_id)
    settlement = confirmed(scene, scene.network, session_id)
    check_settled(scene, session_id, settlement, is_final=session["returned_msat"] > 0)
    assert cable.result()[0] == 0, cable.log_text()


def test_a_settlement_that_a_reorg_takes_out_of_the_chain_is_mined_again(scene: Scene, path: Path) -> None:
    cable, before = begun(scene, path)
    session_id = before["session_id"]
    first, _ = end(scene, cable, session_id)
    chain = scene.network.chain
    tx = transaction(chain, first.txid)
    assert tx is not None
    chain.call("invalidateblock", tx["blockhash"])
    # A longer chain without it.
    address = chain.call("getnewaddress")
    for _ in range(2):
        chain.call("generateblock", address, [])

    def taken_out() -> bool:
        onchain = scene.session(session_id)["onchain"]
        return bool(onchain["mined_txid"] is None and onchain["exposure_sat"] == first.value_sat)

    wait_until("the socket counts on nothing that is not in the chain", taken_out, 30)
    assert settlement_of(scene, session_id).confirmations == 0
    again = confirmed(scene, scene.network, session_id)
    assert again.txid == first.txid
    check_settled(scene, session_id, again)
    assert bury(scene, session_id)["onchain"]["status"] == "settled"


def test_after_a_restart_of_everything_the_version_that_nobody_had_broadcast_is_mined(
    scene: Scene, wallet: Node, path: Path
) -> None:
    cable, before = begun(scene, path)
    session_id = before["session_id"]
    cable.kill()
    scene.node.kill()
    wallet.kill()
    scene.network.chain.stop()
    scene.network.chain.start()
    wallet.start()
    scene.node.start()
    scene.wait_running()
    wait_sees_chain(scene)
    was_closed = scene.world.relay_closed(0)
    restored = scene.session(session_id)
    assert restored["onchain"]["status"] == "open"
    assert restored["onchain"]["increments"] >= before["onchain"]["increments"]
    assert not was_closed or restored["state"] == "delivering"
    scene.node.rpc.call("wattline-stop", {"session_id": session_id})
    closed(scene, session_id)
    settlement = confirmed(scene, scene.network, session_id)
    session = check_settled(scene, session_id, settlement, is_final=False)
    assert settlement.value_sat * MSAT_PER_SAT == restored["onchain_credited_msat"] == session["onchain_credited_msat"]
    assert bury(scene, session_id)["onchain"]["status"] == "settled"


@pytest.fixture(scope="module")
def no_revival(scene: Scene) -> None:
    """From here to the end of the module the guard does not start the plugin: the test does."""
    scene.unload_plugin()
    with scene.config.open("a", encoding="utf-8") as config:
        config.write("[guard]\nrestart_plugin = false\n")
    scene.load_plugin()
    scene.wait_running()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_plugin_killed_at_any_moment_between_close_and_broadcast_broadcasts_one_version_the_right_one(
    scene: Scene, path: Path, seed: int, no_revival: None
) -> None:
    moments = random.Random(seed)
    cable, before = begun(scene, path, increments=2)
    session_id = before["session_id"]
    cable.interrupt()
    for _ in range(2):
        threading.Event().wait(moments.uniform(0.0, 0.8))
        kill_plugin(scene)
        wait_until("lightningd has noticed", lambda: not scene.is_loaded(), 20)
        scene.load_plugin()
        scene.wait_running()
    closed(scene, session_id)
    wait_sent(scene, session_id)
    rivals = [
        txid
        for txid in scene.network.chain.call("getrawmempool")
        if any(
            output["scriptPubKey"].get("address") == before["onchain"]["address"]
            for output in (transaction(scene.network.chain, txid) or {"vout": []})["vout"]
        )
    ]
    assert len(rivals) == 1
    scene.network.mine(1)
    settlement = seen_in_block(scene, session_id)
    assert settlement.txid == rivals[0]
    session = scene.session(session_id)
    check_settled(scene, session_id, settlement, is_final=session["returned_msat"] > 0)
    status, summary = cable.result()
    # After Ctrl-C it waits 3 s for a socket that is away; the receipt of one that came back later it never saw.
    assert (status, summary["objections"]) in ((0, []), (1, ["the socket gave no receipt"])), cable.log_text()
    row = cable_row(path, session_id)
    # It may have ended before the block came; and of the newest version it is owed what is not due.
    assert row.status in ("ended", "settled", "unanswered")
    assert (row.status == "unanswered") is (row.owed_sat > 0)
    assert row.status != "unanswered" or not session["returned_msat"], "a final version that was taken leaves no debt"
    assert agreed_sat(row) == settlement.value_sat


def test_after_all_of_it_nothing_is_lost_nothing_is_pending_and_nobody_is_refused(scene: Scene) -> None:
    ended = scene.sessions()
    assert len(ended) >= 5
    for session in ended:
        assert session["state"] == "closed"
        settlement = settlement_of(scene, session["session_id"])
        assert settlement.agrees, settlement
        assert settlement.value_sat > 0
    scene.network.mine(TRADE.onchain["confirmations"] if TRADE.onchain else 1)
    wait_until("every settlement is final", lambda: scene.status()["onchain"]["unfinished"] == 0, 20)
    status = scene.status()["onchain"]
    assert (status["exposure_sat"], status["refused_cables"]) == (0, 0)
    totals = scene.node.rpc.call("wattline-report")
    assert totals["lost_msat"] == 0
    assert totals["credited_msat"] == sum(session["credited_msat"] for session in ended)
