"""Too small and too large are two things: the one is met by raising a payment, the other by lowering it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.cable.conftest import Bench
from tests.cable.fakes import SOCKET_NODE, FakeLightning, TlsPair, wait_for
from wattline.cli.cable_check import Finding, Severity, check
from wattline.core.lightning.node import SendFailure
from wattline.core.lightning.routes import DOUBLINGS, BelowMinimum, KeptRoutes, least_msat
from wattline.core.tariff import Tariff


def node(smallest_msat: int, largest_msat: int) -> FakeLightning:
    wallet = FakeLightning(lambda record, payment_hash, amount_msat: None)
    wallet.smallest_msat, wallet.largest_msat = smallest_msat, largest_msat
    return wallet


@given(st.integers(1, 2_000), st.integers(1, 500_000), st.integers(1, 2_000_000))
def test_the_smallest_payment_that_passes_is_found_and_what_is_too_large_is_not_called_too_small(
    amount_msat: int, smallest_msat: int, largest_msat: int
) -> None:
    assume(not smallest_msat <= amount_msat <= largest_msat)
    wallet = node(smallest_msat, largest_msat)
    found = least_msat(wallet, SOCKET_NODE, amount_msat)
    if found is not None:
        assert amount_msat < found == smallest_msat <= largest_msat
    elif amount_msat < smallest_msat:
        assert smallest_msat > amount_msat * 2**DOUBLINGS or smallest_msat * 2 > largest_msat


def test_a_route_for_too_little_says_how_much_would_pass() -> None:
    routes = KeptRoutes(node(1_000, 10**9))
    for _ in range(2):
        with pytest.raises(BelowMinimum) as caught:
            routes.route(SOCKET_NODE, 234, 0)
        assert caught.value.least_msat == 1_000


def test_a_cable_meets_a_channel_s_minimum_with_larger_payments(bench: Bench) -> None:
    bench.node.smallest_msat = 1_000
    bench.socket.tariff = Tariff.of(3_000_000)
    bench.limits["max_price_msat_per_kwh"] = 3_000_000
    bench.start()
    bench.until(payments=3)
    summary = bench.finish()
    assert summary.is_good, summary
    assert all(amount_msat >= 1_000 for _, amount_msat, _ in bench.node.sends)
    assert summary.max_prepaid_msat <= bench.limits["max_prepaid_msat"]


@pytest.mark.parametrize("key", ["max_prepaid_msat", "max_increment_msat"])
def test_a_minimum_above_what_is_allowed_ends_the_session_by_its_name(bench: Bench, key: str) -> None:
    bench.node.smallest_msat = 3_000
    (bench.limits if key == "max_prepaid_msat" else bench.payment)[key] = 2_000
    summary = bench.run()
    assert (summary.stop_reason, summary.paid_msat) == ("channel_minimum", 0)
    found = {finding.text.partition(":")[0] for finding in findings(bench) if finding.severity is Severity.PROBLEM}
    assert "channel_minimum" in found


def findings(bench: Bench) -> Sequence[Finding]:
    return list(check(bench.settings, bench.node, lambda max_power_mw: bench.meter, bench.funds))


def test_the_check_warns_of_a_minimum_that_can_be_met(bench: Bench) -> None:
    bench.node.smallest_msat = 1_000
    lines = [str(finding) for finding in findings(bench)]
    assert not [line for line in lines if line.startswith("problem")]
    assert any("a channel on the way carries no less than 1.000 sat" in line for line in lines)


# One code for one cause.


def test_a_socket_whose_node_fails_every_payment_is_left_with_the_node_s_words(bench: Bench) -> None:
    """As without the keysend plugin: however full the prepaid cap was before they failed."""
    bench.limits["max_prepaid_msat"] = 400
    bench.payment["max_failures_in_a_row"] = 5
    bench.node.deliver = lambda *_: SendFailure("invalid_onion_payload", "WIRE_INVALID_ONION_PAYLOAD", True)
    summary = bench.run()
    assert summary.stop_reason == "payment_failed"
    assert "WIRE_INVALID_ONION_PAYLOAD" in summary.message


def test_a_ledger_that_stays_locked_ends_the_session_as_that(
    tmp_path: Path, tls: TlsPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.core.ledger.database.BUSY_TIMEOUT_MS", 100)
    bench = Bench(tmp_path, tls)
    bench.limits["max_prepaid_msat"] = 400
    bench.start()
    bench.until(payments=2)
    other = sqlite3.connect(tmp_path / "cable.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        wait_for(lambda: "stopping: ledger_busy" in "\n".join(bench.listener.lines), timeout_s=30, what="an end")
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert bench.wait().stop_reason == "ledger_busy"
    bench.socket.stop()
    bench.ledger.close()
