"""Whatever dies, at whatever moment: the relay opens within its lease, and no payment is lost or counted twice."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.by_hand import HandCable

from wattline.core.ledger.ledger import open_ledger
from wattline.core.ledger.outgoing import AlreadyPaying, Intent, Purpose
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.node import SendFailure, SendStatus, SentPayment
from wattline.core.payer import Payer
from wattline.core.record import format_record
from wattline.core.tariff import Tariff, cost_msat
from wattline.device.controller.plugin_starter import process_start_time
from wattline.device.relays.relay import RelayError
from wattline.regtest.lightningd import Node
from wattline.regtest.network import Channel, RegtestNetwork
from wattline.regtest.scene import Books, Scene, Trade
from wattline.regtest.waiting import wait_until
from wattline.v1 import charging_pb2 as pb

pytestmark = [pytest.mark.lightningd, pytest.mark.long]

log = logging.getLogger(__name__)

LEASE_MS = 1000
MACHINE_MS = 500
"""For a small, busy machine to schedule the guard."""
SAVED_EVERY_MS = 1000
"""A crash may lose the delivered time, but never the energy, since the session was last written to the ledger."""
EDGE_UWH = 400
"""An INA228 measures voltage and current in turn: it may miscount 1.05 ms of 1300 W at each switching."""
PRICE_MSAT_PER_KWH = 300_000
PAID_MSAT = 20_000
"""Lasts about three minutes of toast."""


@pytest.fixture(scope="module")
def scene(module_network: RegtestNetwork) -> Iterator[Scene]:
    trade = Trade(
        energy_msat_per_kwh=PRICE_MSAT_PER_KWH,
        session={"credit_cap_msat": 50_000, "min_refund_msat": 100, "statement_interval_ms": 200},
        payment={"refund_retry_s": 1, "journal_interval_s": 1},
    )
    with Scene(module_network, trade) as scene:
        scene.start_node()
        module_network.node("cable")
        yield scene


@pytest.fixture(scope="module")
def channel(scene: Scene, module_network: RegtestNetwork) -> Channel:
    cable = next(node for node in module_network.all_nodes if node.name == "cable")
    channel = module_network.open_channel(cable, scene.node, 1_000_000, push_msat=300_000_000)
    scene.wait_running()
    return channel


@pytest.fixture
def wallet(channel: Channel) -> Node:
    return channel.opener


@pytest.fixture
def cable(scene: Scene, wallet: Node) -> Iterator[HandCable]:
    scene.world.plug(0, "toaster")
    with HandCable(scene, wallet) as cable:
        yield cable
        if cable.session_id and cable.newest_state(scene) != "closed":
            scene.node.rpc.call("wattline-stop", {"session_id": cable.session_id})
            wait_until("the session is closed", lambda: cable.newest_state(scene) == "closed", 30)


def arrived(outcome: SentPayment | SendFailure | None) -> bool:
    return isinstance(outcome, SentPayment) and outcome.status is SendStatus.COMPLETE


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def deliver(cable: HandCable) -> pb.Statement:
    """A paid session in full delivery; its statement."""
    cable.open()
    assert arrived(cable.pay(PAID_MSAT))
    return cable.statement(lambda s: s.relay_closed and s.energy_uwh > 50_000)


def opened_after_ms(scene: Scene, since_ms: int) -> int:
    """How long after ``since_ms`` the relay has opened, on the clock of the world itself."""

    def look() -> list[int]:
        return [s.at_ms for s in scene.world.history(0) if not s.closed and s.at_ms >= since_ms]

    opened_ms = wait_until("the relay opens", look, 20)[0] - since_ms
    log.info("the relay opened after %d ms", opened_ms)
    return opened_ms


def wait_gone(what: str, pid: int) -> None:
    wait_until(f"{what} is gone", lambda: process_start_time(pid) is None, 20)


def has_agreed(scene: Scene, wallet: Node, session_id: str) -> Books:
    def look() -> Books | None:
        books = scene.books(wallet, session_id)
        return books if books.agree else None

    return wait_until("ledger, socket's node and cable's node agree", look, 20)


def begin(scene: Scene) -> tuple[int, int]:
    """What has left the socket, in uWh, and how often the relay has moved, before a session."""
    return scene.world.energy_uwh(0), len(scene.world.history(0))


def end(scene: Scene, cable: HandCable, wallet: Node, begun: tuple[int, int]) -> pb.Receipt:
    """Close, and prove that energy and money of the session are right; ``begun``: of :func:`begin`."""
    cable.close()
    receipt = cable.receipt()
    true_uwh, moves = begun
    delivered_uwh = scene.world.energy_uwh(0) - true_uwh
    most_uwh = max(200, delivered_uwh // 500) + EDGE_UWH * (len(scene.world.history(0)) - moves)
    assert abs(receipt.energy_uwh - delivered_uwh) <= most_uwh, "what flowed is what is charged"
    tariff = Tariff.of(
        energy_msat_per_kwh=PRICE_MSAT_PER_KWH,
        time_msat_per_hour=0,
        session_fee_msat=0,
    )
    assert receipt.charged_msat == cost_msat(tariff, receipt.energy_uwh, receipt.delivered_ms, started=True)
    books = has_agreed(scene, wallet, cable.session_id)
    assert not books.orphans
    assert receipt.credited_msat == sum(books.credited.values())
    assert receipt.credited_msat == receipt.charged_msat + receipt.refunded_msat
    assert cable.payments_back() == [(0, receipt.refunded_msat)]
    return receipt


def goes_on(scene: Scene, cable: HandCable, before: pb.Statement) -> pb.Statement:
    """The cable takes its session up again and is delivered to."""
    last = max(m.statement.sequence for m in cable.messages if m.HasField("statement"))
    cable.reconnect()
    assert cable.message("opened").opened.statement.sequence > last, "no number is used twice"
    after = cable.statement(lambda s: s.relay_closed and s.energy_uwh > before.energy_uwh)
    assert after.session_id == before.session_id
    assert after.delivered_ms > before.delivered_ms - SAVED_EVERY_MS, "the time since the last save is given away"
    return after


def test_a_killed_plugin_opens_the_relay_comes_back_by_itself_and_goes_on_with_the_session(
    scene: Scene, cable: HandCable, wallet: Node
) -> None:
    begun = begin(scene)
    before = deliver(cable)
    pid, guard_pid = scene.plugin_pid(), scene.guard_pid()
    killed_ms = now_ms()
    os.kill(pid, signal.SIGKILL)
    opened_ms = opened_after_ms(scene, killed_ms)
    assert opened_ms <= LEASE_MS + MACHINE_MS
    assert goes_on(scene, cable, before).credited_msat == PAID_MSAT
    assert scene.plugin_pid() != pid
    assert scene.guard_pid() == guard_pid, "the guard outlives the plugin"
    assert arrived(cable.pay(1_000))
    cable.statement(lambda s: s.credited_msat == PAID_MSAT + 1_000)
    end(scene, cable, wallet, begun)


def test_a_plugin_that_hangs_loses_its_lease_and_goes_on_when_it_wakes(
    scene: Scene, cable: HandCable, wallet: Node
) -> None:
    begun = begin(scene)
    before = deliver(cable)
    pid = scene.plugin_pid()
    stopped_ms = now_ms()
    os.kill(pid, signal.SIGSTOP)
    try:
        opened_ms = opened_after_ms(scene, stopped_ms)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert opened_ms <= LEASE_MS + MACHINE_MS
    cable.statement(lambda s: s.relay_closed and s.energy_uwh > before.energy_uwh + 50_000)
    end(scene, cable, wallet, begun)


def test_a_plugin_stopped_and_started_in_mid_session_opens_at_once_and_goes_on(
    scene: Scene, cable: HandCable, wallet: Node
) -> None:
    begun = begin(scene)
    before = deliver(cable)
    guard_pid = scene.guard_pid()
    stopped_ms = now_ms()
    scene.unload_plugin()
    opened_ms = opened_after_ms(scene, stopped_ms)
    assert opened_ms <= MACHINE_MS
    assert cable.message("refusal").refusal.code == "shutting_down"
    wait_gone("the guard", guard_pid)
    scene.load_plugin()
    assert goes_on(scene, cable, before).credited_msat == PAID_MSAT
    end(scene, cable, wallet, begun)


def test_a_killed_lightningd_takes_relay_plugin_and_guard_with_it_and_the_session_goes_on_afterwards(
    scene: Scene,
    cable: HandCable,
    wallet: Node,
    channel: Channel,
    module_network: RegtestNetwork,
) -> None:
    begun = begin(scene)
    before = deliver(cable)
    pid, guard_pid = scene.plugin_pid(), scene.guard_pid()
    outcome = cable.pay_without_waiting(3_000)
    killed_ms = now_ms()
    scene.node.kill()
    opened_ms = opened_after_ms(scene, killed_ms)
    assert opened_ms <= LEASE_MS + MACHINE_MS
    wait_gone("the plugin", pid)
    wait_gone("the guard", guard_pid)
    assert not scene.world.relay_closed(0)
    scene.node.start()
    module_network.wait_for_channel(channel)
    in_flight = outcome(60)
    assert in_flight is not None
    credited_msat = PAID_MSAT + (3_000 if arrived(in_flight) else 0)
    goes_on(scene, cable, before)
    cable.statement(lambda s: s.credited_msat == credited_msat)
    module_network.wait_for_route(scene.node, wallet)
    end(scene, cable, wallet, begun)


def test_a_killed_guard_ends_the_session_and_a_new_one_opens_the_relay(
    scene: Scene, cable: HandCable, wallet: Node
) -> None:
    deliver(cable)
    pid = scene.guard_pid()
    killed_ms = now_ms()
    os.kill(pid, signal.SIGKILL)
    opened_after_ms(scene, killed_ms)
    receipt = cable.receipt()
    assert receipt.stop_reason == "guard_lost"
    assert scene.guard_pid() != pid
    assert receipt.credited_msat == receipt.charged_msat + receipt.refunded_msat == PAID_MSAT
    assert has_agreed(scene, wallet, cable.session_id).credited
    with HandCable(scene, wallet) as next_one:
        begun = begin(scene)
        deliver(next_one)
        end(scene, next_one, wallet, begun)


def test_after_plugin_and_guard_died_together_the_new_guard_opens_the_relay_first(
    scene: Scene, cable: HandCable, wallet: Node
) -> None:
    begun = begin(scene)
    before = deliver(cable)
    pid = scene.plugin_pid()
    killed_ms = now_ms()
    os.kill(scene.guard_pid(), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_until("lightningd has noticed", lambda: not scene.is_loaded(), 20)
    with pytest.raises(RelayError):
        scene.guard_pid()
    assert scene.world.relay_closed(0), "an expander latches: this is what the hardware watchdog is for"
    scene.load_plugin()
    goes_on(scene, cable, before)
    moves = [move.closed for move in scene.world.history(0) if move.at_ms >= killed_ms]
    assert moves == [False, True]
    end(scene, cable, wallet, begun)


def settled(scene: Scene, cable: HandCable, wallet: Node) -> None:
    """However often it was killed: closed, its refund sent, once."""

    def is_sent() -> bool:
        session = scene.session(cable.session_id)
        return (session["state"], session["refund_status"]) == ("closed", "sent")

    wait_until("the refund is sent", is_sent, 60)
    session = scene.session(cable.session_id)
    assert cable.payments_back() == [(0, session["refunded_msat"])]
    assert session["credited_msat"] == session["charged_msat"] + session["refunded_msat"] == PAID_MSAT
    books = has_agreed(scene, wallet, cable.session_id)
    assert not books.orphans
    cable.reconnect()
    receipt = cable.newest_receipt()
    assert receipt.refund_status == pb.REFUND_STATUS_SENT
    assert receipt.refunded_msat == session["refunded_msat"]
    assert receipt.closed_at >= receipt.opened_at > 0


def kill_and_reload(scene: Scene) -> None:
    """As the guard does it, without its growing pauses."""
    pid = scene.plugin_pid()
    os.kill(pid, signal.SIGKILL)
    wait_gone("the plugin", pid)
    wait_until("lightningd has noticed", lambda: not scene.is_loaded(), 20)
    scene.load_plugin()
    scene.wait_running()


@pytest.fixture(scope="module")
def no_revival(scene: Scene, channel: Channel) -> None:
    """From here to the end of the module the guard does not start the plugin: the test does."""
    scene.unload_plugin()
    with scene.config.open("a", encoding="utf-8") as config:
        config.write("[guard]\nrestart_plugin = false\n")
    scene.load_plugin()
    scene.wait_running()


def test_a_plugin_killed_again_and_again_while_settling_pays_the_refund_once(
    scene: Scene, wallet: Node, no_revival: None
) -> None:
    moments = random.Random(20170620)
    scene.world.plug(0, "constant-0")
    for _ in range(3):
        with HandCable(scene, wallet) as cable:
            cable.open()
            assert arrived(cable.pay(PAID_MSAT))
            cable.statement(lambda s: s.credited_msat == PAID_MSAT)
            cable.close()
            for _ in range(2):
                threading.Event().wait(moments.uniform(0.0, 0.8))
                kill_and_reload(scene)
                cable.reconnect()
                if cable.messages[0].HasField("opened"):
                    cable.close()  # it was killed before it had written down that the session is over
            settled(scene, cable, wallet)


def test_a_plugin_killed_while_its_refund_is_under_way_pays_it_once(
    scene: Scene, wallet: Node, no_revival: None
) -> None:
    scene.world.plug(0, "constant-0")
    with HandCable(scene, wallet) as cable:
        cable.open()
        assert arrived(cable.pay(PAID_MSAT))
        cable.statement(lambda s: s.credited_msat == PAID_MSAT)

        def refund_under_way() -> bool:
            return any(
                row["status"] == "pending" and cable.session_id in row.get("label", "")
                for row in scene.node.rpc.listsendpays()["payments"]
            )

        os.kill(wallet.pid, signal.SIGSTOP)  # the refund cannot arrive
        try:
            cable.close()
            wait_until("the refund has left", refund_under_way, 20)
            kill_and_reload(scene)
        finally:
            os.kill(wallet.pid, signal.SIGCONT)
        settled(scene, cable, wallet)


def test_a_plugin_killed_just_after_its_refund_arrived_pays_it_once(
    scene: Scene, wallet: Node, no_revival: None
) -> None:
    scene.world.plug(0, "constant-0")
    with HandCable(scene, wallet) as cable:
        cable.open()
        assert arrived(cable.pay(PAID_MSAT))
        cable.statement(lambda s: s.credited_msat == PAID_MSAT)
        cable.close()
        wait_until("the refund has arrived", cable.payments_back, 20)
        kill_and_reload(scene)
        settled(scene, cable, wallet)


def test_of_a_stream_of_payments_none_is_lost_or_counted_twice_when_the_plugin_is_killed_amid_it(
    scene: Scene, wallet: Node, no_revival: None
) -> None:
    scene.world.plug(0, "constant-0")
    moments = random.Random(1)
    with HandCable(scene, wallet) as cable, ThreadPoolExecutor(4) as pool:
        session_id = cable.open()
        assert arrived(cable.pay(1_000))
        outcomes = [pool.submit(cable.pay, 100 + number) for number in range(60)]
        for _ in range(2):
            threading.Event().wait(moments.uniform(0.1, 0.6))
            kill_and_reload(scene)
        paid = [outcome.result() for outcome in outcomes]
        cable.reconnect()
        books = has_agreed(scene, wallet, session_id)
        assert len(books.received) == 1 + sum(map(arrived, paid))
        assert not books.orphans
        wait_until(
            "all is credited", lambda: scene.session(session_id)["credited_msat"] == sum(books.credited.values()), 20
        )
        cable.close()
        receipt = cable.receipt()
        assert receipt.credited_msat == sum(books.received.values())
        assert cable.payments_back() == [(0, receipt.refunded_msat)]


PAYING_PROCESS = textwrap.dedent(
    """
    import sys, threading
    from wattline.core.ledger.ledger import open_ledger
    from wattline.core.ledger.outgoing import Intent
    from wattline.core.lightning.cln import CoreLightning
    from wattline.core.payer import Payer

    rpc, ledger, when, destination, session_id, amount = sys.argv[1:]

    class Wallet(CoreLightning):
        def send(self, *arguments):
            if when == "after":
                super().send(*arguments)
            print("now", flush=True)
            if when == "before":
                threading.Event().wait()

    record = f"wattline:1:{session_id}:1"
    intent = Intent(
        purpose="increment", session_id=session_id, sequence=1, destination=destination,
        amount_msat=int(amount), maxfee_msat=0, record=record, label=record,
    )
    Payer(Wallet(rpc), open_ledger(ledger).outgoing).pay(intent)
    print("paid", flush=True)
    """
)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cable_killed_around_its_sending_pays_the_increment_once(
    scene: Scene, wallet: Node, tmp_path: Path, when: str
) -> None:
    scene.world.plug(0, "constant-0")
    with HandCable(scene, wallet) as cable:
        session_id = cable.open()
        order = [str(wallet.rpc_path), str(tmp_path / "cable.sqlite3"), when, scene.node.node_id, session_id, "7000"]
        process = subprocess.Popen([sys.executable, "-c", PAYING_PROCESS, *order], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process, process.stdout:
            assert process.stdout.readline() == "now\n"
            threading.Event().wait(0.003)
            process.kill()
        with open_ledger(tmp_path / "cable.sqlite3") as ledger:
            payer = Payer(CoreLightning(wallet.rpc_path), ledger.outgoing)
            for outcome in payer.resolve(resend=True):
                assert outcome.status is SendStatus.COMPLETE
            intent = ledger.outgoing.of(Purpose.INCREMENT, session_id, 1)
            assert intent is not None
            assert (intent.status, intent.amount_sent_msat) == ("complete", 7_000)
            record = format_record(session_id, 1)
            with pytest.raises(AlreadyPaying):
                payer.pay(
                    Intent(
                        purpose="increment",
                        session_id=session_id,
                        sequence=1,
                        destination=scene.node.node_id,
                        amount_msat=7_000,
                        maxfee_msat=0,
                        record=record,
                        label=record,
                    )
                )
            assert payer.resolve(resend=True) == []
        books = has_agreed(scene, wallet, session_id)
        assert dict(books.credited) == {intent.payment_hash: 7_000}
        cable.close()
        assert cable.receipt().credited_msat == 7_000


def test_over_all_crashes_ledger_and_both_nodes_agree_to_the_msat(scene: Scene, wallet: Node) -> None:
    books = has_agreed(scene, wallet, "")
    assert len(books.received) >= 2
    assert sum(books.received.values()) == sum(books.delivered.values())
    ended = scene.sessions()
    assert all(session["state"] == "closed" for session in ended)
    assert sum(session["credited_msat"] for session in ended) == sum(books.credited.values())
    for session in ended:
        assert session["balance_msat"] == 0
        assert session["closed_at"] is not None
