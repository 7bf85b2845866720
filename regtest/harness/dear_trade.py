"""A trade at a thousand times a real price, so that a second of toast is worth as much as a long breakfast, and what is
the same in every session of it."""

from __future__ import annotations

from harness.by_hand import HandCable, OpenRefusedError
from wattline.core.lightning.node import SendStatus, SentPayment
from wattline.core.tariff import Tariff, cost_msat
from wattline.regtest.scene import Scene, Trade
from wattline.regtest.waiting import wait_until
from wattline.v1 import charging_pb2 as pb

RATED_MW = 1_400_000
INTERVAL_MS = 100
SECOND_MSAT = 113_750
"""What a second at 1300 W costs, the time price included."""
TARIFF = Tariff.of(energy_msat_per_kwh=300_000_000, time_msat_per_hour=19_500_000, session_fee_msat=5_000)
TRADE = Trade(
    energy_msat_per_kwh=TARIFF.energy_msat_per_kwh,
    time_msat_per_hour=TARIFF.time_msat_per_hour,
    session_fee_msat=TARIFF.session_fee_msat,
    profiles=("constant-1300", "constant-650"),
    session={
        "credit_cap_msat": 2_000_000,
        "min_refund_msat": 1_000,
        "statement_interval_ms": 100,
        "open_timeout_s": 4,
        "pause_max_s": 4,
        "cable_lost_s": 4,
    },
    payment={"journal_interval_s": 1, "refund_retry_s": 1},
)


def pay(cable: HandCable, amount_msat: int) -> None:
    """A payment that arrives."""
    outcome = cable.pay(amount_msat)
    assert isinstance(outcome, SentPayment), outcome
    assert outcome.status is SendStatus.COMPLETE


def end(scene: Scene, cable: HandCable) -> None:
    """Stop its session if it still lives, and wait until it is closed."""
    if cable.session_id and cable.newest_state(scene) != "closed":
        scene.node.rpc.call("wattline-stop", {"session_id": cable.session_id})
        wait_until("the session is closed", lambda: cable.newest_state(scene) == "closed", 30)


def statements(cable: HandCable) -> list[pb.Statement]:
    return [m.statement for m in cable.messages if m.HasField("statement")]


def in_state(cable: HandCable, state: int, timeout_s: float = 20.0) -> pb.Statement:
    """The newest statement, once the session is in ``state``."""
    return cable.statement(lambda s: s.state == state, timeout_s)


def delivered(cable: HandCable, delivered_ms: int) -> pb.Statement:
    """The newest statement, once the relay was held for ``delivered_ms`` altogether."""
    return cable.statement(lambda s: s.delivered_ms >= delivered_ms)


def outlet(scene: Scene, outlet_id: str = "A1") -> dict[str, object]:
    """An outlet as the operator sees it."""
    return next(dict(o) for o in scene.status()["outlets"] if o["outlet_id"] == outlet_id)


def wait_free(scene: Scene, outlet_id: str = "A1") -> None:
    wait_until(f"outlet {outlet_id} is free", lambda: outlet(scene, outlet_id)["state"] == "available", 30)


def restart_plugin(scene: Scene) -> None:
    """Stop the plugin and start it again, as an operator does."""
    scene.unload_plugin()
    wait_until("the plugin is gone", lambda: not scene.is_loaded(), 30)
    scene.load_plugin()
    scene.wait_running()
    wait_free(scene)


def moves(scene: Scene, circuit: int = 0) -> int:
    """How often the contact has moved so far."""
    return len(scene.world.history(circuit))


def refund_at(cable: HandCable) -> list[int]:
    """What the cable's own node received back for the session."""
    rows = cable.wallet_node.rpc.listinvoices()["invoices"]
    text = f"keysend: wattline:1:{cable.session_id}:0"
    return [int(row["amount_received_msat"]) for row in rows if row.get("description") == text]


def refusal_of(cable: HandCable, **changes: object) -> OpenRefusedError:
    """Why an open with these fields is refused. Raises AssertionError when it is not."""
    try:
        session_id = cable.open(**changes)
    except OpenRefusedError as error:
        return error
    raise AssertionError(f"session {session_id} was opened")


def exact_cost_msat(receipt: pb.Receipt, tariff: Tariff = TARIFF) -> int:
    """What the receipt's energy and time cost."""
    return cost_msat(tariff, receipt.energy_uwh, receipt.delivered_ms, started=receipt.delivered_ms > 0)


def check_settled(scene: Scene, cable: HandCable, reason: str) -> pb.Receipt:
    """The receipt, after the usual end: exact charge, unused credit back to the msat, relay open."""
    receipt = cable.receipt()
    assert receipt.stop_reason == reason
    assert receipt.charged_msat == exact_cost_msat(receipt)
    assert receipt.balance_msat == receipt.credited_msat - receipt.charged_msat - receipt.refunded_msat
    if receipt.credited_msat - receipt.charged_msat >= TRADE.session["min_refund_msat"]:
        assert receipt.refund_status == pb.REFUND_STATUS_SENT
        assert receipt.balance_msat == receipt.refund_fee_msat == 0
        assert refund_at(cable) == [receipt.refunded_msat]
    assert not scene.world.relay_closed(0)
    return receipt
