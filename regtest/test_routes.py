"""Sessions whose payments need more than one good channel: a node in between, and channels that are too small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.by_hand import FINAL_CLTV, HandCable
from harness.wallet_books import check_books, sent

from wattline.core.ledger.ledger import open_ledger
from wattline.core.ledger.outgoing import Intent, Purpose
from wattline.core.lightning.node import NoRoute, SendStatus, SentPayment
from wattline.core.payer import Payer
from wattline.core.record import format_record
from wattline.regtest.lightningd import Node
from wattline.regtest.network import Channel, RegtestNetwork
from wattline.regtest.scene import Scene, Trade
from wattline.regtest.waiting import wait_until
from wattline.v1 import charging_pb2 as pb

pytestmark = pytest.mark.lightningd

BASE_FEE_MSAT = 1_000
"""What the middle node takes for every payment that it passes on, besides 10 millionths of it."""
MIN_REFUND_MSAT = 500
TWIN_SAT = 100_000
TWIN_PUSH_MSAT = 10_000_000
TOGETHER_MSAT = 120_000_000
"""More than one of the twin channels holds, less than both."""
TRADE = Trade(
    profiles=("constant-0",),
    session={
        "min_refund_msat": MIN_REFUND_MSAT,
        "statement_interval_ms": 100,
        "credit_cap_msat": 2 * TOGETHER_MSAT,
        "open_timeout_s": 120,
    },
    payment={"journal_interval_s": 1, "refund_retry_s": 1},
)


@pytest.fixture(scope="module")
def line(module_network: RegtestNetwork) -> list[Channel]:
    return []


@pytest.fixture(scope="module")
def scene(module_network: RegtestNetwork, line: list[Channel]) -> Iterator[Scene]:
    with Scene(module_network, TRADE) as scene:
        socket = scene.start_node()
        cable, twin = module_network.nodes("cable", "twin")
        hub = module_network.node("hub", fee_base=BASE_FEE_MSAT)
        line += module_network.line(cable, hub, socket)
        for _ in range(2):
            module_network.open_channel(twin, socket, TWIN_SAT, push_msat=TWIN_PUSH_MSAT)
        scene.wait_running()
        yield scene


@pytest.fixture(scope="module")
def nodes(scene: Scene) -> dict[str, Node]:
    return {node.name: node for node in scene.network.all_nodes}


@pytest.fixture
def cable(scene: Scene, nodes: dict[str, Node]) -> Iterator[HandCable]:
    """Its payments go over the hub."""
    with HandCable(scene, nodes["cable"]) as cable:
        yield cable
        if cable.session_id and cable.newest_state(scene) != "closed":
            scene.node.rpc.call("wattline-stop", {"session_id": cable.session_id})
            wait_until("the session is closed", lambda: cable.newest_state(scene) == "closed", 30)


def pay(cable: HandCable, amount_msat: int) -> SentPayment:
    outcome = cable.pay(amount_msat)
    assert isinstance(outcome, SentPayment), outcome
    assert outcome.status is SendStatus.COMPLETE
    return outcome


def returned_msat(cable: HandCable) -> list[int]:
    text = f"keysend: wattline:1:{cable.session_id}:0"
    rows = cable.wallet_node.rpc.listinvoices()["invoices"]
    return [int(row["amount_received_msat"]) for row in rows if row.get("description") == text]


def check_sent_within_budget(scene: Scene, cable: HandCable, receipt: pb.Receipt) -> None:
    """The refund arrived, and it and its fee, as the node tells it, are within what was unused."""
    assert receipt.refund_status == pb.REFUND_STATUS_SENT
    assert returned_msat(cable) == [receipt.refunded_msat]
    (payment,) = [p for p in sent(scene.node) if p.payment_hash == receipt.refund_payment_hash]
    assert payment.fee_msat == receipt.refund_fee_msat >= BASE_FEE_MSAT
    unused_msat = receipt.credited_msat - receipt.charged_msat
    assert receipt.refunded_msat + receipt.refund_fee_msat <= unused_msat
    # What the headroom for a rising fee leaves is small change.
    assert unused_msat - receipt.refunded_msat - receipt.refund_fee_msat < BASE_FEE_MSAT


def test_a_session_over_a_middle_node_is_paid_and_refunded_with_fees_counted(scene: Scene, cable: HandCable) -> None:
    scene.world.plug(0, "constant-1300")
    cable.open()
    for _ in range(3):
        outcome = pay(cable, 10_000)
        assert outcome.amount_msat == 10_000
        assert outcome.amount_sent_msat >= 10_000 + BASE_FEE_MSAT
    statement = cable.statement(lambda s: s.credited_msat == 30_000 and s.energy_uwh > 0)
    assert statement.payments == 3, "what counts is what arrives; the fees are the cable's"
    cable.close()
    check_sent_within_budget(scene, cable, cable.receipt())
    scene.world.plug(0, "constant-0")


def test_a_refund_that_its_own_fee_would_take_is_kept(scene: Scene, cable: HandCable) -> None:
    cable.open()
    pay(cable, MIN_REFUND_MSAT + 100)
    cable.statement(lambda s: s.credited_msat > 0)
    cable.close()
    receipt = cable.receipt()
    assert receipt.refund_status == pb.REFUND_STATUS_KEPT
    assert receipt.balance_msat == MIN_REFUND_MSAT + 100 < BASE_FEE_MSAT
    assert returned_msat(cable) == []
    assert scene.status()["refunds_owed"] == 0


def test_a_refund_waits_for_a_middle_node_that_is_down_and_is_sent_once_when_it_is_back(
    scene: Scene, cable: HandCable, nodes: dict[str, Node], line: list[Channel]
) -> None:
    cable.open()
    pay(cable, 20_000)
    cable.statement(lambda s: s.credited_msat == 20_000)
    nodes["hub"].stop()
    cable.close()
    receipt = cable.receipt(90)
    assert receipt.refund_status == pb.REFUND_STATUS_OWED
    assert receipt.balance_msat == 20_000
    assert scene.status()["refunds_owed"] == 1
    nodes["hub"].start()
    for channel in line:
        scene.network.wait_for_channel(channel)

    def sent_now() -> pb.Receipt | None:
        newest = cable.newest_receipt()
        return newest if newest.refund_status == pb.REFUND_STATUS_SENT else None

    check_sent_within_budget(scene, cable, wait_until("the refund that was owed is sent", sent_now, 60))
    assert scene.status()["refunds_owed"] == 0


def order(session_id: str, sequence: int, destination: str, amount_msat: int) -> Intent:
    text = format_record(session_id, sequence)
    return Intent(
        purpose=Purpose.INCREMENT,
        session_id=session_id,
        sequence=sequence,
        destination=destination,
        amount_msat=amount_msat,
        maxfee_msat=amount_msat,
        record=text,
        label=text,
    )


def test_an_increment_that_only_two_channels_together_could_carry_is_not_split(
    scene: Scene, nodes: dict[str, Node], tmp_path: Path
) -> None:
    twin, socket = nodes["twin"], nodes["socket"]
    spendable = [int(row["spendable_msat"]) for row in twin.rpc.listpeerchannels()["channels"]]
    assert max(spendable) < TOGETHER_MSAT < sum(spendable)
    pids = (twin.pid, socket.pid)
    with HandCable(scene, twin) as cable, open_ledger(tmp_path / "cable.sqlite3") as ledger:
        session_id = cable.open()
        with pytest.raises(NoRoute):
            cable.wallet.find_route(socket.node_id, TOGETHER_MSAT, TOGETHER_MSAT, FINAL_CLTV)
        payer = Payer(cable.wallet, ledger.outgoing)
        with pytest.raises(NoRoute):
            payer.pay(order(session_id, 1, socket.node_id, TOGETHER_MSAT))
        assert ledger.outgoing.pending() == [], "nothing was sent, nothing is in doubt"
        assert twin.rpc.listsendpays()["payments"] == []
        smaller = payer.pay(order(session_id, 1, socket.node_id, TOGETHER_MSAT // 2))
        assert smaller.status is SendStatus.COMPLETE
        assert smaller.amount_sent_msat == TOGETHER_MSAT // 2
        cable.statement(lambda s: s.credited_msat == TOGETHER_MSAT // 2)
        cable.close()
        receipt = cable.receipt()
        assert returned_msat(cable) == [TOGETHER_MSAT // 2] == [receipt.refunded_msat]
    assert (twin.pid, socket.pid) == pids, "neither node went down"
    assert twin.rpc.getinfo()["id"] == twin.node_id
    assert scene.status()["state"] == "running"


def test_the_books_of_all_nodes_agree(scene: Scene, cable: HandCable, nodes: dict[str, Node]) -> None:
    cable.open()
    pay(cable, 5_000)
    cable.close()
    check_sent_within_budget(scene, cable, cable.receipt())
    sums = check_books(scene, [nodes["cable"], nodes["twin"]])
    assert sums.refund_fees_msat >= BASE_FEE_MSAT
    totals = scene.node.rpc.call("wattline-report")
    assert totals["refund_fees_msat"] == sums.refund_fees_msat
    assert totals["balance_msat"] == sums.balance_msat
