"""The final version that a socket asks for, with the real session and its ledger, over kills and resumptions: whatever
it says, what is signed is due by all that the cable has saved; and an honest one gets what it is owed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.cable.any_trade import Trade
from tests.cable.fake_funds import RULES
from tests.cable.threadless import NODES, without_threads
from wattline.cable.policy.delivery import SLACK_MS, SWITCH_MS, UNSEEN_MS
from wattline.cable.restoring import DOWN_MARGIN_MS
from wattline.cable.session_run import SessionRun
from wattline.core.aggregate import final_value_sat
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.tariff import Tariff, cost_msat
from wattline.v1 import charging_pb2 as pb

PRICES = Tariff.of(900_000_000, 3_600_000)
"""A satoshi a second, and 0.9 for a milliwatt-hour."""


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        without_threads(patch)
        patch.setattr("wattline.cable.session_run.SAVE_MS", 100)
        ledger = open_ledger(Path(folder) / "cable.sqlite3")
        yield ledger
        ledger.close()
        NODES.clear()


class Ending(Trade):
    """Voltage comes and goes."""

    def __init__(self, ledger: Ledger) -> None:
        self.claimed_ms, self.live_ms, self.read_ms, self.switchings, self.runs = 0, 0, 1_000, 0, 0
        self.was_lit = False
        self.finals: list[tuple[int, int]] = []
        """Value of each that was handed over, and the most that it could be."""
        super().__init__(ledger, "onchain", PRICES)

    @property
    def told_ms(self) -> int:
        return self.claimed_ms

    @property
    def most_ms(self) -> int:
        margin_ms = (SLACK_MS + DOWN_MARGIN_MS) * self.runs + SWITCH_MS * self.switchings
        return self.live_ms + self.live_ms // 50 + self.now_ms - self.read_ms + margin_ms

    def begin(self) -> None:
        self.was_lit = self.runs > 0  # of the time that it was down nothing is known
        self.runs += 1
        super().begin()

    def read_meter(self, run: SessionRun) -> None:
        passed_ms, self.read_ms = self.now_ms - self.read_ms, self.now_ms
        is_lit = self.voltage_mv > 0
        if is_lit or self.was_lit or passed_ms > UNSEEN_MS:
            self.live_ms += passed_ms
        self.switchings += is_lit and not self.was_lit
        self.was_lit = is_lit
        super().read_meter(run)

    def take(self, version: pb.AggregateVersion) -> None:
        newest_sat = max(self.handed, default=0)
        super().take(version)
        if version.is_final:
            allowed_uwh = self.settings.limits.tolerance.allowed_uwh(self.own_uwh)
            due_sat = final_value_sat(self.most_msat(allowed_uwh), 0, RULES.floor_sat)
            value_sat = self.last_handed[1]
            self.finals.append((value_sat, due_sat))
            if value_sat > due_sat or (value_sat >= newest_sat and value_sat not in dict(self.finals[:-1])):
                self.broken.append(f"{value_sat} sat signed at the end, where {due_sat} of {newest_sat} can be due")

    def ask(self, charged_msat: int, keysend_msat: int = 0) -> None:
        value_sat = final_value_sat(charged_msat, keysend_msat, RULES.floor_sat)
        final = pb.FinalDue(value_sat=value_sat, charged_msat=charged_msat, keysend_msat=keysend_msat)
        self.say(pb.ChargeResponse(final_due=final))
        self.turn()

    def act(self, kind: str, value: int) -> None:
        match kind:
            case "voltage":
                self.voltage_mv = 0 if self.voltage_mv else 48_000
            case "claim time":
                self.claimed_ms += value // 100
            case "claim energy":
                self.told_uwh += value // 60
            case "final":
                self.ask(max(0, self.charged_msat + (value - 150_000)))
            case "final of all":
                self.ask(max(0, (max(self.handed, default=0) - 1) * 1000 - value))
            case "final of its age":
                self.ask(cost_msat(PRICES, self.told_uwh, max(0, self.now_ms - 1_000 - value // 100), True))
            case _:
                self.step(kind, value)


LIES = ["flow"] * 6 + ["claim time"] * 3 + ["voltage", "voltage", "claim energy", "wait", "kill"]
lies = st.lists(st.tuples(st.sampled_from(LIES), st.integers(0, 300_000)), min_size=3, max_size=16)
ENDS = ["final", "final of all", "final of its age", "final of its age", "kill", "claim time"]
ends = st.lists(st.tuples(st.sampled_from(ENDS), st.integers(0, 300_000)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(lies, ends)
@example([("flow", 250_000)] * 4 + [("voltage", 0)] + [("wait", 10_000)] * 30, [("final of its age", 0)])
@example([("flow", 250_000)] * 4 + [("voltage", 0)] + [("wait", 10_000)] * 30, [("kill", 0), ("final of its age", 0)])
def test_no_final_version_is_more_than_can_be_due_whatever_is_claimed_and_killed(
    ledger: Ledger, lies: list[tuple[str, int]], ends: list[tuple[str, int]]
) -> None:
    prove(ledger, lies + ends)


@pytest.mark.long
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(lies, ends)
def test_the_same_of_a_hundred_sessions(
    ledger: Ledger, lies: list[tuple[str, int]], ends: list[tuple[str, int]]
) -> None:
    prove(ledger, lies + ends)


def prove(ledger: Ledger, acts: list[tuple[str, int]]) -> None:
    trade = Ending(ledger)
    for kind, value in acts:
        trade.act(kind, value)
    assert trade.broken == []
    row = trade.row
    assert {value_sat for value_sat, _ in trade.finals} <= {row.final_sat if row is not None else None}


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(["flow", "flow", "flow", "kill"]), st.integers(0, 100_000)), max_size=16))
def test_an_honest_socket_gets_the_final_version_of_what_it_is_owed_after_any_kills(
    ledger: Ledger, history: list[tuple[str, int]]
) -> None:
    trade = Ending(ledger)
    for kind, value in [("flow", 0), *history, ("kill", 0), ("flow", 0)]:
        credited_msat = trade.newest[1] * 1000
        if cost_msat(PRICES, trade.own_uwh + value, trade.claimed_ms + 600, True) <= credited_msat:
            trade.claimed_ms += 600 if kind == "flow" else 0
            trade.act(kind, value)
        else:
            trade.act("flow", 0)
    due_sat = final_value_sat(trade.charged_msat, 0, RULES.floor_sat)
    trade.ask(trade.charged_msat)
    assert trade.broken == []
    if due_sat < trade.newest[1]:
        assert dict(trade.finals).keys() == {due_sat}, trade.shown.lines
