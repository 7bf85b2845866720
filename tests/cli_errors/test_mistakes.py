"""Whatever a person does wrong is answered by one line that names it, and by the right exit status."""

from __future__ import annotations

import re

import pytest

from tests.cli.command import run
from tests.cli_errors import hardware, machine, trade
from tests.cli_errors.mistake import Desk, Mistake
from tests.cli_errors.ways import WAYS
from wattline.cli.main import BAD_USAGE, FAILED

MISTAKES = (
    *hardware.CONFIGURATION,
    *hardware.CHIPS,
    *trade.NODES,
    *trade.SOCKETS,
    *machine.DISKS,
    *machine.PLUGINS,
    *trade.CHANNELS,
    *machine.TERMINALS,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_is_answered_by_one_clear_line(
    desk: Desk, mistake: Mistake, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = WAYS[mistake.way](desk, mistake.make(desk), capsys)
    said = "\n".join(answer.lines)
    assert answer.status == mistake.status, said
    assert "Traceback" not in said
    if not mistake.names:
        assert said == ""
        return
    told = [line for line in answer.lines if " INFO " not in line or " INFO warning: " in line]
    naming = [line for line in told if all(name in line for name in mistake.names)]
    assert len(naming) == 1, said
    beside = [line for line in told if line not in naming]
    unasked = [line for line in beside if not any(re.match(pattern, line) for pattern in mistake.beside)]
    assert unasked == [], said


def test_each_mistake_is_listed_once() -> None:
    names = [mistake.name for mistake in MISTAKES]
    assert len(names) == len(set(names))


def test_verbose_shows_where_a_mistake_was_found_wherever_it_stands(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--verbose", "meter", "read"], ["meter", "read", "--verbose"], ["meter", "--verbose", "read"]):
        assert run(*words, "--config", str(desk.folder / "none.toml")) == BAD_USAGE
        error = capsys.readouterr().err
        assert "Traceback" in error
        assert error.splitlines()[-1].startswith("wattline: error: config_missing: ")


def test_a_bug_of_ours_is_called_one_in_one_line(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug\nin two lines")

    desk.monkeypatch.setattr("wattline.cli.meter.meters_in", broken)
    assert run("meter", "read", "--config", "x") == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wattline: error: internal_error: ZeroDivisionError: a bug in two lines (a bug in wattline")


def test_an_outlet_whose_relay_is_nowhere_leaves_no_guard_behind(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_guard(*_: object) -> None:
        raise AssertionError("a guard was started")

    desk.monkeypatch.setattr("wattline.cli.outlet_guard.spawn_guard", no_guard)
    relay = '{ driver = "gpio", chip = "/dev/gpiochip99", line = 1 }'
    assert run("outlet", "test", "--config", desk.socket_toml(relay=relay)) == FAILED
    assert "A1: relay_no_line: /dev/gpiochip99 line 1" in capsys.readouterr().out
