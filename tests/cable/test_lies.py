from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import CABLE_NODE, FakeSigner, keep_refund
from wattline.core.tariff import Tariff
from wattline.v1 import charging_pb2 as pb


def ends_with(bench: Bench, reason: str) -> str:
    """Run into the stop; the socket has been told why, and nothing was paid after it. The message."""
    summary = bench.wait()
    assert summary.stop_reason == reason, summary
    assert not summary.is_good
    assert bench.socket.session.cable_reason == reason
    return summary.message


def test_a_socket_that_counts_more_energy_than_flows_is_not_paid_any_more(bench: Bench) -> None:
    def lie(statement: pb.Statement) -> None:
        statement.energy_uwh += 500_000

    bench.start()
    bench.until(payments=2)
    bench.socket.lie_statement = lie
    message = ends_with(bench, "energy_mismatch")
    assert "own meter" in message
    assert bench.summary is not None
    assert bench.summary.paid_msat - bench.summary.charged_msat < 2_000


def test_a_cable_s_meter_that_shows_less_than_flows_ends_the_session(bench: Bench) -> None:
    bench.world.cable_factor = 0.5
    bench.start()
    ends_with(bench, "energy_mismatch")


def test_a_cable_s_meter_that_shows_more_than_is_sold_ends_the_session(bench: Bench) -> None:
    bench.world.cable_factor = 4.0
    bench.start()
    ends_with(bench, "energy_mismatch")


def test_a_charge_above_the_exact_cost_ends_the_session(bench: Bench) -> None:
    def lie(statement: pb.Statement) -> None:
        statement.charged_msat += 1
        statement.balance_msat -= 1

    bench.start()
    bench.until(payments=2)
    bench.socket.lie_statement = lie
    assert "charges" in ends_with(bench, "charge_mismatch")


def test_hours_of_delivery_that_never_were_end_the_session(bench: Bench) -> None:
    def lie(statement: pb.Statement) -> None:
        statement.delivered_ms += 3_600_000

    bench.start()
    bench.until(payments=2)
    bench.socket.lie_statement = lie
    ends_with(bench, "time_mismatch")


def test_a_payment_that_is_never_credited_ends_the_session(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(statement: pb.Statement) -> None:
        missing = min(300, statement.credited_msat)
        statement.credited_msat -= missing
        statement.balance_msat -= missing

    monkeypatch.setattr("wattline.cable.policy.delivery.CREDIT_GRACE_MS", 500)
    monkeypatch.setattr("wattline.cable.policy.reconciliation.SILENT_MS", 500)
    monkeypatch.setattr("wattline.cable.policy.reconciliation.MAKING_MS", 0)
    bench.socket.lie_statement = lie
    bench.start()
    assert "credits" in ends_with(bench, "credit_mismatch")


def test_a_statement_cannot_lift_the_prepaid_cap(bench: Bench) -> None:
    """The socket says that all is used up: by the cable's own meter it is not, and that is what counts."""

    def lie(statement: pb.Statement) -> None:
        statement.energy_uwh += 150_000  # within the tolerance
        statement.charged_msat += 45
        statement.balance_msat -= 45

    bench.limits["max_prepaid_msat"] = 500
    bench.socket.lie_statement = lie
    bench.start()
    bench.until(payments=2)
    summary = bench.finish()
    assert summary.max_prepaid_msat <= 500
    assert bench.socket.peak_balance <= 500


def test_a_session_at_another_price_than_offered_is_not_paid(bench: Bench) -> None:
    bench.socket.lie_tariff = Tariff.of(300_001)
    summary = bench.run()
    assert summary.stop_reason == "price_too_high"
    assert bench.node.sends == []


def test_after_a_restart_a_dearer_tariff_is_not_accepted(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.crash()
    sent = len(bench.node.sends)
    bench.socket.lie_tariff = Tariff.of(300_001)
    summary = bench.run()
    assert summary.stop_reason == "price_too_high"
    assert len(bench.node.sends) == sent


def test_a_receipt_that_nobody_signed_is_not_a_receipt(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.socket.signer = FakeSigner(CABLE_NODE)
    summary = bench.finish()
    assert not summary.receipt
    assert not summary.is_good
    assert any("not signed" in line for line in summary.objections)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda receipt: setattr(receipt, "credited_msat", receipt.credited_msat - 1), "were paid"),
        (lambda receipt: setattr(receipt, "charged_msat", receipt.charged_msat + 5), "charges"),
        (lambda receipt: setattr(receipt, "energy_uwh", receipt.energy_uwh + 10_000_000), "own meter"),
        (lambda receipt: setattr(receipt.tariff, "energy_msat_per_kwh", 400_000), "tariff"),
        (lambda receipt: setattr(receipt, "refunded_msat", receipt.refunded_msat + 7), "refund"),
    ],
    ids=["credit", "charge", "energy", "tariff", "refund"],
)
def test_a_signed_receipt_that_is_not_true_is_objected_to(
    bench: Bench, lie: Callable[[pb.Receipt], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.closing.REFUND_MS", 300)
    bench.socket.lie_receipt = lie
    bench.start()
    bench.until(payments=2)
    summary = bench.finish()
    assert summary.receipt
    assert not summary.is_good
    assert any(words in line for line in summary.objections), summary.objections


def test_a_refund_that_never_came_is_objected_to(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattline.cable.closing.REFUND_MS", 300)
    bench.socket.refund_to = lambda description, amount: None
    bench.start()
    bench.until(payments=2)
    summary = bench.finish()
    assert summary.refund_seen is False
    assert any("has not got them" in line for line in summary.objections)


def keep_without_a_word(receipt: pb.Receipt) -> None:
    keep_refund(receipt)
    receipt.refund_status = pb.REFUND_STATUS_UNSPECIFIED


def keep_with_a_word_of_its_own(receipt: pb.Receipt) -> None:
    keep_refund(receipt)
    receipt.refund_status = 9  # type: ignore[assignment]


def send_next_to_nothing(receipt: pb.Receipt) -> None:
    receipt.balance_msat += receipt.refunded_msat - 1
    receipt.refunded_msat = 1


def invent_a_fee(receipt: pb.Receipt) -> None:
    send_next_to_nothing(receipt)
    receipt.refund_fee_msat = receipt.balance_msat


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (keep_refund, "do not come back; it has to be less than 3000 msat"),
        (keep_without_a_word, "without a word"),
        (keep_with_a_word_of_its_own, "without a word"),
        (send_next_to_nothing, "do not come back; it has to be less than 3000 msat"),
        (invent_a_fee, "do not come back; it has to be less than 3000 msat"),
    ],
)
def test_a_receipt_by_which_more_stays_away_than_a_refund_can_cost_is_objected_to(
    bench: Bench, lie: Callable[[pb.Receipt], None], words: str
) -> None:
    bench.limits["max_prepaid_msat"] = 50_000
    bench.payment["max_increment_msat"] = bench.socket.min_increment_msat = 5_000
    bench.socket.lie_receipt = lie
    bench.start()
    bench.until(payments=1)
    summary = bench.finish()
    assert not summary.is_good
    assert any(words in line for line in summary.objections), summary.objections
