from __future__ import annotations

import io
import logging
from dataclasses import replace

import pytest
from rich.console import Console

from wattline.cable.closing import Summary, percentile
from wattline.cable.policy.rhythm import Hold
from wattline.cli.cable_view import LiveView, LogView, Snapshot, ending, picture
from wattline.core.text import sat

SNAPSHOT = Snapshot(
    socket="a-socket-with-a-rather-long-name.example.org:9750",
    session_id="01J9Z6X8Y2Q4R6T8W0A2C4E6G8",
    outlet_id="A1",
    price_msat_per_kwh=300_000,
    state="delivering",
    relay_closed=True,
    connected=True,
    seconds=123.4,
    power_mw=1_300_123,
    voltage_mv=48_012,
    current_ma=27_080,
    energy_uwh_cable=44_500_000,
    energy_uwh_socket=44_600_000,
    socket_power_mw=1_301_000,
    credited_msat=14_000,
    charged_msat=13_380,
    balance_msat=620,
    paid_msat=14_000,
    in_flight_msat=55,
    in_flight=1,
    in_doubt=1,
    payments=250,
    failed_payments=2,
    latency_ms=81,
    fees_msat=12,
    prepaid_msat=675,
    max_prepaid_msat=5_000,
    session_sent_msat=14_067,
    max_session_msat=1_000_000,
    day_sent_msat=614_067,
    max_day_msat=10_000_000,
    hold=Hold.ENOUGH,
    stop_reason="",
)


def drawn(view: LiveView) -> list[str]:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=False)
    console.print(view._whole())
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue().rstrip("\n").split("\n")


def test_the_picture_fits_into_80_by_24() -> None:
    view = LiveView(Console(file=io.StringIO()))
    view.draw(SNAPSHOT)
    for number in range(20):
        view.event(f"event {number} " + "x" * 100)
    lines = drawn(view)
    assert len(lines) <= 23
    assert max(len(line) for line in lines) <= 80


@pytest.mark.parametrize(("columns", "rows"), [(40, 10), (79, 24), (80, 23), (20, 4), (1, 1)])
def test_on_a_small_terminal_what_matters_most_fits(columns: int, rows: int) -> None:
    output = io.StringIO()
    console = Console(file=output, width=columns, height=rows, force_terminal=False)
    view = LiveView(console)
    view.draw(SNAPSHOT)
    for number in range(20):
        view.event(f"event {number} " + "x" * 100)
    console.print(view._whole())
    lines = output.getvalue().rstrip("\n").split("\n")
    assert max(len(line) for line in lines) <= columns
    # Below that the live display itself cuts off.
    assert len(lines) <= max(6, rows - 1)
    if columns >= 40:
        assert lines[0] == "delivering, relay closed"
        assert lines[1] == "1300.1 W  44.500 Wh"


def test_payments_are_shown_as_they_arrive_and_push_no_event_out() -> None:
    view = LiveView(Console(file=io.StringIO()))
    view.event("warning: look at this")
    view.draw(replace(SNAPSHOT, payments=0, paid_msat=0))
    view.draw(replace(SNAPSHOT, payments=1, paid_msat=55))
    view.draw(replace(SNAPSHOT, payments=1, paid_msat=55))
    view.draw(replace(SNAPSHOT, payments=3, paid_msat=1_155))
    assert [line[9:] for line in drawn(view)[16:]] == [
        "warning: look at this",
        "payment 1: 0.055 sat arrived",
        "payments up to 3: 1.100 sat arrived",
    ]
    for number in range(4, 24):
        view.draw(replace(SNAPSHOT, payments=number, paid_msat=1_100 * number))
    view.event("socket: paused")
    lines = drawn(view)
    assert len(lines) == 16 + 6
    assert lines[16].endswith("warning: look at this")
    assert lines[17].endswith("payment 20: 1.100 sat arrived")
    assert lines[-1].endswith("socket: paused")


def test_the_picture_shows_both_meters_the_relay_and_the_caps() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(picture(SNAPSHOT))
    output = console.file
    assert isinstance(output, io.StringIO)
    text = output.getvalue()
    for words in (
        "1300.1 W",
        "1301.0 W",
        "44.500 Wh",
        "44.600 Wh",
        "closed",
        "0.620 sat",
        "81 ms",
        "1 in doubt",
        "5.000 sat",
    ):
        assert words in text
    console = Console(file=io.StringIO(), width=80)
    console.print(picture(replace(SNAPSHOT, connected=False, relay_closed=False)))
    output = console.file
    assert isinstance(output, io.StringIO)
    assert "connection cut" in output.getvalue()


def test_without_a_terminal_the_state_is_a_log_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    view = LogView(lambda: now)
    with caplog.at_level(logging.INFO, "wattline.cable"):
        for now in (0.0, 1.0, 4.9, 5.1):  # noqa: B007 - read by the view's clock
            view.log(SNAPSHOT)
        view.event("session opened")
    assert len(caplog.messages) == 3
    assert "delivering" in caplog.messages[0]
    assert caplog.messages[-1] == "session opened"


def test_amounts_are_exact_to_the_msat() -> None:
    assert sat(1_234_567) == "1 234.567 sat"
    assert sat(-5) == "-0.005 sat"
    assert sat(0) == "0.000 sat"


def test_the_ending_names_what_is_not_true() -> None:
    text = ending(Summary("done", "the time is up", session_id="S", objections=("the receipt credits too little",)))
    assert "not true: the receipt credits too little" in text


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 50) is None
    assert percentile([5], 99) == 5
    assert percentile(list(range(1, 101)), 50) == 50
    assert percentile(list(range(1, 101)), 99) == 99


def test_what_was_delivered_and_not_paid_is_no_negative_part_of_a_cap() -> None:
    console = Console(width=80, height=24, file=io.StringIO())
    console.print(picture(replace(SNAPSHOT, prepaid_msat=-3_000_000)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "nothing: 3 000.000 sat delivered and not paid yet" in shown
    assert "-3" not in shown


@pytest.mark.parametrize("hold", Hold)
def test_whatever_holds_is_shown_in_words(hold: Hold) -> None:
    console = Console(width=80, height=24, file=io.StringIO())
    console.print(picture(replace(SNAPSHOT, hold=hold, stop_reason="")))
