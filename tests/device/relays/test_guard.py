"""The guard as a process, over the relays of a simulated world."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wattline.core.unixsocket import connect_unix
from wattline.device.controller.client import GuardClient, guard_for, spawn_guard
from wattline.device.controller.plugin_starter import is_running, process_start_time
from wattline.device.controller.settings import GuardSettings, LightningdSettings
from wattline.device.i2c.linux import open_bus
from wattline.device.relays.relay import RelayError
from wattline.device.simulator.control import SimulatedWorld
from wattline.device.simulator.world import RelayFault, Switching

SPEC = "sim:toaster/guard"
SCHEDULER_MS = 150
"""What a busy machine may take to run a process that is due."""

HOLDER = """
import sys, time
from wattline.device.controller.client import GuardClient
client = GuardClient.connect(sys.argv[1])
while True:
    client.hold("A", 1000)
    print("held", flush=True)
    time.sleep(0.1)
"""


class Socket:
    """A socket with outlets A and B, its guard, and the world that they are in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.world = SimulatedWorld.connect(SPEC)
        self.guards: set[tuple[int, int]] = set()
        self._before = [0, 0, 0, 0]
        self._clients: list[GuardClient] = []

    def settings(self, **changes: Any) -> GuardSettings:
        relays = {
            name: {"driver": "pcf8574", "bus": SPEC, "address": 0x20, "bit": bit} for bit, name in enumerate(("A", "B"))
        }
        values = {
            "socket": str(self.directory / "guard.sock"),
            "log": str(self.directory / "guard.log"),
            # However the tests end, also without their ends.
            "ends_with": {"pid": os.getpid(), "start_time": process_start_time(os.getpid())},
        }
        return GuardSettings.model_validate({**values, "relays": relays, **changes})

    def start(self, **changes: Any) -> GuardClient:
        return self.note(guard_for(self.settings(**changes)))

    def note(self, client: GuardClient) -> GuardClient:
        self._clients.append(client)
        pid = client.state().pid
        self.guards.add((pid, process_start_time(pid) or 0))
        return client

    def guard_runs(self) -> bool:
        return any(is_running(pid, started) for pid, started in self.guards)

    @property
    def log(self) -> str:
        return (self.directory / "guard.log").read_text()

    def history(self, circuit: int) -> list[Switching]:
        """What has happened since ``fresh``."""
        return self.world.history(circuit)[self._before[circuit] :]

    def fresh(self) -> None:
        self._before = [len(self.world.history(circuit)) for circuit in range(4)]

    def hang_up(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()

    def end(self) -> None:
        self.hang_up()
        for circuit in range(2):
            self.world.mend_relay(circuit)
        for pid, started in self.guards:
            if is_running(pid, started):
                os.kill(pid, signal.SIGKILL)
        self.world.close()


@pytest.fixture
def outlets(tmp_path: Path) -> Iterator[Socket]:
    """With a guard of the test's own, which may be killed."""
    made = Socket(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def module_outlets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Socket]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATTLINE_SIM_DIR", str(tmp_path_factory.mktemp("sim")))
        made = Socket(tmp_path_factory.mktemp("guard"))
        made.start()
        made.hang_up()
    yield made
    made.end()


@pytest.fixture
def shared(module_outlets: Socket, wait_for: Callable[..., None]) -> Iterator[Socket]:
    """With a guard that tests have in common, which must outlive them; every relay is open."""
    module_outlets.fresh()
    yield module_outlets
    module_outlets.hang_up()
    wait_for(lambda: not any(module_outlets.world.relay_closed(k) for k in range(2)))


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


@pytest.fixture
def node() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for lightningd: it lives until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def settings_of(node: subprocess.Popen[bytes], rpc: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"pid": node.pid, "start_time": process_start_time(node.pid), "rpc_path": str(rpc)}
    values |= {"plugin": "/usr/bin/env", "restart_delays_s": [0.0, 0.1]}
    return LightningdSettings.model_validate({**values, **changes}).model_dump()


def test_a_guard_opens_every_relay_before_it_answers(outlets: Socket) -> None:
    bus = open_bus(SPEC)
    bus.write_byte(0x20, 0xF0)
    client = outlets.start()
    assert [outlets.world.relay_closed(k) for k in range(4)] == [False, False, True, True]
    state = client.state()
    assert [(r.outlet_id, r.closed, r.confirmed) for r in state.relays] == [("A", False, True), ("B", False, True)]
    bus.close()


def test_a_relay_opens_within_its_lease(shared: Socket, wait_for: Callable[..., None]) -> None:
    client = shared.start()
    asked_ms = now_ms()
    state = client.hold("A", 400)
    assert (state.closed, state.confirmed) == (True, True)
    assert asked_ms <= state.at_ms <= now_ms()
    wait_for(lambda: len(shared.history(0)) == 2)
    closed, opened = shared.history(0)
    assert (closed.closed, opened.closed) == (True, False)
    assert 300 < opened.at_ms - asked_ms <= 400 + SCHEDULER_MS
    assert shared.history(1) == []


def test_renewing_holds_the_relay_without_a_gap(shared: Socket, wait_for: Callable[..., None]) -> None:
    client = shared.start()
    until_ms = now_ms() + 700
    while now_ms() < until_ms:
        client.hold("A", 300)
    wait_for(lambda: not shared.world.relay_closed(0))
    closed, opened = shared.history(0)
    assert opened.at_ms - closed.at_ms > 600


def test_open_opens_at_once(shared: Socket) -> None:
    client = shared.start()
    client.hold("A", 1000)
    client.hold("B", 1000)
    state = client.open("A")
    assert (state.closed, state.confirmed, state.lease_ends_ms) == (False, True, None)
    assert [shared.world.relay_closed(k) for k in range(2)] == [False, True]


def test_when_the_client_is_killed_every_relay_opens_at_once(shared: Socket, wait_for: Callable[..., None]) -> None:
    path = shared.settings().socket
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    killed_ms = now_ms()
    holder.kill()
    holder.communicate()
    wait_for(lambda: not shared.world.relay_closed(0))
    assert shared.history(0)[-1].at_ms - killed_ms < SCHEDULER_MS
    assert shared.guard_runs()


def test_a_new_client_takes_over_from_one_that_is_gone(shared: Socket, wait_for: Callable[..., None]) -> None:
    first = shared.start()
    first.hold("A", 1000)
    first.close()
    wait_for(lambda: not shared.world.relay_closed(0))
    second = shared.start()
    assert len(shared.guards) == 1
    assert second.hold("A", 500).closed


def test_a_killed_guard_leaves_the_latch_and_the_next_one_opens_it(
    outlets: Socket, wait_for: Callable[..., None]
) -> None:
    client = outlets.start()
    client.hold("A", 1000)
    pid = client.state().pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not outlets.guard_runs())
    with pytest.raises(RelayError) as caught:
        client.hold("A", 1000)
    assert caught.value.code == "guard_lost"
    assert outlets.world.relay_closed(0), "an expander latches"
    again = outlets.start()
    assert again.state().pid != pid
    assert not outlets.world.relay_closed(0)


def test_a_second_client_cannot_hold_but_can_look_and_open(shared: Socket) -> None:
    first, second = shared.start(), GuardClient.connect(shared.settings().socket)
    first.hold("A", 1000)
    for call in (lambda: second.hold("B", 1000), second.take, second.bye, shared.start):
        with pytest.raises(RelayError) as caught:
            call()
        assert caught.value.code == "guard_busy"
    assert second.state().held
    assert not second.open("A").closed
    second.close()
    assert first.hold("A", 500).closed


def test_goodbye_opens_everything_and_ends_the_guard(outlets: Socket, wait_for: Callable[..., None]) -> None:
    client = outlets.start()
    client.hold("A", 1000)
    assert client.bye().leaving
    wait_for(lambda: not outlets.guard_runs())
    assert not outlets.world.relay_closed(0)
    assert not Path(outlets.settings().socket).exists()


def test_a_signal_opens_everything_and_ends_the_guard(outlets: Socket, wait_for: Callable[..., None]) -> None:
    client = outlets.start()
    client.hold("A", 1000)
    os.kill(client.state().pid, signal.SIGTERM)
    wait_for(lambda: not outlets.guard_runs())
    assert not outlets.world.relay_closed(0)


def test_a_stuck_relay_is_reported_and_keeps_the_guard_until_it_opens(
    outlets: Socket, wait_for: Callable[..., None]
) -> None:
    client = outlets.start()
    client.hold("A", 1000)
    outlets.world.break_relay(0, RelayFault.STUCK)
    with pytest.raises(RelayError, match="read back closed") as caught:
        client.open("A")
    assert caught.value.code == "relay_stuck"
    relay = client.state().relays[0]
    assert (relay.closed, relay.confirmed) == (True, False)
    assert "read back closed" in relay.fault
    with pytest.raises(RelayError) as caught:
        client.hold("A", 500)
    assert caught.value.code == "relay_stuck"
    client.bye()
    with pytest.raises(RelayError, match="still to be opened: A") as caught:
        client.hold("B", 500)
    assert caught.value.code == "guard_leaving"
    assert outlets.guard_runs()
    outlets.world.mend_relay(0)
    wait_for(lambda: not outlets.guard_runs())
    assert "cannot be opened" in outlets.log


def test_two_guards_with_the_same_task_are_one(outlets: Socket, wait_for: Callable[..., None]) -> None:
    first = outlets.start()
    with pytest.raises(RelayError) as caught:
        spawn_guard(outlets.settings())
    assert caught.value.code == "guard_busy"
    wait_for(lambda: "not needed" in outlets.log)
    assert first.hold("A", 500).closed


def test_a_guard_at_another_socket_is_refused_a_chip_that_is_driven_until_its_guard_has_died(
    outlets: Socket, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    first = outlets.start()
    first.hold("A", 1000)
    away = tmp_path / "away"
    away.mkdir()
    other = {"C": {"driver": "pcf8574", "bus": SPEC, "address": 0x20, "bit": 2}}
    changes = {"socket": str(away / "guard.sock"), "log": str(away / "guard.log"), "relays": other}
    before = len(outlets.history(2))
    with pytest.raises(RelayError, match="pin P2 of the PCF8574 at 0x20") as caught:
        outlets.start(**changes)
    assert caught.value.code == "relay_taken"
    assert f"process {first.state().pid}" in caught.value.message
    assert "the guard is refused" in (away / "guard.log").read_text()
    assert len(outlets.history(2)) == before
    os.kill(first.state().pid, signal.SIGKILL)
    wait_for(lambda: not outlets.guard_runs())
    assert outlets.start(**changes).hold("C", 500).closed


def test_a_plugin_that_dies_before_it_has_held_anything_is_started_again(
    outlets: Socket,
    node: subprocess.Popen[bytes],
    lightningd: FakeLightningd,
    tmp_path: Path,
    wait_for: Callable[..., None],
) -> None:
    outlets.start(lightningd=settings_of(node, tmp_path / "lightning-rpc"), first_client_s=3600.0).close()
    wait_for(lambda: len(lightningd.starts) == 1)


def test_a_guard_with_another_task_waits_for_the_old_one_to_go(outlets: Socket, wait_for: Callable[..., None]) -> None:
    old = outlets.start()
    old.take()
    with pytest.raises(RelayError) as caught:
        outlets.start(first_client_s=5.0)
    assert caught.value.code == "guard_busy"
    found: list[GuardClient] = []
    starting = threading.Thread(target=lambda: found.append(spawn_guard(outlets.settings(first_client_s=5.0))))
    starting.start()
    wait_for(lambda: "waiting for another guard" in outlets.log)
    assert old.hold("A", 1000).closed
    old.bye()
    starting.join()
    new = outlets.note(found[0])
    assert len(outlets.guards) == 2
    assert new.hold("A", 500).closed
    wait_for(lambda: not outlets.world.relay_closed(0))
    # Once by the goodbye, once by the end of the lease.
    assert [s.closed for s in outlets.history(0)] == [True, False, True, False]


GARBAGE = (
    b"\x16\x03\x01\x02\x00\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"[]\n",
    b"7\n",
    b'{"ask": "close"}\n',
    b'{"ask": "hold", "outlet_id": "A"}\n',
    b'{"ask": "hold", "outlet_id": "A", "lease_ms": "1000", "asked_ms": 0}\n',
    b"[" * 4000 + b"\n",
    b"x" * 10_000,
)


def test_garbage_closes_its_connection_and_no_relay(shared: Socket) -> None:
    client = shared.start()
    for garbage in GARBAGE:
        with connect_unix(Path(shared.settings().socket), 10.0) as stranger:
            stranger.sendall(garbage)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while data := stranger.recv(4096):
                    answer += data
        assert answer == b"" or json.loads(answer)["code"] == "bad_request"
    assert shared.history(0) == []
    assert client.hold("A", 500).closed


def test_a_client_that_turns_to_garbage_loses_its_relays(shared: Socket, wait_for: Callable[..., None]) -> None:
    with connect_unix(Path(shared.settings().socket), 10.0) as client:
        hold = {"ask": "hold", "outlet_id": "A", "lease_ms": 1000, "asked_ms": now_ms()}
        client.sendall(json.dumps(hold).encode() + b"\n")
        assert json.loads(client.recv(4096))["relay"]["closed"]
        broken_ms = now_ms()
        client.sendall(b"\xff\n")
        wait_for(lambda: not shared.world.relay_closed(0))
        assert shared.history(0)[-1].at_ms - broken_ms < SCHEDULER_MS


def test_a_lease_of_more_than_a_second_or_of_none_is_refused(shared: Socket) -> None:
    client = shared.start()
    for lease_ms in (1001, 0, -5, 10**9):
        with pytest.raises(RelayError) as caught:
            client.hold("A", lease_ms)
        assert caught.value.code == "lease_too_long"
    assert shared.history(0) == []


def test_an_unknown_outlet_is_refused(shared: Socket) -> None:
    client = shared.start()
    with pytest.raises(RelayError, match="there are A, B") as caught:
        client.hold("C", 500)
    assert caught.value.code == "unknown_outlet"
    with pytest.raises(RelayError, match="there are A, B") as caught:
        client.open("C")
    assert caught.value.code == "unknown_outlet"


def test_the_guard_lets_only_its_user_in_and_has_left_its_parents_session(shared: Socket) -> None:
    pid = shared.start().state().pid
    assert Path(shared.settings().socket).stat().st_mode & 0o777 == 0o600
    assert Path(shared.settings().log).stat().st_mode & 0o777 == 0o600
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)
    targets = [str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in range(3)]
    assert targets == ["/dev/null", shared.settings().log, shared.settings().log]


def test_without_a_guard_a_client_says_so(tmp_path: Path) -> None:
    with pytest.raises(RelayError, match="no guard answers") as caught:
        GuardClient.connect(tmp_path / "guard.sock")
    assert caught.value.code == "guard_lost"


def test_a_guard_that_does_not_answer_is_lost_for_good(tmp_path: Path) -> None:
    path = tmp_path / "guard.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = GuardClient.connect(path, timeout_s=0.05)
        for _ in range(2):
            with pytest.raises(RelayError) as caught:
                client.hold("A", 500)
            assert caught.value.code == "guard_lost"


def test_a_guard_that_cannot_start_says_why(outlets: Socket) -> None:
    settings = outlets.settings(log=str(outlets.directory / "no" / "guard.log"))
    with pytest.raises(RelayError, match="No such file or directory") as caught:
        spawn_guard(settings)
    assert caught.value.code == "guard_start"


def test_two_outlets_on_one_relay_are_refused(outlets: Socket) -> None:
    relay = {"driver": "gpio", "chip": "/dev/gpiochip0", "line": 4}
    with pytest.raises(ValueError, match=r"outlets .* and .* share one relay"):
        outlets.settings(relays={"A": relay, "B": relay | {"active_low": True}})


def test_a_guard_ends_with_lightningd(
    outlets: Socket, node: subprocess.Popen[bytes], tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    client = outlets.start(lightningd=settings_of(node, tmp_path / "rpc"))
    client.hold("A", 1000)
    node.kill()
    wait_for(lambda: not outlets.guard_runs())
    assert not outlets.world.relay_closed(0)
    assert "lightningd is gone" in outlets.log


class FakeLightningd:
    """Its JSON-RPC socket, with a list of running plugins."""

    def __init__(self, path: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                request = json.loads(client.recv(65_536))
                self.asked.append(request["params"])
                answer = {"jsonrpc": "2.0", "id": request["id"], "result": {"plugins": []}}
                client.sendall(json.dumps(answer).encode() + b"\n\n")

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [params for params in self.asked if params["subcommand"] == "start"]

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def lightningd(tmp_path: Path) -> Iterator[FakeLightningd]:
    fake = FakeLightningd(tmp_path / "lightning-rpc")
    yield fake
    fake.close()


def test_a_plugin_that_died_is_started_again_a_few_times(
    outlets: Socket,
    node: subprocess.Popen[bytes],
    lightningd: FakeLightningd,
    tmp_path: Path,
    wait_for: Callable[..., None],
) -> None:
    told = settings_of(node, tmp_path / "lightning-rpc", options={"wattline-config": "socket.toml"})
    client = outlets.start(lightningd=told)
    client.hold("A", 1000)
    client.close()
    wait_for(lambda: "giving up" in outlets.log)
    start = {"subcommand": "start", "plugin": "/usr/bin/env", "wattline-config": "socket.toml"}
    assert lightningd.starts == [start, start]
    assert not outlets.world.relay_closed(0)
    assert outlets.guard_runs()


def test_a_plugin_that_said_goodbye_is_not_started_again(
    outlets: Socket,
    node: subprocess.Popen[bytes],
    lightningd: FakeLightningd,
    tmp_path: Path,
    wait_for: Callable[..., None],
) -> None:
    client = outlets.start(lightningd=settings_of(node, tmp_path / "lightning-rpc"))
    client.hold("A", 1000)
    client.bye()
    wait_for(lambda: not outlets.guard_runs())
    assert lightningd.asked == []


def test_a_plugin_that_never_came_is_started(
    outlets: Socket,
    node: subprocess.Popen[bytes],
    lightningd: FakeLightningd,
    tmp_path: Path,
    wait_for: Callable[..., None],
) -> None:
    told = outlets.settings(lightningd=settings_of(node, tmp_path / "lightning-rpc"), first_client_s=0.1)
    guard = [sys.executable, "-m", "wattline.device.controller.guard", "--config", "-"]
    subprocess.run(guard, input=told.model_dump_json().encode(), check=True)
    wait_for(lambda: len(lightningd.starts) == 1)
    outlets.note(GuardClient.connect(told.socket))


def test_a_plugin_that_came_back_by_itself_is_not_started(
    outlets: Socket,
    node: subprocess.Popen[bytes],
    lightningd: FakeLightningd,
    tmp_path: Path,
    wait_for: Callable[..., None],
) -> None:
    told = settings_of(node, tmp_path / "lightning-rpc", restart_delays_s=[0.8])
    first = outlets.start(lightningd=told)
    first.hold("A", 1000)
    first.close()
    second = outlets.start(lightningd=told)
    until_ms = now_ms() + 1500
    while now_ms() < until_ms:
        second.hold("A", 500)
    assert lightningd.asked == []


def test_a_guard_that_serves_one_process_opens_and_ends_with_it(
    outlets: Socket, node: subprocess.Popen[bytes], wait_for: Callable[..., None]
) -> None:
    served = {"pid": node.pid, "start_time": process_start_time(node.pid)}
    client = outlets.start(ends_with=served)
    holding = threading.Event()

    def hold() -> None:
        with contextlib.suppress(RelayError):
            while not holding.is_set():
                client.hold("A", 1000)

    thread = threading.Thread(target=hold)
    thread.start()
    wait_for(lambda: outlets.world.relay_closed(0))
    node.kill()
    wait_for(lambda: not outlets.guard_runs())
    holding.set()
    thread.join()
    assert not outlets.world.relay_closed(0)


def test_a_guard_with_the_driver_of_another_chip_closes_nothing_and_goes_when_it_is_told(
    outlets: Socket, wait_for: Callable[..., None]
) -> None:
    wrong = {"A": {"driver": "pca9554", "bus": SPEC, "address": 0x20, "bit": 0}}
    client = outlets.start(relays=wrong)
    with pytest.raises(RelayError) as caught:
        client.hold("A", 500)
    assert caught.value.code == "relay_wrong_chip"
    assert all(outlets.world.history(circuit) == [] for circuit in range(4))
    outlets.hang_up()
    # The corrected configuration: the first guard goes, another comes.
    assert outlets.start().hold("A", 500).closed
    assert "not every relay is confirmed open (A: PCA9554 at 0x20" in outlets.log
