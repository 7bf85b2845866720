from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from wattline.cli.chart import Chart, Point, drawn
from wattline.regtest.books import Books, Side
from wattline.regtest.demo import told
from wattline.regtest.toast import Toast

TOAST = [Point(0.0, 0, 0), Point(1.0, 1_365_000, 700), *(Point(s / 5, 1_300_000, 350) for s in range(10, 150))]
TOAST += [Point(30.0, 0, 0), Point(31.0, 0, 0)]


def shown(
    course: list[Point],
    columns: int = 80,
    rows: int = 24,
    encoding: str = "utf-8",
    terminal: bool = False,
    plain: bool = False,
) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=file, width=columns, height=rows, force_terminal=terminal, no_color=plain).print(Chart(course), end="")
    file.flush()
    return raw.getvalue().decode(encoding)


def test_it_shows_power_and_balance_with_their_bounds_over_the_seconds() -> None:
    power, power_low, balance, balance_low, time = shown(TOAST).splitlines()
    assert power.startswith("  power     1365.0 W ┤")
    assert power_low.split("┤")[0].strip() == "0.0 W"
    assert balance.startswith("  balance  0.700 sat ┤")
    assert balance_low.split("┤")[0].strip() == "0.000 sat"
    assert time.split() == ["0", "s", "31", "s"]
    assert {len(line) for line in (power, balance, time)} == {80}
    # A full column of power for 29 of 31 seconds, half a column of balance.
    assert power_low.count("█") == pytest.approx(58 * 29 / 31, abs=2)
    assert balance_low.count("█") == pytest.approx(58 * 29 / 31, abs=2)
    assert power.count("▇") + power.count("█") == pytest.approx(58 * 29 / 31, abs=2)
    assert balance.count("█") <= 2
    assert power.endswith("  ")


@pytest.mark.parametrize(("columns", "rows", "lines"), [(80, 24, 5), (130, 36, 9), (40, 10, 5), (34, 24, 5)])
def test_it_fits_the_terminal(columns: int, rows: int, lines: int) -> None:
    drawing = shown(TOAST, columns, rows).splitlines()
    assert len(drawing) == lines
    assert max(map(len, drawing)) <= columns


@pytest.mark.parametrize("columns", [1, 20, 33])
def test_where_there_is_no_room_it_stays_away(columns: int) -> None:
    assert shown(TOAST, columns) == ""


@pytest.mark.parametrize("course", [[], TOAST[:1], [Point(2.0, 5, 5), Point(2.0, 7, 7)]])
def test_without_two_moments_it_stays_away(course: list[Point]) -> None:
    assert shown(course) == ""


def test_two_moments_are_enough() -> None:
    lines = shown([Point(0.0, 20_000, 0), Point(2.0, 20_000, 100)]).splitlines()
    assert lines[0].count("█") == 58
    assert lines[4].split() == ["0", "s", "2", "s"]


def test_where_the_terminal_knows_ascii_only_it_is_drawn_in_that() -> None:
    drawing = shown(TOAST, encoding="ascii")
    assert drawing.isascii()
    assert "#####" in drawing


def test_colours_are_for_terminals_that_have_them() -> None:
    assert "\x1b" not in shown(TOAST)
    coloured = shown(TOAST, terminal=True)
    assert "\x1b[33m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == shown(TOAST)
    assert "\x1b[33m" not in shown(TOAST, terminal=True, plain=True)


def test_what_flows_back_is_drawn_from_the_lowest() -> None:
    lines = shown([Point(0.0, -50_000, -10), Point(1.0, 50_000, 10), Point(2.0, 0, 0)]).splitlines()
    assert lines[1].split("┤")[0].strip() == "-50.0 W"
    assert lines[1].split("┤")[1][:10].strip() == ""


def test_a_column_is_as_high_as_its_value() -> None:
    assert drawn([0, 1, 2, 3, 4], 0, 4, 2, " .:") == ["   .:", " .:::"]


def test_the_demos_words_and_its_chart_fit_into_80_by_24() -> None:
    side = Side(sent_by_node=1, sent_by_ledger=1, received_by_node=1, received_by_ledger=None)
    result = Toast(
        node="practice",
        method="keysend",
        meter="ina228",
        supply_v=48,
        seconds=3600.0,
        energy_uwh_socket=1_300_123_456,
        energy_uwh_cable=1_298_123_456,
        energy_uwh_world=1_300_000_000,
        price_msat_per_kwh=1_000_000_000,
        charged_msat=1_300_123_456,
        credited_msat=1_300_123_999,
        refunded_msat=543,
        balance_msat=0,
        fees_msat=0,
        payments=12_345,
        payment_ms_p50=1234,
        payment_ms_p99=12_345,
        max_unpaid_msat=0,
        max_prepaid_msat=5_000,
        relay_closed=12,
        relay_opened=12,
        relay_final="open",
        stop_reason="operator",
        session_id="01J9Z6X8Y2Q4R6T8W0A2C4E6G8",
        books_agree=True,
        books=Books(side, side),
        course=tuple(TOAST),
    )
    file = io.StringIO()
    console = Console(file=file, width=80, height=24)
    console.print(told(result, "×"))
    console.print(Chart(result.course), end="")
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    # The prompt comes below.
    assert len(lines) <= 23
