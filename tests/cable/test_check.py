from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.cable.conftest import Bench
from tests.cable.test_onchain import dear
from tests.cable.test_onchain_end import ENDED, FINAL, HELD, NEWEST, mined
from wattline.cable.pay.settlement import judged
from wattline.cli.cable_check import Finding, Severity, check
from wattline.core.lightning.node import ChannelBalance
from wattline.core.tariff import Tariff
from wattline.device.meters.reading import MeterError


def findings(bench: Bench) -> dict[str, Finding]:
    found = check(bench.settings, bench.node, lambda power: bench.meter, bench.funds)
    return {finding.subject: finding for finding in found}


def problems(bench: Bench) -> set[str]:
    return {subject for subject, finding in findings(bench).items() if finding.severity is Severity.PROBLEM}


def test_all_is_well_on_a_good_bench_and_nothing_is_paid(bench: Bench) -> None:
    found = findings(bench)
    assert {finding.severity for finding in found.values()} == {Severity.OK}
    assert "420.000 sat" in found["cost"].text  # 1.4 kW for an hour at 300 sat/kWh
    assert "straight" in found["channel"].text
    assert bench.node.sends == []
    assert bench.socket.opens == []
    assert bench.meter.is_closed


def test_a_node_that_is_down_does_not_hide_the_meter(bench: Bench) -> None:
    bench.node.is_down = True
    found = findings(bench)
    assert found["node"].severity is Severity.PROBLEM
    assert found["meter"].severity is Severity.OK


def test_each_thing_that_is_wrong_is_a_problem_of_its_own(bench: Bench) -> None:
    bench.limits["max_price_msat_per_kwh"] = 1_000
    bench.socket.available = False
    bench.meter.error = MeterError("meter_wrong_chip", "another chip")
    bench.node.largest_msat = 1
    assert problems(bench) == {"price", "outlet", "meter", "route"}


def test_a_socket_that_does_not_answer_is_a_problem(bench: Bench) -> None:
    bench.socket.stop()
    found = findings(bench)
    assert found["socket"].severity is Severity.PROBLEM
    assert "socket_unreachable" in found["socket"].text


def test_trusting_whoever_answers_is_warned_of(bench: Bench) -> None:
    bench.socket_settings = {"address": f"127.0.0.1:{bench.socket.port}", "any_node": True}
    assert findings(bench)["socket"].severity is Severity.WARNING


def test_a_fee_is_shown_with_what_it_means_for_the_increments(bench: Bench) -> None:
    bench.node.fee_msat = 100
    found = findings(bench)["route"]
    assert found.severity is Severity.WARNING
    assert "2.000 sat" in found.text  # 100 msat are 5 % of that
    bench.node.fee_msat = 1_000
    assert findings(bench)["route"].severity is Severity.PROBLEM


def test_it_is_said_whether_a_refund_can_come_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh() -> Sequence[ChannelBalance]:
        return [ChannelBalance(bench.socket.sign_node, "1x1x1", 10**8, 0)]

    bench.socket.min_refund_msat, bench.limits["max_kept_msat"] = 5_000, 10_000
    assert findings(bench)["refund"].severity is Severity.OK
    assert "can come back; the socket keeps less than 5.000 sat" in findings(bench)["refund"].text
    bench.socket.min_refund_msat = 5_001
    assert findings(bench)["refund"].severity is Severity.WARNING
    assert "so whatever is left of limits.max_prepaid_msat" in findings(bench)["refund"].text
    monkeypatch.setattr(bench.node, "channels", fresh)
    assert problems(bench) == {"refund"}
    assert "no_way_back: " in findings(bench)["refund"].text
    # A socket that refunds from nothing on cannot send nothing either.
    bench.socket.min_refund_msat = 0
    assert problems(bench) == {"refund"}


def test_a_prepaid_cap_that_is_small_for_the_outlet_is_warned_of(bench: Bench) -> None:
    bench.limits["max_prepaid_msat"] = 100
    assert findings(bench)["prepaid"].severity is Severity.WARNING


def test_with_on_chain_alone_the_channel_is_not_looked_at_but_the_funds_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear(bench)
    bench.payment["method"] = "onchain"
    monkeypatch.setattr(bench.node, "channels", list)
    found = findings(bench)
    assert problems(bench) == set()
    assert "channel" not in found
    assert "50000 sat; a session costs a miner fee of about 167 sat" in found["on-chain"].text
    bench.funds.free = []
    assert "no_onchain_funds" in findings(bench)["on-chain"].text
    assert problems(bench) == {"on-chain"}


def test_with_auto_one_way_of_paying_is_enough(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    dear(bench)
    bench.payment["method"] = "auto"
    bench.limits["max_prepaid_msat"] = 10_000_000
    assert {finding.severity for finding in findings(bench).values()} == {Severity.OK}
    bench.onchain["max_fee_ratio"] = 0.001
    assert findings(bench)["on-chain"].severity is Severity.WARNING
    assert "onchain_not_worth" in findings(bench)["on-chain"].text
    monkeypatch.setattr(bench.node, "channels", list)
    assert problems(bench) == {"channel", "on-chain"}
    bench.onchain["max_fee_ratio"] = 0.2
    assert problems(bench) == set()
    assert findings(bench)["channel"].severity is Severity.WARNING


def test_with_auto_and_no_channel_it_is_said_that_the_session_begins_on_chain(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear(bench)
    bench.payment["method"] = "auto"
    bench.limits["max_prepaid_msat"] = 10_000  # a cap of Lightning's: on-chain it does not bind
    assert findings(bench)["prepaid"].severity is Severity.WARNING
    bench.onchain["max_prepaid_sat"] = 3_000
    monkeypatch.setattr(bench.node, "channels", list)
    found = findings(bench)
    assert "no_channel: " in found["channel"].text
    assert "nothing over Lightning; it begins on-chain" in found["channel"].text
    assert "prepaid" not in found
    bench.funds.free = []
    assert "nothing can be paid" in findings(bench)["channel"].text


def test_a_socket_that_took_more_than_was_due_before_is_a_problem_and_one_that_owes_once_a_warning(
    bench: Bench,
) -> None:
    memory = bench.ledger.cable_aggregates

    def history() -> list[Finding]:
        found = check(bench.settings, bench.node, lambda power: bench.meter, bench.funds, memory)
        return [finding for finding in found if finding.subject == "history"]

    assert history() == []
    memory.save(judged(replace(HELD, status=ENDED, agreed_sat=NEWEST, due_sat=FINAL), mined(NEWEST), 9))
    (owing,) = history()
    assert owing.severity is Severity.WARNING
    assert f"{NEWEST - FINAL} sat" in owing.text
    cheated = replace(HELD, session_id="0" * 26, status=ENDED, agreed_sat=FINAL, due_sat=FINAL)
    memory.save(judged(cheated, mined(NEWEST), 9))
    (problem,) = history()
    assert problem.severity is Severity.PROBLEM
    assert problem.text.startswith("socket_cheated: ")


def test_an_offer_that_cannot_begin_within_what_may_be_prepaid_is_a_problem(bench: Bench) -> None:
    bench.limits["max_session_fee_msat"] = bench.limits["max_prepaid_msat"]
    bench.socket.tariff = Tariff.of(300_000, 0, 4_990)
    found = findings(bench)["prepaid"]
    assert found.severity is Severity.PROBLEM
    assert "prepaid_limit" in found.text
