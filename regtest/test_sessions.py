"""Sessions of cables worked by hand on real nodes: what is delivered, what it costs, how it ends.

Prices are a thousand times a real one, so that a second of toast is worth as much as a long breakfast.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from pyln.client import RpcError

from wattline.bus.simulation import Fault, RelayFault
from wattline.lightning.node import SendFailure, SendStatus, SentPayment
from wattline.lightning.record import format_record
from wattline.lightning.signing import signed_text
from wattline.practice.by_hand import HandCable, OpenRefusedError
from wattline.practice.lightningd import Node
from wattline.practice.network import RegtestNetwork
from wattline.practice.scene import Scene, Trade
from wattline.practice.waiting import wait_until
from wattline.practice.wallet_books import check_books
from wattline.tariff import Tariff, cost_msat, worth_msat
from wattline.v1 import charging_pb2 as pb

pytestmark = pytest.mark.lightningd

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


@pytest.fixture(scope="module")
def scene(module_network: RegtestNetwork) -> Iterator[Scene]:
    with Scene(module_network, TRADE) as scene:
        socket = scene.start_node()
        for wallet in module_network.nodes("cable", "other"):
            module_network.open_channel(wallet, socket, 1_000_000, push_msat=200_000_000)
        scene.wait_running()
        yield scene


@pytest.fixture(scope="module")
def wallets(scene: Scene) -> dict[str, Node]:
    return {node.name: node for node in scene.network.all_nodes}


@pytest.fixture
def cable(scene: Scene, wallets: dict[str, Node]) -> Iterator[HandCable]:
    scene.world.plug(0, "constant-1300")
    wait_free(scene)
    with HandCable(scene, wallets["cable"]) as cable:
        yield cable
        end(scene, cable)


def end(scene: Scene, cable: HandCable) -> None:
    if cable.session_id and cable.newest_state(scene) != "closed":
        scene.node.rpc.call("wattline-stop", {"session_id": cable.session_id})
        wait_until("the session is closed", lambda: cable.newest_state(scene) == "closed", 30)


def outlet(scene: Scene, outlet_id: str = "A1") -> dict[str, object]:
    return next(dict(o) for o in scene.status()["outlets"] if o["outlet_id"] == outlet_id)


def wait_free(scene: Scene, outlet_id: str = "A1") -> None:
    wait_until(f"outlet {outlet_id} is free", lambda: outlet(scene, outlet_id)["state"] == "available", 30)


def pay(cable: HandCable, amount_msat: int) -> None:
    outcome = cable.pay(amount_msat)
    assert isinstance(outcome, SentPayment), outcome
    assert outcome.status is SendStatus.COMPLETE


def statements(cable: HandCable) -> list[pb.Statement]:
    return [m.statement for m in cable.messages if m.HasField("statement")]


def in_state(cable: HandCable, state: int, timeout_s: float = 20.0) -> pb.Statement:
    return cable.statement(lambda s: s.state == state, timeout_s)


def delivered(cable: HandCable, delivered_ms: int) -> pb.Statement:
    return cable.statement(lambda s: s.delivered_ms >= delivered_ms)


def exact_cost_msat(receipt: pb.Receipt, tariff: Tariff = TARIFF) -> int:
    return cost_msat(tariff, receipt.energy_uwh, receipt.delivered_ms, started=receipt.delivered_ms > 0)


def moves(scene: Scene, circuit: int = 0) -> int:
    return len(scene.world.history(circuit))


def refund_at(cable: HandCable) -> list[int]:
    """What the cable's own node received back for the session."""
    rows = cable.wallet_node.rpc.listinvoices()["invoices"]
    text = f"keysend: wattline:1:{cable.session_id}:0"
    return [int(row["amount_received_msat"]) for row in rows if row.get("description") == text]


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


def test_the_charge_of_a_changing_load_is_the_exact_cost_rounded_up_once(scene: Scene, cable: HandCable) -> None:
    before_uwh = scene.world.energy_uwh(0)
    cable.open()
    for amount_msat, profile in ((123_457, "constant-1300"), (98_765, "noisy"), (54_321, "phone"), (77_777, "toaster")):
        seen_ms = cable.statement(lambda s: True).delivered_ms if statements(cable) else 0
        pay(cable, amount_msat)
        scene.world.plug(0, profile)
        delivered(cable, seen_ms + 400)
    cable.close()
    receipt = check_settled(scene, cable, "cable_closed")
    true_uwh = scene.world.energy_uwh(0) - before_uwh
    assert receipt.charged_msat > TARIFF.session_fee_msat
    assert receipt.payments == 4
    assert receipt.credited_msat == 123_457 + 98_765 + 54_321 + 77_777
    assert receipt.energy_uwh == pytest.approx(true_uwh, rel=0.005, abs=200)
    # The time price runs while the relay is held, which is as long as the contact is closed.
    assert receipt.delivered_ms == pytest.approx(closed_ms(scene), abs=300)
    told = [s for s in statements(cable) if s.delivered_ms > 0]
    assert len(told) >= 10
    for one in told:
        assert one.charged_msat == cost_msat(TARIFF, one.energy_uwh, one.delivered_ms, started=True)


def closed_ms(scene: Scene, since: int = 0) -> int:
    """For how long the contact was closed in its last movements from number ``since`` on; it is open now."""
    history = scene.world.history(0)[since:]
    return sum(off.at_ms - on.at_ms for on, off in zip(history[0::2], history[1::2], strict=True))


def test_when_the_cable_stops_paying_the_relay_opens_in_time_and_closes_again_when_it_pays(
    scene: Scene, cable: HandCable
) -> None:
    before_uwh, before_moves = scene.world.energy_uwh(0), moves(scene)
    session_id = cable.open()
    pay(cable, 2 * SECOND_MSAT)
    paused = in_state(cable, pb.SESSION_STATE_PAUSED)
    assert not paused.relay_closed
    assert not scene.world.relay_closed(0)
    taken_uwh = scene.world.energy_uwh(0) - before_uwh
    assert taken_uwh > 0
    assert cost_msat(TARIFF, taken_uwh, paused.delivered_ms, started=True) <= paused.credited_msat
    assert scene.session(session_id)["state"] == "paused"

    pay(cable, SECOND_MSAT)
    in_state(cable, pb.SESSION_STATE_DELIVERING)
    in_state(cable, pb.SESSION_STATE_PAUSED)
    paused_at = time.monotonic()
    receipt = check_settled(scene, cable, "pause_timeout")
    assert time.monotonic() - paused_at >= TRADE.session["pause_max_s"] - 0.5
    assert [s.balance_msat for s in statements(cable) if s.balance_msat < 0] == []
    assert [step.closed for step in scene.world.history(0)[before_moves:]] == [True, False, True, False]
    unpaid_msat = scene.session(session_id)["max_unpaid_msat"]
    assert unpaid_msat == 0
    true_uwh = scene.world.energy_uwh(0) - before_uwh
    true_msat = cost_msat(TARIFF, true_uwh, receipt.delivered_ms, started=True)
    assert true_msat - receipt.credited_msat <= worth_msat(TARIFF, RATED_MW, INTERVAL_MS)
    assert true_msat <= receipt.credited_msat, "it was never in debt at all"


def test_a_session_that_is_never_paid_ends_and_frees_the_outlet(scene: Scene, cable: HandCable) -> None:
    before_moves = moves(scene)
    cable.open()
    receipt = check_settled(scene, cable, "not_paid")
    assert (receipt.charged_msat, receipt.credited_msat, receipt.payments) == (0, 0, 0)
    assert receipt.refund_status == pb.REFUND_STATUS_NONE
    assert moves(scene) == before_moves
    with HandCable(scene, cable.wallet_node) as next_one:
        assert next_one.open()
        end(scene, next_one)


def test_a_payment_too_small_to_begin_with_is_given_back(scene: Scene, cable: HandCable) -> None:
    before_moves = moves(scene)
    cable.open()
    pay(cable, 10_000)
    receipt = check_settled(scene, cable, "not_paid")
    assert (receipt.charged_msat, receipt.refunded_msat) == (0, 10_000)
    assert moves(scene) == before_moves


def test_the_refund_arrives_with_a_signed_receipt_when_the_cable_closes(scene: Scene, cable: HandCable) -> None:
    session_id = cable.open()
    pay(cable, 4 * SECOND_MSAT)
    delivered(cable, 500)
    cable.close()
    receipt = check_settled(scene, cable, "cable_closed")
    assert receipt.refund_status == pb.REFUND_STATUS_SENT
    assert receipt.refunded_msat > SECOND_MSAT
    assert receipt.credited_msat == receipt.charged_msat + receipt.refunded_msat
    (invoice,) = [
        row
        for row in cable.wallet_node.rpc.listinvoices()["invoices"]
        if row["payment_hash"] == receipt.refund_payment_hash
    ]
    assert invoice["description"] == f"keysend: wattline:1:{session_id}:0"
    assert invoice["amount_received_msat"] == receipt.refunded_msat

    signed = cable.message("receipt").receipt
    checked = cable.wallet_node.rpc.call(
        "checkmessage",
        {
            "message": signed_text("receipt", signed.receipt),
            "zbase": signed.signature,
            "pubkey": scene.node.node_id,
        },
    )
    assert checked["verified"] is True
    assert (receipt.session_id, receipt.node_id) == (session_id, scene.node.node_id)
    forged = cable.wallet_node.rpc.call(
        "checkmessage",
        {
            "message": signed_text("receipt", signed.receipt + b"\0"),
            "zbase": signed.signature,
            "pubkey": scene.node.node_id,
        },
    )
    assert forged["verified"] is False
    assert cable.newest_receipt() == receipt


def test_two_cables_at_two_outlets_each_pay_for_their_own_energy(
    scene: Scene, cable: HandCable, wallets: dict[str, Node]
) -> None:
    before_uwh = [scene.world.energy_uwh(circuit) for circuit in (0, 1)]
    with HandCable(scene, wallets["other"], "A2") as other:
        first, second = cable.open(), other.open()
        for _ in range(3):
            pay(cable, 100_001)
            pay(other, 50_003)
        delivered(cable, 600)
        delivered(other, 600)
        cable.close()
        other.close()
        receipts = [cable.receipt(), other.receipt()]
    assert [r.session_id for r in receipts] == [first, second]
    assert [r.credited_msat for r in receipts] == [300_003, 150_009]
    for circuit, receipt in enumerate(receipts):
        assert receipt.charged_msat == exact_cost_msat(receipt)
        true_uwh = scene.world.energy_uwh(circuit) - before_uwh[circuit]
        assert receipt.energy_uwh == pytest.approx(true_uwh, rel=0.005, abs=200)
    assert receipts[0].cable_node_id == cable.wallet_node.node_id
    assert receipts[1].cable_node_id == other.wallet_node.node_id
    assert refund_at(cable) == [300_003 - receipts[0].charged_msat]
    assert refund_at(other) == [150_009 - receipts[1].charged_msat]


def refusal_of(cable: HandCable, **changes: object) -> OpenRefusedError:
    with pytest.raises(OpenRefusedError) as caught:
        cable.open(**changes)
    return caught.value


def test_a_busy_outlet_is_refused_and_the_session_there_goes_on(
    scene: Scene, cable: HandCable, wallets: dict[str, Node]
) -> None:
    cable.plug_nothing()
    session_id = cable.open()
    with HandCable(scene, wallets["other"]) as second:
        refusal = refusal_of(second)
        assert refusal.code == "outlet_busy"
        assert "A1" in str(refusal)
        assert not next(o for o in second.offer().outlets if o.outlet_id == "A1").available
    assert scene.session(session_id)["state"] == "open"


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"outlet_id": "B7"}, "unknown_outlet", "A1, A2"),
        ({"tariff_id": "0123456789abcdef"}, "tariff_changed", "price"),
        ({"method": pb.METHOD_ONCHAIN}, "method_not_supported", "keysend"),
        ({"method": pb.METHOD_UNSPECIFIED}, "method_not_supported", "keysend"),
        ({"cable_node_id": ""}, "bad_request", "cable_node_id"),
        ({"cable_node_id": "04" + "ab" * 32}, "bad_request", "cable_node_id"),
        ({"token": b"short"}, "bad_request", "32 bytes"),
    ],
)
def test_an_open_that_cannot_be_is_refused_with_its_own_code(
    scene: Scene, cable: HandCable, changes: dict[str, object], code: str, named: str
) -> None:
    refusal = refusal_of(cable, **changes)
    assert refusal.code == code
    assert named in str(refusal)
    assert outlet(scene)["session_id"] is None


def test_the_operator_stops_a_session(scene: Scene, cable: HandCable) -> None:
    session_id = cable.open()
    pay(cable, 3 * SECOND_MSAT)
    delivered(cable, 300)
    answer = scene.node.rpc.call("wattline-stop", {"session_id": session_id})
    assert answer["stopped"] is True
    receipt = check_settled(scene, cable, "operator_stopped")
    assert receipt.refunded_msat > 0
    with pytest.raises(RpcError, match="no live session"):
        scene.node.rpc.call("wattline-stop", {"session_id": session_id})


def test_a_lost_stream_is_resumed_and_the_session_goes_on(scene: Scene, cable: HandCable) -> None:
    session_id = cable.open()
    pay(cable, 8 * SECOND_MSAT)
    delivered(cable, 200)
    before_moves = moves(scene)
    cable.hang_up()
    assert cable.reconnect() == session_id
    opened = cable.message("opened").opened
    assert opened.resumed
    assert opened.statement.state == pb.SESSION_STATE_DELIVERING
    # Longer than cable_lost_s: the loss has been forgotten.
    delivered(cable, 5_000)
    assert moves(scene) == before_moves, "the relay stayed closed all the time"
    cable.close()
    assert check_settled(scene, cable, "cable_closed").credited_msat == 8 * SECOND_MSAT


def test_a_lost_cable_that_stays_away_is_settled_and_refunded(scene: Scene, cable: HandCable) -> None:
    cable.plug_nothing()
    session_id = cable.open()
    pay(cable, 6 * SECOND_MSAT)
    delivered(cable, 200)
    cable.hang_up()
    hung_up_at = time.monotonic()
    wait_until("the session is closed", lambda: cable.newest_state(scene) == "closed", 30)
    assert time.monotonic() - hung_up_at >= TRADE.session["cable_lost_s"] - 0.5
    session = scene.session(session_id)
    assert session["stop_reason"] == "cable_lost"
    assert session["refund_status"] == "sent"
    assert session["balance_msat"] == 0
    assert refund_at(cable) == [session["refunded_msat"]]
    assert not scene.world.relay_closed(0)
    cable.reconnect()
    assert cable.receipt().refunded_msat == session["refunded_msat"]


def test_a_stranger_cannot_take_up_a_session(scene: Scene, cable: HandCable) -> None:
    session_id = cable.open()
    with HandCable(scene, cable.wallet_node) as stranger:
        stranger.session_id = session_id
        with pytest.raises(OpenRefusedError) as caught:
            stranger.resume()
        assert caught.value.code == "wrong_token"


METER_FAULTS = {
    Fault.NACK: "meter_bus_error",
    Fault.FROZEN: "meter_frozen",
    Fault.SATURATED: "meter_saturated",
    Fault.BACKWARDS: "meter_backwards",
    Fault.RESET: "meter_reset",
}
LASTING = (Fault.NACK, Fault.FROZEN, Fault.SATURATED)
"""Seen also while nothing flows, so that the outlet says so until they are mended."""


@pytest.mark.parametrize("fault", list(METER_FAULTS))
def test_a_meter_that_cannot_be_trusted_ends_the_session_and_unused_credit_comes_back(
    scene: Scene, cable: HandCable, fault: Fault
) -> None:
    before_moves = moves(scene)
    cable.open()
    pay(cable, 6 * SECOND_MSAT)
    delivered(cable, 300)
    meter = scene.world.socket_meter(0)
    scene.world.break_meter(meter, fault)
    broken_ms = time.monotonic_ns() // 1_000_000
    try:
        receipt = check_settled(scene, cable, METER_FAULTS[fault])
        assert receipt.refunded_msat > SECOND_MSAT
        history = scene.world.history(0)[before_moves:]
        assert [step.closed for step in history] == [True, False]
        assert history[1].at_ms - broken_ms < 1_000
        failed = cable.pay(1_000)
        assert isinstance(failed, SendFailure)
        if fault in LASTING:
            check_faulted(scene, cable)
    finally:
        scene.world.mend_meter(meter)
    wait_free(scene)


def check_faulted(scene: Scene, cable: HandCable) -> None:
    now = outlet(scene)
    assert now["state"] == "faulted"
    assert now["fault"]
    with HandCable(scene, cable.wallet_node) as next_one:
        assert refusal_of(next_one).code == "outlet_faulted"
        offered = next(o for o in next_one.offer().outlets if o.outlet_id == "A1")
        assert not offered.available
        assert offered.unavailable_reason == now["fault"]


def test_a_meter_that_is_another_chip_sells_nothing(scene: Scene, cable: HandCable) -> None:
    cable.open()
    pay(cable, 3 * SECOND_MSAT)
    delivered(cable, 200)
    meter = scene.world.socket_meter(0)
    # The identity is read when a meter is opened: as after an exchange of the chip, which resets it too.
    scene.world.break_meter(meter, Fault.WRONG_IDENTITY)
    scene.world.break_meter(meter, Fault.RESET)
    try:
        check_settled(scene, cable, "meter_reset")
        wait_until("the other chip is noticed", lambda: "INA228" in str(outlet(scene).get("fault")), 10)
        check_faulted(scene, cable)
    finally:
        scene.world.mend_meter(meter)
    wait_free(scene)


@pytest.mark.parametrize("fault", [RelayFault.STUCK, RelayFault.NACK])
def test_a_relay_that_does_not_obey_ends_the_session_and_nothing_more_is_sold(
    scene: Scene, cable: HandCable, fault: RelayFault
) -> None:
    before_moves = moves(scene)
    cable.open()
    pay(cable, 3 * SECOND_MSAT)
    delivered(cable, 200)
    scene.world.break_relay(0, fault)
    try:
        failed_state(cable)
        assert outlet(scene)["relay"] == "closed", "it must not be called open while nobody knows"
        # The load is pulled out, so that no more energy is lost through the relay.
        scene.world.plug(0, "constant-0")
        receipt = cable.receipt()
        assert receipt.stop_reason == "relay_fault"
        assert receipt.charged_msat == exact_cost_msat(receipt)
        wait_until("the outlet says that it is faulted", lambda: outlet(scene)["state"] == "faulted", 10)
        check_faulted(scene, cable)
        assert isinstance(cable.pay(1_000), SendFailure)
    finally:
        scene.world.mend_relay(0)
    wait_free(scene)
    assert [step.closed for step in scene.world.history(0)[before_moves:]] == [True, False]
    assert outlet(scene)["relay"] == "open"


def failed_state(cable: HandCable) -> pb.Statement:
    return cable.statement(lambda s: s.state >= pb.SESSION_STATE_SETTLING, 20)


def test_a_welded_contact_is_noticed_by_the_meter_when_the_relay_should_be_open(scene: Scene, cable: HandCable) -> None:
    cable.open()
    pay(cable, 2 * SECOND_MSAT)
    delivered(cable, 200)
    scene.world.break_relay(0, RelayFault.WELDED)
    try:
        failed_state(cable)
        receipt = cable.receipt()
        assert receipt.stop_reason == "relay_fault"
        wait_until("the outlet says that it is faulted", lambda: outlet(scene)["state"] == "faulted", 10)
        check_faulted(scene, cable)
    finally:
        scene.world.mend_relay(0)
    wait_free(scene)


def test_a_free_outlet_whose_relay_does_not_answer_sells_nothing(scene: Scene, cable: HandCable) -> None:
    scene.world.break_relay(0, RelayFault.NACK)
    try:
        assert refusal_of(cable).code == "outlet_faulted"
        check_faulted(scene, cable)
    finally:
        scene.world.mend_relay(0)
    wait_free(scene)


def test_too_much_power_ends_the_session(scene: Scene, cable: HandCable) -> None:
    cable.open()
    pay(cable, 3 * SECOND_MSAT)
    delivered(cable, 200)
    scene.world.plug(0, "constant-1600")
    check_settled(scene, cable, "over_power")


def set_price(scene: Scene, energy_msat_per_kwh: int) -> str:
    answer = scene.node.rpc.call("wattline-tariff", {"energy_msat_per_kwh": energy_msat_per_kwh})
    return str(answer["tariff_id"])


def test_a_price_change_is_told_and_holds_for_new_sessions_only_and_over_a_restart(
    scene: Scene, cable: HandCable, wallets: dict[str, Node]
) -> None:
    session_id = cable.open()
    pay(cable, 3 * SECOND_MSAT)
    delivered(cable, 200)
    dearer = replace(TARIFF, energy_msat_per_kwh=450_000_000)
    tariff_id = set_price(scene, dearer.energy_msat_per_kwh)
    change = cable.message("tariff_change").tariff_change
    assert change.tariff.tariff_id == tariff_id != TARIFF.tariff_id
    assert change.tariff.energy_msat_per_kwh == dearer.energy_msat_per_kwh
    assert change.tariff.session_fee_msat == TARIFF.session_fee_msat, "what was not named stays"
    in_state(cable, pb.SESSION_STATE_PAUSED)
    pay(cable, 2 * SECOND_MSAT)
    in_state(cable, pb.SESSION_STATE_DELIVERING)
    cable.close()
    receipt = check_settled(scene, cable, "cable_closed")
    assert receipt.tariff.tariff_id == TARIFF.tariff_id
    assert receipt.session_id == session_id

    with HandCable(scene, wallets["cable"]) as next_one:
        refusal = refusal_of(next_one, tariff_id=TARIFF.tariff_id)
        assert refusal.code == "tariff_changed"
    restart_plugin(scene)
    assert scene.status()["tariff"]["energy_msat_per_kwh"] == dearer.energy_msat_per_kwh
    with HandCable(scene, wallets["cable"]) as next_one:
        next_one.open()
        pay(next_one, 2 * SECOND_MSAT)
        delivered(next_one, 200)
        next_one.close()
        paid = next_one.receipt()
        assert paid.tariff.tariff_id == tariff_id
        assert paid.charged_msat == exact_cost_msat(paid, replace(dearer, tariff_id=tariff_id))
    # A price that is written into the file is newer than what was said before it.
    scene.write_config(replace(TRADE, energy_msat_per_kwh=310_000_000))
    restart_plugin(scene)
    assert scene.status()["tariff"]["energy_msat_per_kwh"] == 310_000_000
    scene.write_config(TRADE)
    restart_plugin(scene)
    assert scene.status()["tariff"]["tariff_id"] == TARIFF.tariff_id


def restart_plugin(scene: Scene) -> None:
    scene.unload_plugin()
    wait_until("the plugin is gone", lambda: not scene.is_loaded(), 30)
    scene.load_plugin()
    scene.wait_running()
    wait_free(scene)


def test_a_plugin_started_again_after_a_refusal_is_still_asked_before_keysend(scene: Scene, cable: HandCable) -> None:
    """lightningd counts a hook that has answered `fail` as in use for ever, and defers what is registered later."""
    assert isinstance(cable.pay(1_000, record=format_record("0123456789ABCDEFGHJKMNPQRS", 1)), SendFailure)
    log_end = scene.node.log_path.stat().st_size
    restart_plugin(scene)
    assert isinstance(cable.pay(1_000, record=format_record("0123456789ABCDEFGHJKMNPQRS", 2)), SendFailure)
    cable.open()
    pay(cable, 2 * SECOND_MSAT)
    delivered(cable, 100)
    cable.close()
    check_settled(scene, cable, "cable_closed")
    assert b"Deferring registration of hook htlc_accepted" not in scene.node.log_path.read_bytes()[log_end:]


def signed_open(cable: HandCable, signer: Node, claimed_id: str) -> dict[str, object]:
    """The fields of an open for ``claimed_id`` with a signature of ``signer``."""
    values: dict[str, object] = {
        "outlet_id": "A1",
        "tariff_id": cable.offer().tariff.tariff_id,
        "method": pb.METHOD_KEYSEND,
        "cable_node_id": claimed_id,
    }
    unsigned = pb.Open(token=cable.token, **values)  # type: ignore[arg-type]
    text = signed_text("open", unsigned.SerializeToString(deterministic=True))
    return {**values, "signature": signer.rpc.call("signmessage", {"message": text})["zbase"]}


def test_an_allow_list_lets_in_only_who_signs_with_a_key_on_it(
    scene: Scene, cable: HandCable, wallets: dict[str, Node]
) -> None:
    friend, other = wallets["cable"], wallets["other"]
    scene.write_config(replace(TRADE, allow_node_ids=[friend.node_id]))
    restart_plugin(scene)
    try:
        with ExitStack() as stack:
            cables = [stack.enter_context(HandCable(scene, friend)) for _ in range(4)]
            assert refusal_of(cables[0]).code == "not_allowed", "its name alone proves nothing"
            refusal = refusal_of(cables[1], **signed_open(cables[1], other, friend.node_id))
            assert refusal.code == "not_allowed"
            assert "not signed" in str(refusal)
            refusal = refusal_of(cables[2], **signed_open(cables[2], other, other.node_id))
            assert refusal.code == "not_allowed"
            assert "list" in str(refusal)
            cables[3].plug_nothing()
            cables[3].open(**signed_open(cables[3], friend, friend.node_id))
            pay(cables[3], 2 * SECOND_MSAT)
            delivered(cables[3], 100)
            cables[3].close()
            assert check_settled(scene, cables[3], "cable_closed").credited_msat == 2 * SECOND_MSAT
    finally:
        scene.write_config(TRADE)
        restart_plugin(scene)


def test_the_report_and_the_books_of_all_nodes_agree(scene: Scene, cable: HandCable, wallets: dict[str, Node]) -> None:
    cable.plug_nothing()
    cable.open()
    pay(cable, SECOND_MSAT)
    cable.close()
    check_settled(scene, cable, "cable_closed")
    sums = check_books(scene, [wallets["cable"], wallets["other"]])
    totals = scene.node.rpc.call("wattline-report")
    assert sums.credited_msat > 0
    for name in ("sessions", "payments", "energy_uwh", "credited_msat", "charged_msat", "refunded_msat"):
        assert totals[name] == getattr(sums, name), name
    assert totals["refund_fees_msat"] == sums.refund_fees_msat
    assert totals["balance_msat"] == sums.balance_msat
    assert totals["orphans"] == 0
    shown = scene.sessions()
    assert sum(s["charged_msat"] for s in shown) == totals["charged_msat"]
    assert sum(s["credited_msat"] for s in shown) == totals["credited_msat"]
    assert len(shown) == totals["sessions"]
    nothing = scene.node.rpc.call("wattline-report", {"start_time": 1, "end_time": 2})
    assert (nothing["sessions"], nothing["charged_msat"]) == (0, 0)
