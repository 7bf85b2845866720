"""Time that nobody saw, with the real session and its ledger: the cable is killed or its machine sleeps, and the socket
says that it has delivered all the while. By both ways of paying it gets no more in advance than the cap."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cable.any_trade import Trade
from tests.cable.threadless import NODES, without_threads
from wattline.cable.policy.delivery import SLACK_MS, UNSEEN_MS
from wattline.cable.policy.reconciliation import OVERDRAFT_MS
from wattline.cable.restoring import DOWN_MARGIN_MS
from wattline.core.ledger.cable import CableAggregateStatus
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.tariff import Tariff, left_ms, worth_msat

PRICES = Tariff.of(3_000_000, 36_000_000)
"""Ten satoshi a second."""
ACCUSED = {CableAggregateStatus.CHEATED, CableAggregateStatus.UNANSWERED}


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        without_threads(patch)
        patch.setattr("wattline.cable.session_run.SAVE_MS", 100)
        ledger = open_ledger(Path(folder) / "cable.sqlite3")
        yield ledger
        ledger.close()
        NODES.clear()


class Gaps(Trade):
    """There is voltage all the time, and nothing flows."""

    def __init__(self, ledger: Ledger, method: str, *, is_honest: bool = False) -> None:
        self.is_honest = is_honest
        self.claimed_ms = self.kills = 0
        self.could_ms, self.seen_ms = SLACK_MS, 1_000
        super().__init__(ledger, method, PRICES)

    @property
    def told_ms(self) -> int:
        return self.claimed_ms

    @property
    def most_ms(self) -> int:
        self.look()
        return self.could_ms

    @property
    def handed_over_msat(self) -> int:
        return self.keysend_msat + max(self.handed, default=0) * 1000

    def look(self) -> None:
        """What the cable itself can have consumed by now."""
        passed_ms, self.seen_ms = self.now_ms - self.seen_ms, self.now_ms
        if passed_ms <= UNSEEN_MS:
            self.could_ms += passed_ms + -(-passed_ms // 50)
        else:
            self.look_again(self.could_ms + passed_ms)

    def look_again(self, most_ms: int) -> None:
        """After nobody has."""
        paid_for_ms = left_ms(PRICES, self.handed_over_msat, self.own_uwh, 0, 0)
        self.could_ms, self.seen_ms = min(most_ms, paid_for_ms), self.now_ms

    def turn(self) -> None:
        before_ms = self.now_ms
        super().turn()
        self.look()
        if self.run is not None:
            self.deliver(self.now_ms - before_ms)

    def deliver(self, passed_ms: int) -> None:
        """An honest socket stops at its credit."""
        credited_msat = self.newest[1] * 1000 + self.keysend_msat
        credit_ms = left_ms(PRICES, credited_msat, self.told_uwh, self.claimed_ms, 0)
        self.claimed_ms += min(passed_ms, credit_ms) if self.is_honest else passed_ms

    def gap(self, kind: str, passed_ms: int) -> None:
        """``kind``: ``kill`` or ``asleep``."""
        if self.run is None:
            return
        self.now_ms += passed_ms
        self.deliver(passed_ms)
        if kind == "kill":
            self.kills += 1
            # What was seen before is lost, not what was paid, nor how old the session is.
            self.look_again(max(self.could_ms, self.now_ms) + DOWN_MARGIN_MS * self.kills)
            self.kill()
        else:
            self.guard(self.read_meter)
        self.look()

    def buy(self) -> None:
        for _ in range(12):
            self.step("flow", 0)


gaps = st.lists(st.tuples(st.sampled_from(["kill", "asleep"]), st.integers(0, 4_000_000)), min_size=1, max_size=4)


@pytest.mark.parametrize("method", ["keysend", "onchain", pytest.param("auto", marks=pytest.mark.long)])
@settings(deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))
@given(gaps=gaps, which=st.integers(0, 20))
def test_a_socket_is_not_paid_again_for_time_that_nobody_saw(
    ledger: Ledger, method: str, gaps: list[tuple[str, int]], which: int
) -> None:
    trade = Gaps(ledger, method)
    if method == "auto" and which % 2:
        trade.step("no way", None)
    trade.buy()
    assert trade.handed_over_msat
    for gap in gaps:
        trade.gap(*gap)
        trade.buy()
    most_msat = trade.most_msat(0)
    found = trade.judged(which)
    assert trade.broken == []
    if found is not None:
        value_sat, row = found
        margin_msat = worth_msat(PRICES, trade.remembered.rated_power_mw, OVERDRAFT_MS)
        floor_msat = row.floor_sat * 1000 + trade.settings.onchain.max_prepaid_sat * 1000
        if value_sat * 1000 + trade.keysend_msat > most_msat + margin_msat + floor_msat:
            assert row.status in ACCUSED


@pytest.mark.long
@pytest.mark.parametrize("method", ["keysend", "onchain", "auto"])
@settings(deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))
@given(gaps=gaps)
def test_a_socket_that_delivered_up_to_its_credit_meanwhile_goes_on_selling(
    ledger: Ledger, method: str, gaps: list[tuple[str, int]]
) -> None:
    trade = Gaps(ledger, method, is_honest=True)
    trade.buy()
    for gap in [*gaps, ("kill", 4_000_000)]:
        before_msat = trade.handed_over_msat
        trade.gap(*gap)
        trade.buy()
        assert trade.ends == [], trade.shown.lines
    assert trade.handed_over_msat > before_msat, trade.shown.lines
    assert trade.broken == []
