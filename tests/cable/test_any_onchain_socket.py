"""A socket that says whatever the wire can carry, to a cable that pays on-chain or goes over to that (any_trade.py).

Nothing of it makes an internal error, reaches a person or the node as it came, or gets more in advance than floor and
cap; and whatever is mined beyond what is due is seen at the next start.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cable.any_trade import Trade
from tests.cable.threadless import NODES, without_threads
from tests.core.wire.messages import either, fit, wild
from wattline.cable.closing import Summary
from wattline.cable.onchain_side import MOST_LINES
from wattline.cable.opening import LineLimit
from wattline.cli.cable_view import ending
from wattline.core.ledger.cable import CableAggregateStatus
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.v1 import charging_pb2 as pb

ACCUSED = {CableAggregateStatus.CHEATED, CableAggregateStatus.UNANSWERED}
LINES_EACH = 20
"""So many lines of a run are its own: what it begins, prepares and ends with."""


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        without_threads(patch)
        ledger = open_ledger(Path(folder) / "cable.sqlite3")
        yield ledger
        ledger.close()
        NODES.clear()


ONCHAIN = ("onchain_invitation", "version_accepted", "version_refused", "final_due")
messages = st.one_of(
    either(pb.ChargeResponse),
    st.sampled_from(ONCHAIN).flatmap(lambda name: fit(pb.ChargeResponse, name) | wild(pb.ChargeResponse, name)),
)
sayings = st.one_of(
    st.tuples(st.just("say"), messages | st.binary(max_size=30)),
    st.tuples(st.just("say of this session"), messages),
    st.tuples(st.just("receipt"), fit(pb.Receipt) | st.just(pb.Receipt())),
)
numbers = st.tuples(st.sampled_from(["flow", "flow", "flow", "count more", "wait"]), st.integers(0, 300_000))
PLAIN = ["invite", "claim and refuse", "final", "cut", "connect", "kill", "stop", "no way"]
plain = st.tuples(st.sampled_from(PLAIN), st.none())
minds = st.tuples(st.just("answers"), st.sampled_from(["accept", "accept", "credit", "refuse", "silent"]))
good = st.lists(st.tuples(st.just("flow"), st.integers(0, 200_000)), max_size=5)
anything = st.lists(st.one_of(numbers, numbers, sayings, sayings, plain, minds), max_size=12)
ends = st.lists(st.one_of(plain, st.just(("final", None)), minds, sayings), max_size=4)
histories = st.builds(lambda *parts: [step for part in parts for step in part], good, anything, good, ends)


def check_shown(trade: Trade, steps: int, runs: int) -> None:
    lines = list(trade.shown.lines)
    assert len(lines) <= runs * (LINES_EACH + MOST_LINES + LineLimit.LINES) + 4 * steps
    for end in trade.ends:
        if isinstance(end, Summary):
            lines += [end.stop_reason, *ending(end).split("\n"), *(str(value) for value in asdict(end).values())]
        else:
            lines += [end.code, end.message]
    lines += [str(value) for snapshot in trade.shown.snapshots for value in asdict(snapshot).values()]
    for line in lines:
        assert line.isprintable(), repr(line)
        assert len(line) < 4_000
        assert "payer_broken" not in line
        assert "internal_error" not in line


def prove(ledger: Ledger, method: str, history: list[tuple[str, Any]], which: int) -> None:
    trade = Trade(ledger, method)
    if method == "auto" and which % 4:
        trade.step("no way", None)
    for kind, value in history:
        trade.step(kind, value)
    judged = trade.judged(which)
    assert trade.broken == []
    check_shown(trade, len(history), 2 + sum(kind == "kill" for kind, _ in history))
    if judged is not None:
        value_sat, row = judged
        assert not row.status.is_live
        if value_sat > trade.due_sat(row):
            assert row.status in ACCUSED, (value_sat, trade.due_sat(row), row)


@pytest.mark.parametrize("method", ["onchain", pytest.param("auto", marks=pytest.mark.long)])
@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(history=histories, which=st.integers(0, 50))
def test_no_socket_s_message_breaks_a_rule_of_a_session_paid_on_chain(
    ledger: Ledger, method: str, history: list[tuple[str, Any]], which: int
) -> None:
    prove(ledger, method, history, which)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["onchain", "auto"])
@settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
@given(history=histories, which=st.integers(0, 50))
def test_the_same_of_a_thousand_histories(
    ledger: Ledger, method: str, history: list[tuple[str, Any]], which: int
) -> None:
    prove(ledger, method, history, which)


@pytest.mark.parametrize("method", ["onchain", "auto"])
def test_a_version_that_it_says_to_hold_and_then_refuses_makes_room_for_no_larger_one(
    ledger: Ledger, method: str
) -> None:
    history: list[tuple[str, Any]] = [("answers", "silent"), ("invite", None)]
    prove(ledger, method, history + [("claim and refuse", None), ("flow", 0)] * 10, 1)


@pytest.mark.parametrize("method", ["onchain", "auto"])
def test_such_a_session_is_paid_and_ended_as_long_as_nothing_impossible_is_said(ledger: Ledger, method: str) -> None:
    """So that the property above is about something."""
    trade = Trade(ledger, method)
    if method == "auto":
        for _ in range(3):
            trade.step("flow", 20_000)
        assert trade.keysend_msat > 0
        trade.step("no way", None)
    for _ in range(25):
        trade.step("flow", 100_000)
    assert len(trade.credited) > 3, trade.shown.lines
    trade.step("stop", None)
    assert trade.closed == "operator"
    trade.step("final", None)
    row = trade.row
    assert row is not None
    assert row.final_sat is not None, trade.shown.lines
    assert row.is_final_taken
    trade.step("receipt", pb.Receipt())
    (summary,) = trade.ends
    assert isinstance(summary, Summary)
    assert summary.is_good, (summary.objections, trade.shown.lines)
    wanted = {"signmessage", "checkmessage", "utxopsbt", "addpsbtoutput", "signpsbt"}
    assert wanted | ({"createonion", "sendonion"} if method == "auto" else set()) <= set(trade.node.asked)
    found = trade.judged(0)
    assert found is not None
    value_sat, judged = found
    assert value_sat <= row.final_sat
    assert judged.status is CableAggregateStatus.SETTLED
    assert trade.broken == []
