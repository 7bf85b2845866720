"""The process of a simulated world and its clients."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wattline.device.i2c.bus import BusError
from wattline.device.i2c.linux import check_bus_spec, open_bus
from wattline.device.i2c.simulated import Place
from wattline.device.simulator.control import SimulatedWorld
from wattline.device.simulator.world import MeterFault


def wait_for(what: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.fixture(autouse=True)
def _own_worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTLINE_SIM_DIR", str(tmp_path / ("a-directory-with-a-long-name-" * 4)))
    monkeypatch.setenv("WATTLINE_SIM_IDLE_S", "0.3")


def test_all_openers_of_a_name_share_one_world() -> None:
    one, other = open_bus("sim:toaster/shared"), open_bus("sim:toaster/shared")
    one.write_byte(0x20, 0xFD)
    assert other.read_byte(0x20) == 0xFD
    with SimulatedWorld.connect("sim:toaster/shared") as world:
        assert [world.relay_closed(k) for k in range(4)] == [False, True, False, False]
    one.close()
    other.close()


def test_another_instance_is_another_world() -> None:
    one, other = open_bus("sim:toaster/one"), open_bus("sim:toaster")
    one.write_byte(0x20, 0x00)
    assert other.read_byte(0x20) == 0xFF
    one.close()
    other.close()


def test_many_openers_at_once_start_one_world_only() -> None:
    worlds: list[SimulatedWorld] = []
    threads = [
        threading.Thread(target=lambda: worlds.append(SimulatedWorld.connect("sim:phone/race"))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({world.pid() for world in worlds}) == 1
    assert len(worlds) == 12
    for world in worlds:
        world.close()


def test_a_latch_outlives_whoever_set_it() -> None:
    with SimulatedWorld.connect("sim:toaster/latch") as world:
        bus = open_bus("sim:toaster/latch")
        bus.write_byte(0x20, 0xFE)
        bus.close()
        assert world.relay_closed(0)


def test_a_world_ends_when_nobody_is_left_and_begins_anew_for_the_next() -> None:
    world = SimulatedWorld.connect("sim:toaster/ends")
    pid = world.pid()
    bus = open_bus("sim:toaster/ends")
    bus.write_byte(0x20, 0x00)
    bus.close()
    world.close()
    wait_for(lambda: is_gone(pid))
    place = Place.of("sim:toaster/ends")
    assert [path for path in (place.socket, place.lock, place.log) if path.exists()] == []
    with SimulatedWorld.connect("sim:toaster/ends") as again:
        assert again.pid() != pid
        assert not again.relay_closed(0)


def test_a_world_whose_place_was_removed_ends_at_once_and_does_not_make_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATTLINE_SIM_IDLE_S", "600")
    place = tmp_path / "network" / "worlds"
    place.parent.mkdir()
    world = SimulatedWorld.connect("sim:toaster/removed", place)
    pid = world.pid()
    shutil.rmtree(place.parent)
    world.close()
    wait_for(lambda: is_gone(pid))
    with pytest.raises(BusError) as caught:
        SimulatedWorld.connect("sim:toaster/removed", place)
    assert caught.value.code == "no_bus"
    assert not place.parent.exists()


def test_a_world_that_dies_is_a_bus_error_and_the_next_call_finds_a_new_one() -> None:
    bus = open_bus("sim:toaster/dies")
    with SimulatedWorld.connect("sim:toaster/dies") as world:
        pid = world.pid()
    os.kill(pid, 9)
    wait_for(lambda: is_gone(pid))
    with pytest.raises(BusError, match="sim:toaster/dies") as caught:
        bus.read_byte(0x20)
    assert caught.value.code == "bus_error"
    assert bus.read_byte(0x20) == 0xFF
    bus.close()


def test_the_control_changes_loads_and_breaks_chips() -> None:
    bus = open_bus("sim:toaster/control")
    with SimulatedWorld.connect("sim:toaster/control") as world:
        world.plug(1, "constant-100")
        assert (world.profile(0), world.profile(1)) == ("toaster", "constant-100")
        world.break_meter(world.socket_meter(0), MeterFault.NACK)
        with pytest.raises(BusError) as caught:
            bus.read_word(0x40, 0x3E)
        assert caught.value.code == "no_answer"
        world.mend_meter(world.socket_meter(0))
        assert bus.read_word(0x40, 0x3E) == 0x5449
        with pytest.raises(ValueError, match="unknown load profile"):
            world.plug(0, "kettle")
    bus.close()


def test_energy_flows_in_real_time() -> None:
    bus = open_bus("sim:constant-360/real")
    with SimulatedWorld.connect("sim:constant-360/real") as world:
        bus.write_byte(0x20, 0xFE)
        wait_for(lambda: world.energy_uwh(0) > 30_000)
        bus.write_byte(0x20, 0xFF)
        closed, opened = world.history(0)
        assert (closed.closed, opened.closed) == (True, False)
        # 360 W are 100 uWh per ms; the history has whole ms.
        assert world.energy_uwh(0) == pytest.approx(100 * (opened.at_ms - closed.at_ms), abs=110)
    bus.close()


@pytest.mark.parametrize("spec", ["toaster", "sim:", "sim:kettle", "sim:toaster/", "sim:toaster/a/b", -1, 256])
def test_a_bus_that_cannot_be_is_refused(spec: int | str) -> None:
    with pytest.raises(ValueError, match=r"bus|load profile"):
        check_bus_spec(spec)


def test_a_runtime_directory_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATTLINE_SIM_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "wattline-sim").mkdir(mode=0o755)
    (tmp_path / "wattline-sim").chmod(0o777)
    with pytest.raises(BusError) as caught:
        open_bus("sim:toaster")
    assert caught.value.code == "no_permission"
