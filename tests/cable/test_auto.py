"""``method = "auto"``: over Lightning for as long as that works, else on-chain."""

from __future__ import annotations

import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import wait_for
from tests.cable.test_onchain import aggregate, dear, row, until_charged, until_versions
from wattline.core.ledger.cable import CableAggregateStatus
from wattline.core.lightning.node import SentPayment
from wattline.v1 import charging_pb2 as pb


@pytest.fixture(autouse=True)
def no_waiting_for_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattline.cable.service.MINED_WAIT_S", 0.0)


@pytest.fixture
def auto(bench: Bench) -> Bench:
    bench.payment |= {"method": "auto", "max_increment_msat": 200_000, "max_failures_in_a_row": 10}
    dear(bench)
    bench.limits["max_prepaid_msat"] = 4_000_000
    bench.socket.onchain_rules = bench.socket.onchain_rules and type(bench.socket.onchain_rules)(
        600, 8_000, 50_000, 253, 100_000, 3_600, 1, 3
    )
    bench.onchain |= {"max_prepaid_sat": 3_000, "max_increment_sat": 500}
    return bench


def until_shown_again(bench: Bench) -> None:
    count = len(bench.listener.snapshots)
    wait_for(lambda: len(bench.listener.snapshots) > count + 1)


def states_since_delivery(bench: Bench) -> set[str]:
    """Every state that was shown from the first delivery on, until the session ended."""
    states = [snapshot.state for snapshot in bench.listener.snapshots if not snapshot.stop_reason]
    return set(states[states.index("delivering") :])


def test_over_lightning_nothing_is_asked_of_the_chain_while_all_is_well(auto: Bench) -> None:
    auto.start()
    auto.until(payments=15)
    summary = auto.finish()
    assert summary.is_good, summary
    assert (summary.method, summary.increments, summary.txid) == ("keysend", 0, "")
    assert auto.socket.signatures == []
    assert auto.socket.opens[0].method == pb.METHOD_KEYSEND


def test_without_a_channel_the_session_is_paid_on_chain_from_the_start(
    auto: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.service.CHANNEL_MS", 50)
    monkeypatch.setattr(auto.node, "channels", list)
    auto.start()
    until_versions(auto, 2)
    summary = auto.finish()
    assert summary.is_good, summary
    assert auto.socket.opens[0].method == pb.METHOD_ONCHAIN


def test_without_a_way_for_the_smallest_payment_the_session_is_paid_on_chain_from_the_start(auto: Bench) -> None:
    auto.node.largest_msat = 1
    auto.start()
    until_versions(auto, 2)
    summary = auto.finish()
    assert summary.is_good, summary
    assert auto.node.sends == []
    assert summary.method == "onchain"


def test_when_the_channel_runs_dry_it_goes_on_chain_and_the_relay_stays_closed(auto: Bench) -> None:
    auto.start()
    until_charged(auto)
    auto.node.largest_msat = 0
    until_versions(auto, 4)
    summary = auto.finish()
    assert summary.is_good, summary
    assert states_since_delivery(auto) == {"delivering"}
    assert summary.method == "onchain"
    assert summary.payments > summary.increments == aggregate(auto).number
    keysend_msat = sum(sent.amount_msat or 0 for sent in auto.node.results.values() if isinstance(sent, SentPayment))
    owed_msat = summary.charged_msat - keysend_msat
    assert summary.onchain_value_sat == aggregate(auto).final_sat == max(600, -(-owed_msat // 1000))
    assert summary.credited_msat == keysend_msat + aggregate(auto).value_sat * 1000


def test_a_channel_that_carries_less_and_less_is_left_in_time(auto: Bench) -> None:
    """Two channels, say, that could only together carry an increment: ever smaller payments, at last none."""
    auto.start()
    until_charged(auto)
    for largest_msat in (60_000, 20_000, 5_000, 1_000):
        auto.node.largest_msat = largest_msat
        until_shown_again(auto)
    until_versions(auto, 3)
    summary = auto.finish()
    assert summary.is_good, summary
    assert states_since_delivery(auto) == {"delivering"}


def test_passing_trouble_prepares_but_does_not_go_over(auto: Bench) -> None:
    auto.start()
    until_charged(auto)
    auto.node.largest_msat = 1
    wait_for(lambda: any("on-chain payment prepared" in line for line in auto.listener.lines))
    auto.node.largest_msat = 10**9
    count = len(auto.node.sends)
    wait_for(lambda: len(auto.node.sends) > count + 10)
    summary = auto.finish()
    assert summary.is_good, summary
    assert summary.method == "keysend"
    assert auto.socket.versions == []
    assert row(auto).status is CableAggregateStatus.VOID
    assert auto.funds.reserved == {}


def test_what_the_socket_itself_refuses_is_no_reason_to_go_over(auto: Bench) -> None:
    auto.payment["max_failures_in_a_row"] = 3
    auto.socket.refuse_payments = ("outlet_faulted", "the meter is broken")
    summary = auto.run()
    assert summary.stop_reason == "payment_failed"
    assert auto.socket.signatures == []


def test_where_on_chain_is_not_possible_either_lightning_has_the_last_word(auto: Bench) -> None:
    auto.funds.free = []
    auto.payment["max_failures_in_a_row"] = 3
    auto.start()
    until_charged(auto)
    auto.node.largest_msat = 0
    summary = auto.wait()
    assert summary.stop_reason == "payment_failed"
    assert any("cannot be paid on-chain: no_onchain_funds" in line for line in auto.listener.lines)


def test_fees_above_their_ratio_lead_on_chain_too(auto: Bench) -> None:
    auto.node.fee_msat = 100_000
    auto.limits["max_fee_ratio"] = 0.01
    auto.start()
    until_versions(auto, 2)
    summary = auto.finish()
    assert summary.is_good, summary
    assert auto.node.sends == []


def test_after_a_restart_it_stays_on_chain(auto: Bench) -> None:
    auto.start()
    until_charged(auto)
    auto.node.largest_msat = 0
    until_versions(auto, 2)
    auto.crash()
    auto.node.largest_msat = 10**9
    sent = len(auto.node.sends)
    auto.start()
    wait_for(lambda: auto.socket.resumes == 1)
    count = aggregate(auto).number
    until_versions(auto, count + 2)
    summary = auto.finish()
    assert summary.is_good, summary
    assert len(auto.node.sends) == sent
    assert summary.paid_msat == summary.credited_msat


def test_a_socket_that_takes_keysend_alone_is_paid_by_it(auto: Bench) -> None:
    auto.socket.methods, auto.socket.onchain_rules = [pb.METHOD_KEYSEND], None
    auto.start()
    auto.until(payments=3)
    summary = auto.finish()
    assert summary.is_good, summary
    assert summary.method == "keysend"
