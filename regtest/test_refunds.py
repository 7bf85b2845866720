"""What becomes of unused credit on real nodes: sent, owed until it can be sent, or kept; never paid twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from harness.by_hand import HandCable
from harness.wallet_books import check_books

from wattline.core.lightning.node import SendStatus, SentPayment
from wattline.core.tariff import Tariff, cost_msat
from wattline.regtest.lightningd import Node
from wattline.regtest.network import Channel, RegtestNetwork
from wattline.regtest.scene import Scene, Trade
from wattline.regtest.waiting import wait_until
from wattline.v1 import charging_pb2 as pb

pytestmark = pytest.mark.lightningd

MIN_REFUND_MSAT = 1_000
TARIFF = Tariff.of(energy_msat_per_kwh=300_000)
TRADE = Trade(
    profiles=("constant-0",),
    session={"min_refund_msat": MIN_REFUND_MSAT, "statement_interval_ms": 100},
    payment={"journal_interval_s": 1, "refund_retry_s": 1},
)


@pytest.fixture(scope="module")
def channels(module_network: RegtestNetwork) -> dict[str, Channel]:
    return {}


@pytest.fixture(scope="module")
def scene(module_network: RegtestNetwork, channels: dict[str, Channel]) -> Iterator[Scene]:
    with Scene(module_network, TRADE) as scene:
        socket = scene.start_node()
        cable, fresh = module_network.nodes("cable", "fresh")
        channels["cable"] = module_network.open_channel(cable, socket, 1_000_000, push_msat=200_000_000)
        channels["fresh"] = module_network.open_channel(fresh, socket, 1_000_000, push_msat=0)
        scene.wait_running()
        yield scene


@pytest.fixture(scope="module")
def wallets(scene: Scene) -> dict[str, Node]:
    return {node.name: node for node in scene.network.all_nodes if node.name != "socket"}


@pytest.fixture
def cable(scene: Scene, wallets: dict[str, Node]) -> Iterator[HandCable]:
    scene.world.plug(0, "constant-0")
    with HandCable(scene, wallets["cable"]) as cable:
        yield cable


@pytest.fixture
def fresh(scene: Scene, wallets: dict[str, Node]) -> Iterator[HandCable]:
    """A cable whose channel has nothing above the reserve on the socket's side."""
    scene.world.plug(0, "constant-0")
    with HandCable(scene, wallets["fresh"]) as cable:
        yield cable


def pay(cable: HandCable, amount_msat: int) -> None:
    outcome = cable.pay(amount_msat)
    assert isinstance(outcome, SentPayment), outcome
    assert outcome.status is SendStatus.COMPLETE


def returned_msat(cable: HandCable) -> list[int]:
    """What came back to the cable's node for its session, payment by payment."""
    text = f"keysend: wattline:1:{cable.session_id}:0"
    rows = cable.wallet_node.rpc.listinvoices()["invoices"]
    return [int(row["amount_received_msat"]) for row in rows if row.get("description") == text]


def owed(scene: Scene) -> int:
    return int(scene.status()["refunds_owed"])


def sent_receipt(cable: HandCable) -> pb.Receipt:
    """The newest receipt, once it says that the refund was sent."""

    def look() -> pb.Receipt | None:
        receipt = cable.newest_receipt()
        return receipt if receipt.refund_status == pb.REFUND_STATUS_SENT else None

    return wait_until("the refund that was owed is sent", look, 60)


@pytest.mark.parametrize(
    ("paid_msat", "status", "back_msat"),
    [
        (MIN_REFUND_MSAT - 1, pb.REFUND_STATUS_KEPT, []),
        (MIN_REFUND_MSAT, pb.REFUND_STATUS_SENT, [MIN_REFUND_MSAT]),
    ],
)
def test_unused_credit_is_kept_below_the_minimum_and_sent_from_it_on(
    scene: Scene, cable: HandCable, paid_msat: int, status: int, back_msat: list[int]
) -> None:
    cable.open()
    pay(cable, paid_msat)
    cable.statement(lambda s: s.state == pb.SESSION_STATE_DELIVERING)
    cable.close()
    receipt = cable.receipt()
    assert receipt.charged_msat == 0, "nothing was plugged in"
    assert receipt.refund_status == status
    assert receipt.refunded_msat == sum(back_msat)
    assert receipt.balance_msat == paid_msat - sum(back_msat)
    assert returned_msat(cable) == back_msat
    assert bool(receipt.refund_payment_hash) == bool(back_msat)
    assert owed(scene) == 0


def test_of_many_small_payments_the_sum_counts(scene: Scene, cable: HandCable) -> None:
    scene.world.plug(0, "constant-1300")
    cable.open()
    amounts = [101 + 7 * number for number in range(30)]
    for amount_msat in amounts:
        pay(cable, amount_msat)
    cable.close()
    receipt = cable.receipt()
    assert (receipt.credited_msat, receipt.payments) == (sum(amounts), len(amounts))
    assert receipt.energy_uwh > 0
    assert receipt.charged_msat == cost_msat(TARIFF, receipt.energy_uwh, receipt.delivered_ms, started=True)
    assert receipt.refunded_msat == sum(amounts) - receipt.charged_msat
    assert returned_msat(cable) == [receipt.refunded_msat]


def test_a_refund_that_a_fresh_channel_cannot_carry_is_owed_and_sent_once_as_soon_as_it_can(
    scene: Scene, fresh: HandCable, wallets: dict[str, Node]
) -> None:
    scene.world.plug(0, "constant-1300")
    fresh.open()
    pay(fresh, 5_000)
    fresh.statement(lambda s: s.energy_uwh > 0)
    fresh.close()
    receipt = fresh.receipt()
    assert receipt.refund_status == pb.REFUND_STATUS_OWED
    assert receipt.refunded_msat == 0
    assert receipt.balance_msat == 5_000 - receipt.charged_msat > MIN_REFUND_MSAT
    assert owed(scene) == 1
    assert scene.session(fresh.session_id)["refund_status"] == "owed"

    # A plugin that starts anew still owes it.
    scene.unload_plugin()
    scene.load_plugin()
    scene.wait_running()
    assert owed(scene) == 1
    fresh.reconnect()
    assert fresh.newest_receipt() == receipt

    # What somebody pays to the socket's node for other reasons lifts its side above the reserve (1 %).
    fresh.keysend(20_000_000, {})
    sent = sent_receipt(fresh)
    assert sent.refunded_msat == receipt.balance_msat
    assert (sent.balance_msat, sent.refund_fee_msat) == (0, 0)
    assert sent.charged_msat == receipt.charged_msat
    assert returned_msat(fresh) == [sent.refunded_msat]
    wait_until("nothing is owed", lambda: owed(scene) == 0, 10)
    (row,) = scene.node.rpc.call("listsendpays", {"payment_hash": sent.refund_payment_hash})["payments"]
    assert (row["status"], row["destination"]) == ("complete", wallets["fresh"].node_id)


def test_a_refund_to_a_cable_whose_node_is_down_is_owed_and_sent_once_when_it_is_back(
    scene: Scene, cable: HandCable, channels: dict[str, Channel]
) -> None:
    session_id = cable.open()
    pay(cable, 7_000)
    cable.statement(lambda s: s.credited_msat == 7_000)
    cable.wallet_node.stop()
    scene.node.rpc.call("wattline-stop", {"session_id": session_id})
    receipt = cable.receipt(90)
    assert receipt.stop_reason == "operator_stopped"
    assert receipt.refund_status == pb.REFUND_STATUS_OWED
    assert (receipt.refunded_msat, receipt.balance_msat) == (0, 7_000)
    assert owed(scene) == 1
    cable.wallet_node.start()
    scene.network.wait_for_channel(channels["cable"])
    sent = sent_receipt(cable)
    assert (sent.refunded_msat, sent.balance_msat) == (7_000, 0)
    assert returned_msat(cable) == [7_000]
    assert owed(scene) == 0


def test_the_report_and_the_books_of_all_nodes_agree(scene: Scene, cable: HandCable, wallets: dict[str, Node]) -> None:
    cable.open()
    pay(cable, 2_000)
    cable.close()
    assert cable.receipt().refund_status == pb.REFUND_STATUS_SENT
    sums = check_books(scene, list(wallets.values()))
    assert sums.refunded_msat > 0
    totals = scene.node.rpc.call("wattline-report")
    for name in ("sessions", "payments", "energy_uwh", "credited_msat", "charged_msat", "refunded_msat"):
        assert totals[name] == getattr(sums, name), name
    assert totals["balance_msat"] == sums.balance_msat


def copy_of(ledger: Path) -> bytes:
    """As an operator's backup makes it while the socket runs."""
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        return copy.serialize()


def delete_sent(scene: Scene, cable: HandCable) -> int:
    """What autoclean does to the payments that went back for the session; how many those were."""
    mark = f"wattline:1:{cable.session_id}:"
    rows = [row for row in scene.node.rpc.listsendpays()["payments"] if row.get("label", "").startswith(mark)]
    for row in rows:
        scene.node.rpc.call("delpay", {"payment_hash": row["payment_hash"], "status": row["status"]})
    return len(rows)


@pytest.mark.real_only
@pytest.mark.timeout(300)
def test_an_older_copy_of_the_ledger_pays_nothing_back_twice_though_lightningd_has_deleted_what_it_sent(
    scene: Scene, cable: HandCable, wallets: dict[str, Node]
) -> None:
    cable.open()
    pay(cable, 3_000)
    cable.close()
    assert cable.receipt().refund_status == pb.REFUND_STATUS_SENT
    with HandCable(scene, wallets["cable"]) as other:
        other.open()
        pay(other, 7_000)
        other.statement(lambda s: s.credited_msat == 7_000)
        copy = copy_of(scene.ledger_path)
        other.close()
        assert other.receipt().refund_status == pb.REFUND_STATUS_SENT
        scene.unload_plugin()
        pay(cable, 5_000)  # the session is over, and nobody is there to refuse it
        scene.load_plugin()
        scene.wait_running()
        wait_until("what came too late went back", lambda: len(cable.payments_back()) == 2, 30)
        wait_until("it is written down", lambda: "orphan_refunded" in kinds_of_events(scene), 30)
        scene.unload_plugin()
        assert (delete_sent(scene, cable), delete_sent(scene, other)) == (2, 1)
        for path in scene.ledger_path.parent.glob(f"{scene.ledger_path.name}*"):
            path.unlink()
        scene.ledger_path.write_bytes(copy)
        scene.load_plugin()
        status = scene.wait_running()
        assert status["ledger_restored_at"]
        wait_until("both are held", lambda: scene.status()["refunds_held"] == 2, 30)
        assert scene.status()["held_sessions"] == sorted([cable.session_id, other.session_id])
        for each in (cable, other):
            wait_until("it was tried", lambda each=each: f"{each.session_id}: " in held_lines(scene), 30)  # type: ignore[misc]
            scene.node.rpc.call("wattline-resolve", [each.session_id, "keep", "both nodes were looked at"])
        assert (scene.status()["refunds_held"], owed(scene)) == (0, 0)
        assert sorted(amount_msat for _, amount_msat in cable.payments_back()) == [3_000, 5_000]
        assert [amount_msat for _, amount_msat in other.payments_back()] == [7_000]

        # A restart is no older copy, and the newest note stands.
        scene.unload_plugin()
        scene.load_plugin()
        assert scene.wait_running()["ledger_restored_at"] == status["ledger_restored_at"]
        (note,) = scene.node.rpc.call("listdatastore", {"key": ["wattline", "ledger"]})["datastore"]
        assert note["string"].split(":")[1], "the copy has a name of its own"


def kinds_of_events(scene: Scene) -> set[str]:
    with closing(sqlite3.connect(f"file:{scene.ledger_path}?mode=ro", uri=True)) as ledger:
        return {row[0] for row in ledger.execute("SELECT kind FROM events")}


def held_lines(scene: Scene) -> str:
    return "\n".join(line for line in scene.node.log_tail(2_000).splitlines() if "is held until" in line)
