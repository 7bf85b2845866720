"""Meters and relays that fail in mid-session on real nodes: delivery stops and unused credit comes back."""

from __future__ import annotations

import re
import time

import pytest
from harness.by_hand import HandCable
from harness.dear_trade import (
    SECOND_MSAT,
    check_settled,
    delivered,
    exact_cost_msat,
    moves,
    outlet,
    pay,
    refusal_of,
    wait_free,
)
from harness.wallet_books import check_books

from wattline.core.lightning.node import SendFailure
from wattline.device.simulator.world import MeterFault, RelayFault
from wattline.regtest.lightningd import Node
from wattline.regtest.scene import Scene
from wattline.regtest.waiting import wait_until
from wattline.v1 import charging_pb2 as pb

pytestmark = pytest.mark.lightningd


METER_FAULTS = {
    MeterFault.NACK: "meter_bus_error",
    MeterFault.FROZEN: "meter_frozen",
    MeterFault.SATURATED: "meter_saturated",
    MeterFault.BACKWARDS: "meter_backwards",
    MeterFault.RESET: "meter_reset",
}
LASTING = (MeterFault.NACK, MeterFault.FROZEN, MeterFault.SATURATED)
"""Seen also while nothing flows, so that the outlet says so until they are mended."""


@pytest.mark.parametrize("fault", list(METER_FAULTS))
def test_a_meter_that_cannot_be_trusted_ends_the_session_and_unused_credit_comes_back(
    scene: Scene, cable: HandCable, fault: MeterFault
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
        assert without_times(offered.unavailable_reason) == without_times(str(now["fault"]))


def without_times(fault: str) -> str:
    """The outlet looks at its meter again between two questions, and says anew for how long it has been frozen."""
    return re.sub(r"\d+ ms", "… ms", fault)


def test_a_meter_that_is_another_chip_sells_nothing(scene: Scene, cable: HandCable) -> None:
    cable.open()
    pay(cable, 3 * SECOND_MSAT)
    delivered(cable, 200)
    meter = scene.world.socket_meter(0)
    # The identity is read when a meter is opened: as after an exchange of the chip, which resets it too.
    scene.world.break_meter(meter, MeterFault.WRONG_IDENTITY)
    scene.world.break_meter(meter, MeterFault.RESET)
    try:
        check_settled(scene, cable, "meter_reset")
        wait_until("the other chip is noticed", lambda: "manufacturer" in str(outlet(scene).get("fault")), 10)
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


def test_the_books_of_all_nodes_agree(scene: Scene, cable: HandCable, wallets: dict[str, Node]) -> None:
    cable.open()
    pay(cable, SECOND_MSAT)
    delivered(cable, 100)
    cable.close()
    check_settled(scene, cable, "cable_closed")
    sums = check_books(scene, [wallets["cable"], wallets["other"]])
    assert sums.charged_msat > 0
    assert scene.node.rpc.call("wattline-report")["balance_msat"] == sums.balance_msat
