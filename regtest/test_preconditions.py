"""What payments need and a node may be without: the keysend plugin, and channels that carry small payments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import Scene, Trade, script
from wattline.regtest.waiting import wait_until

pytestmark = pytest.mark.lightningd

MINIMUM_MSAT = 1_000


def checked(network: RegtestNetwork, config: Path) -> tuple[int, str]:
    """``wattline cable check``."""
    command = [str(script("wattline")), "cable", "check", "--config", str(config)]
    environment = {**os.environ, **network.environment}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout


def problems(scene: Scene, count: int) -> list[str]:
    """What ``wattline-status`` says once it names so many: what the start saw holds for a second."""
    found: list[str] = []

    def named() -> bool:
        found[:] = scene.status()["problems"]
        return len(found) == count

    wait_until(f"{count} problem(s)", named)
    return found


def test_a_socket_without_the_keysend_plugin_says_so_and_is_not_paid(network: RegtestNetwork) -> None:
    with Scene(network, Trade()) as scene:
        socket = network.node("socket", **{**scene.node_options, "disable_plugin": "keysend"})
        scene.adopt(socket)
        cable = network.node("cable")
        network.open_channel(cable, socket, 1_000_000, push_msat=300_000_000)
        scene.wait_running()
        (problem,) = problems(scene, 1)
        assert problem.startswith("keysend_off: ")
        config = scene.write_cable_config(cable)
        status, lines = checked(network, config)
        assert status == 1
        assert "problem  method   method_not_supported" in lines
        status, summary = scene.run_cable(config, 5).result()
        assert (status, summary["stop_reason"], summary["payments"]) == (1, "method_not_supported", 0)
        assert scene.sessions() == []


@pytest.mark.real_only
def test_payments_are_as_large_as_a_channel_s_minimum_and_a_refund_below_it_is_owed(network: RegtestNetwork) -> None:
    trade = Trade(session={"min_refund_msat": 100}, payment={"refund_retry_s": 1})
    with Scene(network, trade) as scene:
        socket = network.node("socket", **{**scene.node_options, "htlc_minimum_msat": MINIMUM_MSAT})
        scene.adopt(socket)
        cable = network.node("cable", htlc_minimum_msat=MINIMUM_MSAT)
        network.open_channel(cable, socket, 1_000_000, push_msat=300_000_000)
        scene.wait_running()
        assert problems(scene, 0) == []
        config = scene.write_cable_config(cable)
        status, lines = checked(network, config)
        assert status == 0, lines
        assert "a channel on the way carries no less than 1.000 sat" in lines
        status, summary = scene.run_cable(config, 5).result()
        assert summary["stop_reason"] == "done"
        assert summary["energy_uwh_cable"] > 0
        books = scene.books(cable)
        assert books.agree
        assert all(amount_msat >= MINIMUM_MSAT for amount_msat in books.delivered.values())
        unused_msat = summary["credited_msat"] - summary["charged_msat"]
        assert summary["refund_status"] == ("sent" if unused_msat >= MINIMUM_MSAT else "owed")
        assert scene.status()["refunds_owed"] == (0 if unused_msat >= MINIMUM_MSAT else 1)
