"""Worlds of their own for every mistake, and practice nodes for those that need one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import make_certificate
from tests.cli_errors.mistake import Desk
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.practice_network import PracticeNetwork
from wattline.regtest.scene import Scene, Trade


@dataclass(frozen=True)
class Street:
    """A socket that sells, and two nodes that would buy: one without a channel, one with a fresh small one."""

    scene: Scene
    poor: Node
    fresh: Node


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Desk]:
    monkeypatch.setenv("WATTLINE_SIM_DIR", str(tmp_path / "sim"))
    monkeypatch.setenv("WATTLINE_SIM_IDLE_S", "2")
    desk = Desk(tmp_path, monkeypatch, request.getfixturevalue)
    yield desk
    for close in reversed(desk.closing):
        close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A cable whose node and meter are fakes; all between them and the terminal is real."""
    bench = Bench(tmp_path, make_certificate())
    monkeypatch.setattr("wattline.cli.cable.CoreLightning", lambda rpc_path: bench.node)
    monkeypatch.setattr("wattline.cli.cable.open_meter", lambda settings, max_power_mw: bench.meter)
    yield bench
    bench.socket.stop()
    bench.ledger.close()


@pytest.fixture(scope="module")
def network() -> Iterator[RegtestNetwork]:
    with PracticeNetwork() as network:
        yield network


@pytest.fixture(scope="module")
def street(network: RegtestNetwork) -> Iterator[Street]:
    with Scene(network, Trade(), name="street") as scene:
        scene.start_node()
        poor, fresh = network.nodes("poor", "fresh")
        network.open_channel(fresh, scene.node, 20_000)
        scene.wait_running()
        yield Street(scene, poor, fresh)


@pytest.fixture(scope="module")
def empty_node(network: RegtestNetwork) -> Node:
    """A node without the plugin."""
    return network.node("empty")
