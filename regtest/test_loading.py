"""Loading and unloading the plugin, and what the operator is told when something is wrong."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness.by_hand import HandCable
from pyln.client import RpcError

from wattline.core.errors import StopError
from wattline.device.controller.plugin_starter import process_start_time
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import Scene, Trade
from wattline.regtest.waiting import wait_until

pytestmark = [pytest.mark.lightningd, pytest.mark.long]

INVALID_PARAMETERS = -32602
INVALID_REQUEST = -32600
"""What pyln answers itself when parameters are missing, unknown or too many."""
UNKNOWN_SESSION = "0123456789ABCDEFGHJKMNPQRS"
METHODS = {
    "wattline-status": "",
    "wattline-sessions": "[session_id] [limit]",
    "wattline-tariff": "[energy_msat_per_kwh] [time_msat_per_hour] [session_fee_msat]",
    "wattline-stop": "session_id",
    "wattline-report": "[start_time] [end_time]",
}


@pytest.fixture(scope="module")
def static(module_network: RegtestNetwork) -> Iterator[Scene]:
    """A socket whose node has the plugin in its configuration."""
    with Scene(module_network, Trade(), name="static") as scene:
        scene.start_node()
        scene.wait_running()
        yield scene


@pytest.fixture(scope="module")
def plain(module_network: RegtestNetwork) -> Node:
    """A node without the plugin."""
    return module_network.node("dynamic")


@pytest.fixture(scope="module")
def dynamic(module_network: RegtestNetwork, plain: Node) -> Iterator[Scene]:
    """A socket whose node is to load the plugin while it runs."""
    with Scene(module_network, Trade(profiles=("phone",)), name="dynamic") as scene:
        scene.adopt(plain)
        yield scene


@pytest.fixture
def loaded(dynamic: Scene) -> Iterator[Scene]:
    dynamic.load_plugin()
    dynamic.wait_running()
    yield dynamic
    if dynamic.is_loaded():
        dynamic.unload_plugin()


def is_gone(pid: int) -> bool:
    return process_start_time(pid) is None


def refusal(scene: Scene, method: str, parameters: Any) -> str:
    """The message with which a method refuses parameters."""
    with pytest.raises(RpcError) as caught:
        scene.node.rpc.call(method, parameters)
    error = caught.value.error
    assert isinstance(error, dict)
    assert error["code"] in (INVALID_PARAMETERS, INVALID_REQUEST)
    assert "\n" not in error["message"]
    assert set(error) == {"code", "message"}
    return str(error["message"])


def test_a_plugin_in_the_configuration_sells_when_the_node_has_started(static: Scene) -> None:
    status = static.status()
    assert status["state"] == "running"
    assert status["address"] == f"{static.node.node_id}@{static.listen}"
    assert [outlet["outlet_id"] for outlet in status["outlets"]] == ["A1"]
    assert status["outlets"][0]["relay"] == "open"


def test_a_plugin_started_at_run_time_takes_its_options_as_parameters(loaded: Scene) -> None:
    status = loaded.status()
    assert (status["state"], status["listen"]) == ("running", loaded.listen)
    with HandCable(loaded, loaded.node) as cable:
        assert cable.offer().node_id == loaded.node.node_id


def test_a_plugin_stopped_twice_with_a_start_in_between_leaves_no_process_and_no_port(dynamic: Scene) -> None:
    for _ in range(2):
        dynamic.load_plugin()
        dynamic.wait_running()
        pid, guard_pid = dynamic.plugin_pid(), dynamic.guard_pid()
        dynamic.unload_plugin()
        wait_until("the plugin has ended", partial(is_gone, pid), 10)
        wait_until("the guard has ended", partial(is_gone, guard_pid), 10)
        host, port = dynamic.listen.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
        assert not dynamic.is_loaded()


def test_stopping_a_plugin_that_is_not_loaded_is_refused(dynamic: Scene) -> None:
    with pytest.raises(StopError, match="Could not find"):
        dynamic.unload_plugin()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("max_power_w = 1400", "max_power_w = 0"), r"outlet\.0\.max_power_w: .*greater than or equal to 1"),
        (("max_power_w = 1400", "max_watts = 1400"), r"max_watts: unknown key; allowed here: .*max_power_w"),
        (("[tariff]", "[tariff"), "not valid TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_reason_and_the_node_goes_on(
    dynamic: Scene, change: tuple[str, str], reason: str
) -> None:
    right = dynamic.config.read_text(encoding="utf-8")
    dynamic.config.write_text(right.replace(*change), encoding="utf-8")
    try:
        with pytest.raises(StopError, match=reason) as caught:
            dynamic.load_plugin()
    finally:
        dynamic.config.write_text(right, encoding="utf-8")
    assert str(dynamic.config) in caught.value.message
    assert "\n" not in caught.value.message
    assert dynamic.node.rpc.getinfo()["id"] == dynamic.node.node_id
    assert not dynamic.is_loaded()


def test_a_missing_configuration_is_refused_with_its_reason(dynamic: Scene, tmp_path: Path) -> None:
    right, dynamic.config = dynamic.config, tmp_path / "nowhere.toml"
    try:
        with pytest.raises(StopError, match=r"nowhere\.toml: no such file"):
            dynamic.load_plugin()
    finally:
        dynamic.config = right
    assert not dynamic.is_loaded()


def test_a_taken_port_is_refused_with_its_reason_and_the_node_goes_on(dynamic: Scene) -> None:
    host, port = dynamic.listen.split(":")
    with socket.create_server((host, int(port))):
        with pytest.raises(StopError, match=rf"cannot listen on {dynamic.listen}: Address already in use"):
            dynamic.load_plugin()
        assert not dynamic.is_loaded()
    assert dynamic.node.rpc.getinfo()["id"] == dynamic.node.node_id


def test_a_wrong_listen_address_is_refused_with_its_reason(dynamic: Scene) -> None:
    right, dynamic.listen = dynamic.listen, "example.com:9750"
    try:
        with pytest.raises(StopError, match=r"wattline-listen: "):
            dynamic.load_plugin()
    finally:
        dynamic.listen = right
    assert not dynamic.is_loaded()


def test_a_wrong_configuration_in_the_node_s_own_disables_the_plugin_and_not_the_node(
    module_network: RegtestNetwork,
) -> None:
    with Scene(module_network, Trade(max_power_w=0), name="wrong") as scene:
        node = scene.start_node()
        line = node.wait_for_log("wattline: .*max_power_w", timeout_s=10)
        assert str(scene.config) in line
        wait_until("the plugin is given up", lambda: not scene.is_loaded() or None, 10)
        assert node.rpc.getinfo()["id"] == node.node_id
        with pytest.raises(RpcError, match="Unknown command"):
            scene.status()


@pytest.mark.parametrize("method", METHODS)
def test_the_help_of_every_method_reads_well(static: Scene, method: str) -> None:
    (entry,) = static.node.rpc.help(method)["help"]
    usage, _, description = entry["command"].partition("\n")
    assert usage.strip() == f"{method} {METHODS[method]}".strip()
    words = description.split()
    assert len(words) > 5
    assert words[0][0].isupper()
    assert words[-1].endswith((".", ")"))
    assert not {"self", "None", "shop", "Json", "kwargs", "_whole"} & set(words)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("wattline-sessions", {"session_id": UNKNOWN_SESSION}, "session_id: no session of that id"),
        ("wattline-sessions", {"session_id": "toast"}, "session_id: "),
        ("wattline-sessions", {"limit": 0}, "limit: must be a whole number from 1 to 10000, not 0"),
        ("wattline-sessions", {"limit": "many"}, "limit: must be a whole number from 1 to 10000, not 'many'"),
        ("wattline-tariff", {"energy_msat_per_kwh": -1}, "energy_msat_per_kwh: must be a whole number from 0"),
        ("wattline-tariff", {"session_fee_msat": 1.5}, "session_fee_msat: must be a whole number from 0"),
        ("wattline-stop", {"session_id": UNKNOWN_SESSION}, "session_id: no live session of that id"),
        ("wattline-stop", {}, "session_id"),
        ("wattline-stop", {"session": UNKNOWN_SESSION}, "session_id"),
        ("wattline-status", {"verbose": True}, "verbose"),
        ("wattline-status", [1], "too many positional arguments"),
        ("wattline-report", {"start_time": 10, "end_time": 5}, "end_time: must not be before start_time (10)"),
    ],
)
def test_a_wrong_parameter_is_named_and_changes_nothing(
    static: Scene, method: str, parameters: Any, message: str
) -> None:
    before = static.status()["tariff"]
    assert message in refusal(static, method, parameters)
    assert static.status()["tariff"] == before


def test_a_price_is_read_and_set(static: Scene) -> None:
    before = dict(static.node.rpc.call("wattline-tariff"))
    changed = dict(static.node.rpc.call("wattline-tariff", {"energy_msat_per_kwh": "250000"}))
    assert changed["energy_msat_per_kwh"] == 250_000
    assert changed["tariff_id"] != before["tariff_id"]
    assert dict(static.node.rpc.call("wattline-tariff", [before["energy_msat_per_kwh"]])) == before


def test_two_sockets_on_one_machine_do_not_disturb_each_other(static: Scene, loaded: Scene) -> None:
    with HandCable(static, loaded.node) as one, HandCable(loaded, static.node) as other:
        one.open()
        other.open()
        guard_pid, plugin_pid = static.guard_pid(), loaded.plugin_pid()
        os.kill(loaded.guard_pid(), signal.SIGKILL)
        os.kill(plugin_pid, signal.SIGKILL)
        wait_until("the other one is dead", lambda: not loaded.is_loaded(), 20)
        assert static.guard_pid() == guard_pid
        assert static.status()["outlets"][0]["waiting_sessions"] == [one.session_id]
        loaded.load_plugin()
        loaded.wait_running()
        other.reconnect()
        assert loaded.status()["outlets"][0]["waiting_sessions"] == [other.session_id]
        assert [s["session_id"] for s in static.sessions()] == [one.session_id]
        assert other.session_id in [s["session_id"] for s in loaded.sessions()]
        one.close()
        assert one.receipt().stop_reason == "cable_closed"
        other.close()
        assert other.receipt().stop_reason == "cable_closed"
