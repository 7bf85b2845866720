"""``wattline meter`` over simulated meters."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.cli.command import run
from wattline.cli.meter import Look, table
from wattline.device.i2c.linux import open_bus
from wattline.device.meters.reading import MeterError, Reading
from wattline.device.simulator.control import SimulatedWorld
from wattline.device.simulator.world import MeterFault

SPEC = "sim:toaster@24"


@pytest.fixture
def world() -> Iterator[SimulatedWorld]:
    with SimulatedWorld.connect(SPEC) as world:
        yield world


@pytest.fixture
def cable_toml(tmp_path: Path) -> Path:
    path = tmp_path / "cable.toml"
    assert run("init", "cable", "--output", str(path)) == 0
    path.write_text(path.read_text().replace('"sim:toaster"', f'"{SPEC}"'))
    return path


def test_every_meter_of_a_socket_is_read(socket_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("meter", "read", "--config", str(socket_toml)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "A1: 24.000 V, 0.000 A, 0.0 W, 0.000 Wh",
        "A2: 24.000 V, 0.000 A, 0.0 W, 0.000 Wh",
    ]


def test_one_outlet_is_read_as_one_json_object(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    bus = open_bus(SPEC)
    bus.write_byte(0x20, 0xFD)
    assert run("meter", "read", "--config", str(socket_toml), "--outlet", "A2", "--json") == 0
    (meter,) = json.loads(capsys.readouterr().out)["meters"]
    assert (meter["name"], meter["driver"]) == ("A2", "ina226")
    assert 300_000 < meter["power_mw"] < 350_000
    assert set(meter) == {"name", "driver", "energy_uwh", "power_mw", "voltage_mv", "current_ma", "at_ms"}
    bus.close()


def test_the_meter_of_a_cable_is_read(cable_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("meter", "read", "--config", str(cable_toml)) == 0
    assert capsys.readouterr().out == "cable: 0.000 V, 0.000 A, 0.0 W, 0.000 Wh\n"


def test_a_meter_that_cannot_be_trusted_is_status_1_and_the_others_are_read(
    socket_toml: Path, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.break_meter(0x40, MeterFault.WRONG_IDENTITY)
    assert run("meter", "read", "--config", str(socket_toml), "--json") == 1
    broken, whole = json.loads(capsys.readouterr().out)["meters"]
    assert broken["code"] == "meter_wrong_chip"
    assert "power_mw" not in broken
    assert whole["voltage_mv"] == 24_000


def test_an_outlet_that_there_is_not_is_named_with_those_that_there_are(
    socket_toml: Path, cable_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("meter", "read", "--config", str(socket_toml), "--outlet", "B") == 2
    assert "no outlet 'B'; there are A1, A2" in capsys.readouterr().err
    assert run("meter", "read", "--config", str(cable_toml), "--outlet", "A1") == 2
    assert "leave out --outlet" in capsys.readouterr().err


def test_a_mistake_in_either_file_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.toml"
    for text, named in (("", "outlet"), ("[meter]\n", "limits"), ("[[outlet]]\n", "outlet_id")):
        path.write_text(text)
        assert run("meter", "watch", "--config", str(path)) == 2
        assert named in capsys.readouterr().err


def test_watching_gives_a_line_per_interval_and_ends_in_time(
    socket_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--interval", "0.3", "--for", "1", "--json")
    assert run("meter", "watch", "--config", str(socket_toml), *words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 3 <= len(lines) <= 5
    assert [meter["name"] for meter in lines[-1]["meters"]] == ["A1", "A2"]
    times = [line["meters"][0]["at_ms"] for line in lines]
    assert times == sorted(set(times))


def test_watching_rarely_still_reads_often_enough(socket_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--outlet", "A2", "--interval", "1.4", "--for", "2.9")
    assert run("meter", "watch", "--config", str(socket_toml), *words) == 0
    assert "not read for" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_sigterm_and_a_closed_terminal_end_watching_well(socket_toml: Path, number: signal.Signals) -> None:
    command = [str(Path(sys.executable).parent / "wattline"), "meter", "watch", "--config", str(socket_toml)]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    assert watching.stdout.readline().startswith("A1: 24.000 V")
    os.kill(watching.pid, number)
    _, errors = watching.communicate(timeout=20)
    assert (watching.returncode, errors) == (0, "")


def shown_by_a_terminal(rows: int, columns: int, *words: str) -> str:
    """All that the command writes to a terminal of this size."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [str(Path(sys.executable).parent / "wattline"), "meter", "watch", *words]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # how Linux tells that nobody is on the other side any more
    finally:
        os.close(ours)
    assert process.wait(20) == 0
    return shown.decode()


@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (4, 100)], ids=["narrow", "low"])
def test_a_terminal_that_is_too_small_for_the_table_shows_lines(socket_toml: Path, rows: int, columns: int) -> None:
    shown = shown_by_a_terminal(rows, columns, "--config", str(socket_toml), "--interval", "0.3", "--for", "2")
    lines = [line for line in shown.splitlines() if line.startswith("A")]
    assert lines[:2] == ["A1: 24.000 V, 0.000 A, 0.0 W, 0.000 Wh", "A2: 24.000 V, 0.000 A, 0.0 W, 0.000 Wh"]
    assert 4 <= len(lines) <= 16, "two for each 0.3 s"
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert "voltage" not in shown


def test_a_terminal_with_room_shows_the_table(socket_toml: Path) -> None:
    shown = shown_by_a_terminal(24, 80, "--config", str(socket_toml), "--for", "0.5")
    assert "voltage" in shown
    assert "A1: 24.000 V" not in shown


def test_the_table_has_a_row_for_each_meter_and_the_error_in_words() -> None:
    looks = [
        Look("A1", "ina228", Reading(1_500_000, -12_345, 24_000, -514, 1)),
        Look("A2", "ina226", MeterError("meter_frozen", "no conversion for 99 ms")),
    ]
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(table(looks))
    text = console.export_text()
    for piece in ("A1", "ina228", "24.000 V", "-0.514 A", "-12.3 W", "1.500 Wh", "meter_frozen", "no conversion for"):
        assert piece in text


def test_every_meter_that_fails_is_explained_below_the_table() -> None:
    looks = [
        Look("A1", "ina228", MeterError("meter_bus_error", "0x40 does not answer")),
        Look("B2", "ina226", MeterError("meter_wrong_chip", "0x48 is another chip")),
    ]
    assert table(looks).caption == "0x40 does not answer\n0x48 is another chip"
    assert table([Look("A1", "ina228", Reading(1, 2, 3, 4, 5))]).caption is None
