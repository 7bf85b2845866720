"""What the operator changes on real nodes while cables buy: the price, the list of who may buy, the plugin itself."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
from harness.by_hand import HandCable
from harness.dear_trade import (
    SECOND_MSAT,
    TARIFF,
    TRADE,
    check_settled,
    delivered,
    exact_cost_msat,
    in_state,
    pay,
    refusal_of,
    restart_plugin,
)
from harness.wallet_books import check_books

from wattline.core.lightning.node import SendFailure, signed_text
from wattline.core.record import format_record
from wattline.regtest.lightningd import Node
from wattline.regtest.scene import Scene
from wattline.v1 import charging_pb2 as pb

pytestmark = [pytest.mark.lightningd, pytest.mark.long]


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
        "socket_node_id": cable.offer().node_id,
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


def test_the_books_of_all_nodes_agree(scene: Scene, cable: HandCable, wallets: dict[str, Node]) -> None:
    cable.open()
    pay(cable, SECOND_MSAT)
    delivered(cable, 100)
    cable.close()
    check_settled(scene, cable, "cable_closed")
    sums = check_books(scene, [wallets["cable"], wallets["other"]])
    assert sums.charged_msat > 0
    assert scene.node.rpc.call("wattline-report")["balance_msat"] == sums.balance_msat
