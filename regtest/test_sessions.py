"""Sessions of cables worked by hand on real nodes: what is delivered, what it costs, how it ends."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing

import pytest
from harness.by_hand import HandCable, OpenRefusedError
from harness.dear_trade import (
    INTERVAL_MS,
    RATED_MW,
    SECOND_MSAT,
    TARIFF,
    TRADE,
    check_settled,
    delivered,
    end,
    exact_cost_msat,
    in_state,
    moves,
    outlet,
    pay,
    refund_at,
    refusal_of,
    statements,
)
from harness.wallet_books import check_books
from pyln.client import RpcError

from wattline.core.lightning.node import SendFailure, signed_text
from wattline.core.tariff import cost_msat, worth_msat
from wattline.regtest.lightningd import Node
from wattline.regtest.scene import Scene
from wattline.regtest.waiting import wait_until
from wattline.v1 import charging_pb2 as pb

pytestmark = pytest.mark.lightningd


def test_the_charge_of_a_changing_load_is_the_exact_cost_rounded_up_once(scene: Scene, cable: HandCable) -> None:
    before_uwh, before_moves = scene.world.energy_uwh(0), moves(scene)
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
    assert receipt.delivered_ms == pytest.approx(closed_ms(scene, before_moves), abs=300)
    told = [s for s in statements(cable) if s.delivered_ms > 0]
    assert len(told) >= 10
    for one in told:
        assert one.charged_msat == cost_msat(TARIFF, one.energy_uwh, one.delivered_ms, started=True)


def closed_ms(scene: Scene, since: int) -> int:
    """For how long the contact was closed altogether, from its movement number ``since`` on; it is open now."""
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


def test_a_busy_outlet_is_refused_and_the_session_there_goes_on(
    scene: Scene, cable: HandCable, wallets: dict[str, Node]
) -> None:
    cable.plug_nothing()
    session_id = cable.open()
    pay(cable, 1_000)
    cable.statement(lambda s: s.credited_msat == 1_000)
    with HandCable(scene, wallets["other"]) as second:
        refusal = refusal_of(second)
        assert refusal.code == "outlet_busy"
        assert "A1" in str(refusal)
        assert not next(o for o in second.offer().outlets if o.outlet_id == "A1").available
    assert scene.session(session_id)["state"] == "open"


def test_opens_that_never_pay_keep_no_outlet_from_a_cable_that_does_and_leave_nothing(
    scene: Scene, cable: HandCable, wallets: dict[str, Node]
) -> None:
    idle = [HandCable(scene, wallets["other"]) for _ in range(8)]
    try:
        for each in idle:
            each.open()
        assert next(o for o in cable.offer().outlets if o.outlet_id == "A1").available
        session_id = cable.open()
        pay(cable, 3 * SECOND_MSAT)
        delivered(cable, 300)
        assert outlet(scene)["session_id"] == session_id
        for each in idle:
            assert each.message("refusal").refusal.code == "outlet_busy"
        outcome = idle[0].pay(1_000)
        assert isinstance(outcome, SendFailure), "it keeps its money"
        assert outcome.at_destination
        assert outlet(scene)["waiting_sessions"] == []
    finally:
        for each in idle:
            each.hang_up()
    cable.close()
    cable.receipt()
    with closing(sqlite3.connect(f"file:{scene.ledger_path}?mode=ro", uri=True)) as ledger:
        for table in ("events", "statements", "receipts", "payments", "aggregates"):
            for each in idle:
                query = f"SELECT count(*) FROM {table} WHERE session_id = ?"
                assert ledger.execute(query, (each.session_id,)).fetchone() == (0,), table


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


def test_a_cable_that_does_not_take_its_refund_holds_nobody_else_up(
    scene: Scene, cable: HandCable, wallets: dict[str, Node]
) -> None:
    with HandCable(scene, wallets["other"], "A2") as other:
        session_id = other.open()
        pay(other, 3 * SECOND_MSAT)
        cable.open()
        pay(cable, 3 * SECOND_MSAT)
        delivered(cable, 100)
        os.kill(wallets["other"].pid, signal.SIGSTOP)
        try:
            scene.node.rpc.call("wattline-stop", {"session_id": session_id})
            wait_until("the refund is under way", lambda: refund_status_at(scene.node, session_id) == "pending", 20)
            cable.close()
            cable.receipt(15)
            check_settled(scene, cable, "cable_closed")
            assert refund_status_at(scene.node, session_id) == "pending"
            assert other.newest_state(scene) == "settling"
        finally:
            os.kill(wallets["other"].pid, signal.SIGCONT)
        receipt = other.receipt(60)
        assert receipt.refund_status == pb.REFUND_STATUS_SENT
        assert refund_at(other) == [receipt.credited_msat - receipt.charged_msat]


def refund_status_at(socket: Node, session_id: str) -> str | None:
    """What the socket's node says of the refund that it sent; None when it has sent none."""
    rows = [row for row in socket.rpc.listsendpays()["payments"] if row.get("label") == f"wattline:1:{session_id}:0"]
    return str(rows[0]["status"]) if rows else None


def test_a_stranger_cannot_take_up_a_session(scene: Scene, cable: HandCable) -> None:
    session_id = cable.open()
    with HandCable(scene, cable.wallet_node) as stranger:
        stranger.session_id = session_id
        with pytest.raises(OpenRefusedError) as caught:
            stranger.resume()
        assert caught.value.code == "wrong_token"


def test_the_report_and_the_books_of_all_nodes_agree(scene: Scene, cable: HandCable, wallets: dict[str, Node]) -> None:
    cable.plug_nothing()
    cable.open()
    pay(cable, SECOND_MSAT)
    cable.statement(lambda s: s.charged_msat >= TARIFF.session_fee_msat)
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
