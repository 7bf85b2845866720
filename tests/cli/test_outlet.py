"""``wattline outlet test`` over simulated outlets, with a real guard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import run
from wattline.cli.outlet_guard import own_guard
from wattline.core.settings import load_settings
from wattline.device.controller.client import GuardClient, spawn_guard
from wattline.device.controller.plugin_starter import is_running, process_start_time
from wattline.device.controller.settings import GuardSettings, ProcessSettings
from wattline.device.i2c.linux import open_bus
from wattline.device.relays.relay import RelayError
from wattline.device.simulator.control import SimulatedWorld
from wattline.device.simulator.world import MeterFault, RelayFault
from wattline.plugin.settings import OutletSettings, SocketSettings

SPEC = "sim:toaster@24"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedWorld]:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with SimulatedWorld.connect(SPEC) as world:
        yield world


def result(capsys: pytest.CaptureFixture[str], status: int, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run("outlet", "test", "--seconds", "0.6", "--json", *words) == status
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def wait_for(what: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_every_outlet_is_tried_and_all_is_seen(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer = result(capsys, 0, "--config", str(socket_toml))
    assert answer["ok"]
    assert [outlet["outlet_id"] for outlet in answer["outlets"]] == ["A1", "A2"]
    for outlet in answer["outlets"]:
        before, closed, after = outlet["before"], outlet["closed"], outlet["after"]
        assert [look["relay_closed"] for look in (before, closed, after)] == [False, True, False]
        assert [look["power_mw"] > 300_000 for look in (before, closed, after)] == [False, True, False]
        assert closed["energy_uwh"] > before["energy_uwh"]
    for circuit in range(2):
        assert [switching.closed for switching in world.history(circuit)] == [True, False]
        closed_at, opened_at = (switching.at_ms for switching in world.history(circuit))
        assert 500 < opened_at - closed_at < 3000
    assert list((tmp_path / "temporary").glob("wattline-outlet-*")) == []


def test_without_json_it_is_told_in_words(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.plug(0, "constant-0")
    words = ("--config", str(socket_toml), "--outlet", "A1", "--seconds", "0.5")
    assert run("outlet", "test", *words) == 0
    out = capsys.readouterr().out
    assert "A1: closed relay closed" in out
    assert "works" not in out
    assert out.splitlines()[-1].startswith("A1: its relay switched, but no power was seen: plug something in")
    assert world.history(1) == []


def test_a_welded_contact_is_seen_by_the_meter(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    bus = open_bus(SPEC)
    bus.write_byte(0x20, 0xFE)
    world.break_relay(0, RelayFault.WELDED)
    bus.close()
    (outlet,) = result(capsys, 1, "--config", str(socket_toml), "--outlet", "A1")["outlets"]
    assert "W flow through the open relay: most likely active_low = true is wrong" in outlet["problem"]
    assert "POWER IS STILL ON: cut the supply" in outlet["problem"]
    assert world.relay_closed(0)


def test_a_wrong_active_low_is_named_and_the_pin_put_back(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    text = socket_toml.read_text()
    socket_toml.write_text(text.replace("bit = 0 }", "bit = 0, active_low = false }"))
    (outlet,) = result(capsys, 1, "--config", str(socket_toml), "--outlet", "A1")["outlets"]
    assert "active_low = false is wrong. The pin is back as it was found, and no power flows" in outlet["problem"]
    assert [switching.closed for switching in world.history(0)] == [True, False]
    socket_toml.write_text(text)
    assert result(capsys, 0, "--config", str(socket_toml), "--outlet", "A1")["ok"]


def test_another_outlets_bit_is_not_said_to_work(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    socket_toml.write_text(socket_toml.read_text().replace("bit = 0", "bit = 2"))
    assert run("outlet", "test", "--config", str(socket_toml), "--outlet", "A1", "--seconds", "0.5") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "no power was seen" in last
    assert "another outlet's (bit, line or address)" in last
    assert [switching.closed for switching in world.history(2)] == [True, False]


def test_a_driver_for_another_expander_closes_nothing_leaves_no_guard_and_is_named(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = socket_toml.read_text()
    socket_toml.write_text(text.replace("pcf8574", "pca9554"))
    (outlet,) = result(capsys, 1, "--config", str(socket_toml), "--outlet", "A1")["outlets"]
    assert outlet["problem"].startswith("relay_wrong_chip: PCA9554 at 0x20 on bus sim:toaster@24: ")
    assert 'driver = "pcf8574"' in outlet["problem"]
    assert [world.history(circuit) for circuit in range(4)] == [[], [], [], []]
    assert list((tmp_path / "temporary").glob("wattline-outlet-*")) == []
    socket_toml.write_text(text)
    assert result(capsys, 0, "--config", str(socket_toml), "--outlet", "A1")["ok"]


def test_a_guard_that_an_earlier_test_has_left_is_taken_over_from(
    socket_toml: Path,
    world: SimulatedWorld,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("wattline.cli.outlet_guard.END_TIMEOUT_S", 0.3)
    bus = open_bus(SPEC)
    bus.write_byte(0x20, 0xFE)
    world.break_relay(0, RelayFault.STUCK)
    (outlet,) = result(capsys, 1, "--config", str(socket_toml), "--outlet", "A1")["outlets"]
    pid = int(outlet["problem"].partition("Process ")[2].split()[0])
    assert process_start_time(pid) is not None
    monkeypatch.setattr("wattline.cli.outlet_guard.END_TIMEOUT_S", 3.0)
    # Another outlet's test only tells of it.
    assert run("outlet", "test", "--config", str(socket_toml), "--outlet", "A2", "--seconds", "0.5") == 0
    assert f"A1: process {pid}, left by an earlier test, still tries" in capsys.readouterr().out
    assert process_start_time(pid) is not None
    # The mended configuration names the chip that the relay is really on.
    socket_toml.write_text(socket_toml.read_text().replace("0x20, bit = 0", "0x20, bit = 3"))
    assert run("outlet", "test", "--config", str(socket_toml), "--outlet", "A1", "--seconds", "0.5") == 1
    assert "this test takes over from it" in capsys.readouterr().out
    assert process_start_time(pid) is None
    assert list((tmp_path / "temporary").glob("wattline-outlet-*")) == []
    world.mend_relay(0)
    bus.close()


def test_a_relay_that_does_not_close_is_reported(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.break_relay(0, RelayFault.STUCK)
    (outlet,) = result(capsys, 1, "--config", str(socket_toml), "--outlet", "A1")["outlets"]
    assert "put closed, read back open" in outlet["problem"]
    assert world.history(0) == []


def test_a_meter_that_fails_is_reported_and_nothing_is_closed(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.break_meter(0x49, MeterFault.WRONG_IDENTITY)
    answer = result(capsys, 1, "--config", str(socket_toml))
    assert [outlet["ok"] for outlet in answer["outlets"]] == [True, False]
    assert answer["outlets"][1]["problem"].startswith("meter_wrong_chip: ")
    assert world.history(1) == []


def test_a_shunt_the_wrong_way_round_is_reported(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.break_meter(0x40, MeterFault.GAIN, -1.0)
    (outlet,) = result(capsys, 1, "--config", str(socket_toml), "--outlet", "A1")["outlets"]
    assert "wrong way round" in outlet["problem"]
    assert not world.relay_closed(0)


def plugins_guard(directory: Path, *outlets: OutletSettings) -> GuardClient:
    """As the plugin of a node starts it, which keeps its things in ``directory``."""
    directory.mkdir(parents=True)
    relays = {outlet.outlet_id: outlet.relay for outlet in outlets}
    served = ProcessSettings(pid=os.getpid(), start_time=process_start_time(os.getpid()) or 0)
    return spawn_guard(
        GuardSettings(
            socket=str(directory / "guard.sock"), log=str(directory / "guard.log"), relays=relays, ends_with=served
        )
    )


def test_beside_the_plugins_guard_it_refuses_wherever_the_configuration_lies(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (outlet, other) = load_settings(socket_toml, SocketSettings).outlet
    guard = plugins_guard(tmp_path / "lightning" / "bitcoin" / "wattline", outlet)
    copied = tmp_path / "elsewhere.toml"
    # Another pin of the same chip is a write to the same register.
    copied.write_text(socket_toml.read_text().replace("0x20, bit = 0", "0x20, bit = 3"))
    for config in (socket_toml, copied):
        assert run("outlet", "test", "--config", str(config)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("wattline: error: relay_taken: pin P")
        assert f"process {guard.state().pid}" in line
        assert "stop the plugin first" in line
    assert [world.history(circuit) for circuit in range(4)] == [[], [], [], []]
    # The other chip is nobody's.
    assert result(capsys, 0, "--config", str(socket_toml), "--outlet", other.outlet_id)["ok"]
    guard.bye()
    guard.close()
    assert result(capsys, 0, "--config", str(socket_toml), "--outlet", outlet.outlet_id)["ok"]


def test_a_plugin_that_comes_up_between_the_look_and_the_test_keeps_its_relay(
    socket_toml: Path, world: SimulatedWorld, tmp_path: Path
) -> None:
    (outlet, _) = load_settings(socket_toml, SocketSettings).outlet
    guard = plugins_guard(tmp_path / "wattline", outlet)
    guard.hold("A1", 1000)
    with pytest.raises(RelayError) as caught, own_guard(outlet, socket_toml):
        pass
    assert caught.value.code == "relay_taken"
    assert [switching.closed for switching in world.history(0) if switching.closed] == [True]
    guard.bye()
    guard.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_relay_opens_however_the_command_ends(
    socket_toml: Path, world: SimulatedWorld, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "wattline.cli.main", "outlet", "test", "--config", str(socket_toml)]
    command += ["--outlet", "A2", "--seconds", "10"]
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    testing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(lambda: world.relay_closed(1))
    os.kill(testing.pid, number)
    out, errors = testing.communicate(timeout=20)
    wait_for(lambda: not world.relay_closed(1))
    assert [switching.closed for switching in world.history(1)] == [True, False]
    if number is not signal.SIGKILL:
        assert testing.returncode == 1
        assert "interrupted: the relay is open again" in out, errors
        assert "Traceback" not in errors
    for log in (tmp_path / "temporary").glob("*/guard.log"):
        # Killed, the command could not clear away; its guard ends by itself.
        assert number is signal.SIGKILL
        wait_for(lambda: "good night" in log.read_text())  # noqa: B023


def test_a_guard_that_dies_is_followed_by_another_that_opens(socket_toml: Path, world: SimulatedWorld) -> None:
    (outlet, _) = load_settings(socket_toml, SocketSettings).outlet
    with own_guard(outlet, socket_toml) as guard:
        guard.hold("A1", 1000)
        pid = guard.state().pid
        started = process_start_time(pid)
        assert started is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not is_running(pid, started))
        assert world.relay_closed(0), "an expander latches"
    assert not world.relay_closed(0)


def test_a_relay_that_cannot_be_opened_is_said_loudly(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cli.outlet_guard.END_TIMEOUT_S", 0.3)
    bus = open_bus(SPEC)
    bus.write_byte(0x20, 0xFE)
    world.break_relay(0, RelayFault.STUCK)
    # The next outlet is not tried then.
    (outlet,) = result(capsys, 1, "--config", str(socket_toml))["outlets"]
    assert "relay_stuck" in outlet["problem"]
    assert "NOT CONFIRMED OPEN" in outlet["problem"]
    world.mend_relay(0)
    wait_for(lambda: not world.relay_closed(0))
    bus.close()
