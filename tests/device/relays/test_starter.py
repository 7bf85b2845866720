"""When the guard starts the plugin again, and how it asks for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from wattline.device.controller.plugin_starter import PluginStarter, is_running, process_start_time, run_revival
from wattline.device.controller.revival import revive
from wattline.device.controller.settings import LightningdSettings

PLUGIN = "/usr/bin/env"


def settings(**changes: Any) -> LightningdSettings:
    values = {"pid": 99, "start_time": 1, "rpc_path": "/nowhere/lightning-rpc", "plugin": PLUGIN}
    values |= {"restart_delays_s": [1.0, 5.0], "settled_s": 60.0}
    return LightningdSettings.model_validate(values | changes)


class Bench:
    """Time, and runs that end when the test says so."""

    def __init__(self, **changes: Any) -> None:
        self.ms = 0
        self.status: int | None = 0
        self.started_at_ms: list[int] = []
        self.starter = PluginStarter(settings(**changes), lambda: self.ms, self.run)

    def run(self, _: LightningdSettings) -> Bench:
        self.started_at_ms.append(self.ms)
        return self

    def poll(self) -> int | None:
        return self.status

    def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.ms += 100
            self.starter.tick()


def test_a_client_that_vanishes_is_started_again_after_a_moment() -> None:
    bench = Bench()
    bench.starter.client_came()
    bench.pass_s(5)
    bench.starter.client_vanished()
    bench.pass_s(0.9)
    assert bench.started_at_ms == []
    bench.pass_s(0.1)
    assert bench.started_at_ms == [6000]


def test_it_is_tried_a_few_times_and_no_more() -> None:
    bench = Bench()
    bench.starter.client_vanished()
    bench.pass_s(1000)
    assert len(bench.started_at_ms) == 2
    assert bench.started_at_ms[1] - bench.started_at_ms[0] >= 5000


def test_a_client_that_comes_back_is_not_started() -> None:
    bench = Bench()
    bench.starter.client_vanished()
    bench.pass_s(0.5)
    bench.starter.client_came()
    bench.pass_s(100)
    assert bench.started_at_ms == []


def test_no_second_start_while_the_first_is_under_way() -> None:
    bench = Bench()
    bench.status = None
    bench.starter.client_vanished()
    bench.pass_s(100)
    assert len(bench.started_at_ms) == 1
    bench.status = 0
    bench.pass_s(6)
    assert len(bench.started_at_ms) == 2


def test_a_client_that_dies_over_and_over_is_given_up() -> None:
    bench = Bench()
    for _ in range(10):
        bench.starter.client_came()
        bench.pass_s(3)
        bench.starter.client_vanished()
        bench.pass_s(20)
    assert len(bench.started_at_ms) == 2


def test_a_client_that_lived_for_long_makes_the_tries_begin_anew() -> None:
    bench = Bench()
    for _ in range(4):
        bench.starter.client_came()
        bench.pass_s(61)
        bench.starter.client_vanished()
        bench.pass_s(1.5)
    assert len(bench.started_at_ms) == 4


def test_when_told_not_to_it_starts_nothing() -> None:
    bench = Bench(restart=False)
    bench.starter.client_vanished()
    bench.pass_s(100)
    assert bench.started_at_ms == []


class FakeRpc:
    def __init__(self, running: list[str]) -> None:
        self.running = running
        self.calls: list[dict[str, Any]] = []

    def call(self, method: str, payload: dict[str, Any], /) -> dict[str, Any]:
        assert method == "plugin"
        self.calls.append(payload)
        return {"command": payload["subcommand"], "plugins": [{"name": name} for name in self.running]}


def test_the_plugin_is_started_with_its_options_as_parameters() -> None:
    rpc = FakeRpc(["/usr/libexec/pay"])
    assert revive(rpc, PLUGIN, {"wattline-config": "x.toml"}).endswith("was started")
    assert rpc.calls[1] == {"subcommand": "start", "plugin": PLUGIN, "wattline-config": "x.toml"}


def test_a_plugin_that_runs_is_not_started_whatever_its_path_looks_like(tmp_path: Path) -> None:
    link = tmp_path / "plugin"
    link.symlink_to(PLUGIN)
    rpc = FakeRpc([str(Path(PLUGIN).resolve())])
    assert revive(rpc, str(link), {}).endswith("runs already")
    assert [call["subcommand"] for call in rpc.calls] == ["list"]


def test_lightningd_is_really_asked(tmp_path: Path) -> None:
    path = tmp_path / "lightning-rpc"
    asked: list[dict[str, Any]] = []

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            client, _ = listener.accept()
            with client:
                request = json.loads(client.recv(65_536))
                asked.append(request["params"])
                answer = {"jsonrpc": "2.0", "id": request["id"], "result": {"plugins": []}}
                client.sendall(json.dumps(answer).encode() + b"\n\n")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        running = run_revival(settings(rpc_path=str(path), options={"wattline-config": "a=b"}))
        assert isinstance(running, subprocess.Popen)
        assert running.wait(20) == 0
        thread.join()
    assert asked == [
        {"subcommand": "list"},
        {"subcommand": "start", "plugin": PLUGIN, "wattline-config": "a=b"},
    ]


def test_a_node_that_does_not_answer_is_a_failed_try(tmp_path: Path) -> None:
    running = run_revival(settings(rpc_path=str(tmp_path / "none")))
    assert isinstance(running, subprocess.Popen)
    assert running.wait(20) == 1


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    started = process_start_time(os.getpid())
    assert started is not None
    assert is_running(os.getpid(), started)
    assert not is_running(os.getpid(), started + 1)


def test_a_process_that_has_ended_does_not_run_even_before_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_start_time(child.pid)
    assert started is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(child.pid, started)
    child.communicate()
    assert process_start_time(child.pid) is None


@pytest.mark.parametrize("changes", [{"pid": 1}, {"rpc_path": ""}, {"plugin": ""}, {"restart_delays_s": [-1.0]}])
def test_impossible_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        settings(**changes)
