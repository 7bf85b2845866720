"""A cable whose wall clock is wrong: nobody is accused, nothing is charged and nothing is forgotten by it."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cable.conftest import Bench
from tests.cable.test_buyer import TERMS, Desk
from tests.cable.test_restored_receipt import receipt as receipt_of
from wattline.cable.policy.events import SocketState
from wattline.cable.policy.reconciliation import Tolerance, lost_s
from wattline.cable.restoring import (
    DOWN_MARGIN_MS,
    RestoredPayments,
    found_over,
    longest_ms,
    objections_of_found,
    saved_evidence,
    unseen_ms,
)
from wattline.cli.cable import _equipment
from wattline.core.clock import DAY_S, Clock, Moment, WallWatch, since_boot_ns, this_boot
from wattline.core.ledger.cable import CableSession
from wattline.core.ledger.ledger import open_ledger
from wattline.core.tariff import Tariff, cost_msat, left_ms
from wattline.device.meters.ina219 import open_ina219
from wattline.device.meters.ina226 import open_ina226
from wattline.device.meters.ina228 import Ina228
from wattline.device.meters.sampling import SampledMeter
from wattline.v1 import charging_pb2 as pb

NOON_S = 1_764_000_000


def set_by(bench: Bench, seconds: int, boot: str = "") -> None:
    """The cable's next process finds its clock set by so much; ``boot``: and the machine was booted anew."""
    boot_id = (lambda: boot) if boot else this_boot
    boot_ns = (lambda: 10**9) if boot else Clock().boot_ns
    bench.wall = WallWatch(Clock(lambda: time.time() + seconds, boot_ns, boot_id))


def saved(bench: Bench) -> CableSession:
    (session,) = bench.ledger.cable_sessions.latest(1)
    return session


@pytest.mark.parametrize("boot", ["", "another"], ids=["in the same boot", "after a new boot"])
@pytest.mark.parametrize("seconds", [-3600, 3600, -NOON_S])
def test_a_cable_that_comes_back_with_its_clock_set_goes_on_with_its_session(
    bench: Bench, seconds: int, boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.session_run.SAVE_MS", 100)
    bench.socket.tariff = Tariff.of(300_000, 3_600_000)
    bench.limits["max_time_price_msat_per_hour"] = 3_600_000
    bench.start()
    bench.until(payments=4)
    bench.crash()
    set_by(bench, seconds, boot)
    bench.start()
    bench.until(payments=len(bench.socket.orders) + 3)
    summary = bench.finish()
    assert summary.stop_reason == "done", summary
    assert bench.socket.resumes == 1
    assert summary.is_good, summary


def test_hours_of_delivery_that_never_were_are_noticed_after_a_restart_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie(statement: pb.Statement) -> None:
        statement.delivered_ms += 3_600_000

    monkeypatch.setattr("wattline.cable.session_run.SAVE_MS", 100)
    bench.start()
    bench.until(payments=4)
    bench.crash()
    set_by(bench, 2 * 3600)
    bench.socket.lie_statement = lie
    summary = bench.run()
    assert summary.stop_reason == "time_mismatch"


def test_a_clock_that_is_set_while_energy_flows_is_told_once_and_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.session_run.SAVE_MS", 100)
    seconds = [0]
    bench.wall = WallWatch(Clock(lambda: time.time() + seconds[0]))
    bench.start()
    bench.until(payments=2)
    seconds[0] = -3600
    bench.until(payments=8)
    summary = bench.finish()
    assert summary.is_good, summary
    (told,) = (line for line in bench.listener.lines if "the clock of this machine" in line)
    # Of whole seconds, each read a moment apart.
    assert re.fullmatch(r"the clock of this machine was set back by 3(599|600|601) s; nothing is measured by it", told)


def test_what_was_paid_before_the_clock_was_set_forward_counts_for_the_day(bench: Bench) -> None:
    """As where there is no clock chip: the day begins in 1970, and NTP comes later."""
    bench.limits.update(max_prepaid_msat=400, max_session_msat=600, max_day_msat=600)
    set_by(bench, -NOON_S)
    bench.start()
    bench.until(payments=2)
    first = bench.finish()
    bench.wish.__init__()  # type: ignore[misc]
    bench.wall = WallWatch(known=saved(bench).saved)
    summary = bench.run()
    assert summary.stop_reason == "budget_spent"
    assert first.paid_msat + summary.paid_msat <= 600


def session(**changes: object) -> CableSession:
    values: dict[str, object] = {
        "token": "00" * 32,
        "address": "127.0.0.1:1",
        "node_id": "02" * 33,
        "outlet_id": "A1",
        "tariff": Tariff.of(300_000),
        "rated_power_mw": 1,
        "created_at": NOON_S,
        "saved_at": NOON_S,
        "saved_boot_id": "one",
        "saved_boot_ms": 50_000,
        "delivered_ms": 9_000,
    }
    return CableSession(**values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "unseen"),
    [
        (Moment(NOON_S - DAY_S, "one", 57_000), 7_000),
        (Moment(NOON_S + DAY_S, "one", 57_000), 7_000),
        (Moment(NOON_S - DAY_S, "two", 5_000), 120_000),
        (Moment(NOON_S - DAY_S, "two", 900_000), 900_000),
        (Moment(NOON_S + DAY_S, "two", 5_000), DAY_S * 1000),
    ],
    ids=["set back", "set forward", "booted, behind", "booted long ago, behind", "booted, a day later"],
)
def test_the_time_that_nobody_saw_is_known_within_a_boot_and_bounded_across_one(now: Moment, unseen: int) -> None:
    assert unseen_ms(session(), now) == unseen + DOWN_MARGIN_MS
    assert longest_ms(session(), now) == 9_000 + unseen + DOWN_MARGIN_MS


@pytest.mark.parametrize(("cable_lost_s", "unheard_s"), [(0, 65), (60, 120), (300, 360), (86_400, 660)])
def test_across_a_boot_as_much_counts_as_that_socket_delivers_to_nobody_within_what_a_cable_believes(
    cable_lost_s: int, unheard_s: int
) -> None:
    behind = Moment(NOON_S - DAY_S, "two", 5_000)
    known = session(cable_lost_s=lost_s(cable_lost_s))
    assert unseen_ms(known, behind) == unheard_s * 1000 + DOWN_MARGIN_MS


def test_a_session_remembers_how_long_its_socket_goes_on_without_it(bench: Bench) -> None:
    bench.socket.cable_lost_s = 86_400
    bench.start()
    bench.until(payments=1)
    bench.finish()
    assert saved(bench).cable_lost_s == lost_s(86_400) == 600


@given(
    delivered_s=st.integers(0, 3600),
    away_s=st.integers(0, 3600),
    set_s=st.sampled_from([0, -1, -3600, 3600, -NOON_S, 400 * DAY_S]),
    boots=st.booleans(),
)
def test_a_socket_whose_session_is_found_over_is_not_held_against_a_clock(
    delivered_s: int, away_s: int, set_s: int, boots: bool
) -> None:
    """It has delivered all the time, as long as a socket does without its cable."""
    away_s = min(away_s, 60) if boots else away_s
    known = session(delivered_ms=delivered_s * 1000)
    wall_s = NOON_S + away_s + set_s
    now = Moment(wall_s, "two", 5_000) if boots else Moment(wall_s, "one", 50_000 + away_s * 1000)
    over = found_over(known, None, now)
    told = replace(receipt_of(0, 0, restored=False), tariff=known.tariff, delivered_ms=(delivered_s + away_s) * 1000)
    told = replace(told, onchain_value_sat=0, onchain_txid="", returned_msat=0, refunded_msat=0, balance_msat=0)
    assert objections_of_found(over, 0, told, RestoredPayments(0, 0, 0, (), 1), None, Tolerance(20_000, 1_000)) == []
    lie = replace(told, delivered_ms=over.delivered_ms * 2 + 10_000)
    (line,) = objections_of_found(over, 0, lie, RestoredPayments(0, 0, 0, (), 1), None, Tolerance(20_000, 1_000))
    assert "ms of delivery" in line


def test_a_session_whose_end_was_seen_is_not_charged_for_the_time_since_whatever_the_clock_says() -> None:
    now = Moment(NOON_S + DAY_S, "one", 50_000 + DAY_S * 1000)
    priced = session(tariff=Tariff.of(0, 3_600_000), is_end_seen=True, closed_at=NOON_S + 3600)
    ended = saved_evidence(priced, 0, Tolerance(0, 0), now).bill
    assert ended is not None
    assert ended.most_charge_msat == cost_msat(priced.tariff, 0, 9_000, True)
    unseen = saved_evidence(replace(priced, is_end_seen=False, closed_at=NOON_S - 3600), 0, Tolerance(0, 0), now).bill
    assert unseen is not None
    assert unseen.most_charge_msat > cost_msat(priced.tariff, 0, DAY_S * 1000, True)


def test_a_session_lasts_as_long_as_it_did_though_the_clock_was_set_from_1970(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.session_run.SAVE_MS", 100)
    set_by(bench, -NOON_S)
    bench.start()
    bench.until(payments=2)
    bench.crash()
    set_by(bench, 0)
    bench.start()
    bench.until(payments=len(bench.socket.orders) + 1)
    assert 0 < bench.finish().seconds < 60


def test_a_machine_that_slept_accuses_nobody() -> None:
    """The socket has delivered on, up to the credit that it held, and time has passed for both."""
    prices = Tariff.of(0, 360_000)  # a tenth of a satoshi a second
    desk = Desk(terms=replace(TERMS, tariff=prices))
    said_ms = 0

    def say(passed_ms: int, state: SocketState) -> None:
        nonlocal said_ms
        credited_msat = desk.buyer.account.settled_msat
        said_ms += min(passed_ms, left_ms(prices, credited_msat, 0, said_ms, 0))
        charged_msat = cost_msat(prices, 0, said_ms, True)
        desk.later(
            passed_ms, state=state, delivered_ms=said_ms, credited_msat=credited_msat, charged_msat=charged_msat,
            balance_msat=credited_msat - charged_msat,
        )  # fmt: skip
        desk.all_arrive()

    for _ in range(600):
        say(100, SocketState.DELIVERING)
    say(300_000, SocketState.PAUSED)
    assert said_ms > 60_000
    paid_msat = desk.buyer.account.settled_msat
    for _ in range(600):
        say(100, SocketState.DELIVERING)
    assert desk.buyer.stop is None
    assert desk.buyer.account.settled_msat > paid_msat


def test_the_time_that_the_machine_sleeps_passes_for_the_cable_and_for_its_meter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a session is as old as its socket says, and a count with a gap in it is none."""
    for opener in (open_ina219, open_ina226, Ina228, SampledMeter):
        assert signature(opener).parameters["clock_ns"].default is since_boot_ns
    config = SimpleNamespace(rpc_path=tmp_path / "lightning-rpc", settings=None)
    with open_ledger(tmp_path / "cable.sqlite3") as ledger:
        equipment = _equipment(config, ledger)  # type: ignore[arg-type]
    monkeypatch.setattr("wattline.core.clock.time.clock_gettime_ns", {time.CLOCK_BOOTTIME: 7 * 10**9}.__getitem__)
    assert equipment.clock_ms() == 7_000 == equipment.wall.now().boot_ms
