"""A socket whose node neither takes nor fails the payments that it gets: they stay on their way for hours."""

from __future__ import annotations

import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import wait_for
from wattline.cable.closing import StopWish, Summary
from wattline.core.payer import Payer

CAP_MSAT = 300


def on_the_way_msat(bench: Bench) -> int:
    """Over all sessions."""
    return sum(intent.amount_msat for intent in bench.ledger.outgoing.pending())


@pytest.fixture
def holding(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("wattline.cable.closing.SETTLE_MS", 300)
    monkeypatch.setattr(Payer.resolve, "__defaults__", (False, 0.2))  # not 10 s for what stays on its way
    bench.socket.delivers = False
    bench.limits["max_prepaid_msat"] = CAP_MSAT
    bench.node.hold.clear()
    return bench


def visit(bench: Bench) -> Summary:
    bench.wish = StopWish()
    held = len(bench.node.held)
    bench.start()
    wait_for(lambda: len(bench.node.held) > held or bench.has_ended, what="a payment")
    bench.wish.want("operator", "seen enough")
    return bench.wait()


def test_what_earlier_sessions_have_on_their_way_counts_against_the_cap_of_the_next(holding: Bench) -> None:
    outcomes = []
    for _ in range(4):
        outcomes.append(visit(holding).stop_reason)
        assert 0 < on_the_way_msat(holding) <= CAP_MSAT, holding.listener.lines
    assert outcomes[-1] == "prepaid_limit"
    assert any("still on their way" in line for line in holding.listener.lines)
    # Once its fate is known, the cable buys again.
    holding.node.hold.set()
    wait_for(lambda: len(holding.node.results) == len(holding.node.sends))
    holding.socket.delivers = True
    holding.wish = StopWish()
    paid = len(holding.socket.orders)
    holding.start()
    holding.until(payments=paid + 1)
    assert holding.finish().is_good
