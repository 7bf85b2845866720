"""The real cable process against the real plugin over a real channel."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from harness.dear_trade import INTERVAL_MS

from wattline.core.tariff import Tariff, cost_msat, worth_msat
from wattline.device.simulator.control import SimulatedWorld
from wattline.device.simulator.world import MeterFault
from wattline.regtest.books import books_of
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import CableProcess, Json, Scene, Trade
from wattline.regtest.waiting import wait_until

pytestmark = [pytest.mark.lightningd, pytest.mark.timeout(180)]

TRADE = Trade(
    energy_msat_per_kwh=3_000_000,
    profiles=("toaster", "phone"),
    session={"min_refund_msat": 100, "pause_max_s": 20, "cable_lost_s": 20},
)
LIMITS = {"max_price_msat_per_kwh": 3_000_000, "max_prepaid_msat": 8_000}


@pytest.fixture(scope="module")
def wallets(module_network: RegtestNetwork) -> list[Node]:
    return module_network.nodes("cable-1", "cable-2")


@pytest.fixture(scope="module")
def scene(module_network: RegtestNetwork, wallets: list[Node]) -> Iterator[Scene]:
    with Scene(module_network, TRADE) as scene:
        socket = scene.start_node()
        for wallet in wallets:
            module_network.open_channel(wallet, socket, 1_000_000, push_msat=300_000_000)
        scene.wait_running()
        yield scene


@pytest.fixture(autouse=True)
def _clean_world(scene: Scene) -> Iterator[None]:
    yield
    for circuit, profile in enumerate(TRADE.profiles):
        scene.world.plug(circuit, profile)
        scene.world.mend_meter(SimulatedWorld.socket_meter(circuit))


def config(scene: Scene, wallet: Node, name: str, circuit: int = 0, **limits: int) -> Path:
    return scene.write_cable_config(wallet, name, circuit, {"limits": {**LIMITS, **limits}})


def live_session(scene: Scene, outlet_id: str = "A1") -> str:
    """The id of the session that the outlet serves, once it delivers."""

    def delivering() -> str | None:
        outlet = next(o for o in scene.status()["outlets"] if o["outlet_id"] == outlet_id)
        return str(outlet["session_id"]) if outlet["session_id"] and outlet["relay"] == "closed" else None

    return wait_until("the outlet delivers", delivering, 30)


def in_state(scene: Scene, session_id: str, state: str) -> Json:
    def reached() -> Json | None:
        session = scene.session(session_id)
        return session if session["state"] == state else None

    return wait_until(f"session {state}", reached, 40)


def assert_settled(scene: Scene, session: Json, summary: Json, wallet: Node, cable_config: Path) -> None:
    """Everything that must hold at the end of any session that the cable saw through."""
    assert session["state"] == "closed"
    tariff = Tariff.of(energy_msat_per_kwh=TRADE.energy_msat_per_kwh)
    assert session["charged_msat"] == cost_msat(tariff, session["energy_uwh"], session["delivered_ms"], started=True)
    assert session["credited_msat"] - session["charged_msat"] - session["refunded_msat"] == session["balance_msat"]
    for key in ("credited_msat", "charged_msat", "refunded_msat", "balance_msat"):
        assert summary[key] == session[key], key
    # Where the guard was late because the machine was busy: at the most one meter interval.
    assert (session["max_unpaid_msat"] or 0) <= worth_msat(tariff, TRADE.max_power_w * 1000, INTERVAL_MS)
    books = books_of(
        session["session_id"], scene.node, wallet, scene.config.with_name("socket.sqlite3"), ledger_of(cable_config)
    )
    assert books.agree, books
    assert books.increments.sent_by_node == session["credited_msat"]
    assert books.refunds.received_by_node == session["refunded_msat"]


def has_delivered(scene: Scene, goal_uwh: int) -> bool | None:
    return scene.world.energy_uwh(0) >= goal_uwh or None


def ledger_of(cable_config: Path) -> Path:
    return cable_config.with_name(f"{cable_config.stem}.sqlite3")


@pytest.mark.long
def test_a_cable_streams_through_a_changing_load(scene: Scene, wallets: list[Node]) -> None:
    path = config(scene, wallets[0], "streaming")
    cable = scene.run_cable(path, for_s=10)
    session_id = live_session(scene)
    for profile in ("phone", "noisy", "toaster"):
        goal_uwh = scene.world.energy_uwh(0) + 2_000
        scene.world.plug(0, profile)
        wait_until(f"energy for the {profile}", partial(has_delivered, scene, goal_uwh))
    status, summary = cable.result()
    assert status == 0, cable.log_text()
    assert summary["stop_reason"] == "done"
    assert summary["session_id"] == session_id
    assert summary["energy_uwh_cable"] == pytest.approx(summary["energy_uwh_socket"], rel=0.01, abs=2_000)
    assert summary["payments"] >= 5
    assert summary["max_prepaid_msat"] <= LIMITS["max_prepaid_msat"]
    assert_settled(scene, scene.session(session_id), summary, wallets[0], path)
    assert not scene.world.relay_closed(0)


def test_a_cable_that_stands_still_is_cut_off_before_the_balance_is_negative_and_goes_on_when_it_pays(
    scene: Scene, wallets: list[Node]
) -> None:
    path = config(scene, wallets[0], "standing-still")
    cable = scene.run_cable(path, for_s=25)
    session_id = live_session(scene)
    cable.freeze()
    in_state(scene, session_id, "paused")
    wait_until("the relay is open", lambda: not scene.world.relay_closed(0), 5)
    assert scene.session(session_id)["balance_msat"] >= 0
    cable.thaw()
    in_state(scene, session_id, "delivering")
    cable.interrupt()
    status, summary = cable.result()
    assert status == 0, cable.log_text()
    assert_settled(scene, scene.session(session_id), summary, wallets[0], path)


@pytest.mark.long
def test_two_cables_at_two_outlets_pay_each_for_its_own(scene: Scene, wallets: list[Node]) -> None:
    paths = [config(scene, wallet, f"both-{n}", circuit=n) for n, wallet in enumerate(wallets)]
    cables = [scene.run_cable(path, for_s=8) for path in paths]
    session_ids = [live_session(scene, "A1"), live_session(scene, "A2")]
    results = [cable.result() for cable in cables]
    for number, (status, summary) in enumerate(results):
        assert status == 0, cables[number].log_text()
        assert summary["session_id"] == session_ids[number]
        assert_settled(scene, scene.session(session_ids[number]), summary, wallets[number], paths[number])
    toaster, phone = (summary["energy_uwh_socket"] for _, summary in results)
    assert toaster > 20 * phone


def test_a_price_above_the_limit_makes_no_session(scene: Scene, wallets: list[Node]) -> None:
    before = len(scene.sessions())
    path = config(scene, wallets[0], "too-dear", max_price_msat_per_kwh=2_999_999)
    cable = scene.run_cable(path, for_s=10)
    status, summary = cable.result()
    assert status == 1
    assert summary["stop_reason"] == "price_too_high"
    assert "3000000" in summary["message"].replace("_", "").replace(",", "")
    assert len(scene.sessions()) == before


def test_a_price_change_is_told_and_the_session_keeps_its_price(scene: Scene, wallets: list[Node]) -> None:
    path = config(scene, wallets[0], "price-change")
    cable = scene.run_cable(path, for_s=6)
    session_id = live_session(scene)
    try:
        scene.node.rpc.call("wattline-tariff", {"energy_msat_per_kwh": 9_000_000})
        status, summary = cable.result()
    finally:
        scene.node.rpc.call("wattline-tariff", {"energy_msat_per_kwh": TRADE.energy_msat_per_kwh})
    assert status == 0, cable.log_text()
    assert summary["price_msat_per_kwh"] == TRADE.energy_msat_per_kwh
    assert "9" in cable.log_text()
    assert_settled(scene, scene.session(session_id), summary, wallets[0], path)


def test_a_cable_killed_in_mid_session_takes_it_up_again_and_pays_nothing_twice(
    scene: Scene, wallets: list[Node]
) -> None:
    path = config(scene, wallets[0], "killed")
    first = scene.run_cable(path)
    session_id = live_session(scene)
    wait_until("a few payments", lambda: scene.session(session_id)["payments"] >= 4 or None)
    first.kill()
    second = scene.run_cable(path, for_s=4)
    status, summary = second.result()
    assert status == 0, second.log_text()
    assert summary["session_id"] == session_id
    assert_settled(scene, scene.session(session_id), summary, wallets[0], path)


def test_a_cable_whose_ledger_was_put_back_goes_on_from_what_its_node_has_paid(
    scene: Scene, wallets: list[Node]
) -> None:
    path = config(scene, wallets[0], "put back")
    ledger, copy = ledger_of(path), path.with_name("copy.sqlite3")
    first = scene.run_cable(path)
    session_id = live_session(scene)
    wait_until("a payment", lambda: scene.session(session_id)["payments"] >= 2 or None)
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    known = scene.session(session_id)["payments"]
    wait_until("more payments", lambda: scene.session(session_id)["payments"] >= known + 3 or None)
    first.kill()
    for file in ledger.parent.glob(f"{ledger.name}-*"):
        if not file.name.endswith(".lock"):
            file.unlink()
    copy.replace(ledger)
    second = scene.run_cable(path, for_s=4)
    status, summary = second.result()
    assert status == 0, second.log_text()
    assert "the ledger is an older copy" in second.log_text()
    assert summary["session_id"] == session_id
    assert_settled(scene, scene.session(session_id), summary, wallets[0], path)


def test_a_socket_whose_meter_shows_too_much_is_left(scene: Scene, wallets: list[Node]) -> None:
    scene.world.break_meter(SimulatedWorld.socket_meter(0), MeterFault.GAIN, ratio=1.05)
    changes = {"limits": {**LIMITS, "energy_tolerance_uwh": 20_000}}
    path = scene.write_cable_config(wallets[0], "lied-to", 0, changes)
    cable = scene.run_cable(path, for_s=60)
    session_id = live_session(scene)
    status, summary = cable.result()
    assert status == 1
    assert summary["stop_reason"] == "energy_mismatch"
    in_state(scene, session_id, "closed")
    assert not scene.world.relay_closed(0)


def end_by_operator(scene: Scene, session_id: str, cable: CableProcess) -> None:
    scene.node.rpc.call("wattline-stop", {"session_id": session_id})


def end_by_meter(scene: Scene, session_id: str, cable: CableProcess) -> None:
    scene.world.break_meter(SimulatedWorld.socket_meter(0), MeterFault.NACK)


@pytest.mark.parametrize(("end", "reason"), [(end_by_operator, "operator_stopped"), (end_by_meter, "meter_bus_error")])
def test_a_socket_that_ends_the_session_refunds_and_the_cable_says_why(
    scene: Scene, wallets: list[Node], end: Callable[[Scene, str, CableProcess], None], reason: str
) -> None:
    path = config(scene, wallets[0], reason.replace("_", "-"))
    cable = scene.run_cable(path, for_s=60)
    session_id = live_session(scene)
    end(scene, session_id, cable)
    status, summary = cable.result()
    assert status == 1
    assert summary["socket_stop_reason"] == reason
    session = in_state(scene, session_id, "closed")
    assert session["stop_reason"] == reason
    assert_settled(scene, session, summary, wallets[0], path)
