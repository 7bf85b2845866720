from __future__ import annotations

import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import CABLE_NODE, SOCKET_NODE, FakeSigner, wait_for
from wattline.cable.closing import StopWish
from wattline.core.ledger.outgoing import Purpose
from wattline.core.lightning.node import ChannelBalance, is_signed_by
from wattline.core.tariff import Tariff
from wattline.device.meters.reading import MeterError
from wattline.v1 import charging_pb2 as pb


def test_a_session_is_paid_while_energy_flows_and_ends_with_a_receipt(bench: Bench) -> None:
    bench.start()
    bench.until(payments=8)
    summary = bench.finish()
    assert summary.stop_reason == "done"
    assert summary.is_good, summary
    assert bench.socket.session.cable_reason == "done"
    assert summary.receipt
    assert summary.energy_uwh_socket > 0
    assert abs(summary.energy_uwh_socket - summary.energy_uwh_cable) < 200_000
    assert summary.paid_msat == summary.credited_msat == bench.socket.session.credited
    assert summary.credited_msat == summary.charged_msat + summary.refunded_msat
    assert summary.refund_seen is True
    assert summary.payments == len(bench.socket.orders)


def test_what_is_prepaid_stays_below_its_cap_whatever_the_socket_wishes(bench: Bench) -> None:
    bench.limits["max_prepaid_msat"] = 700
    bench.socket.min_increment_msat = 5_000
    bench.start()
    bench.until(payments=2)
    summary = bench.finish()
    assert 0 < summary.max_prepaid_msat <= 700
    assert bench.socket.peak_balance <= 700


def test_the_power_never_pauses_while_payments_are_slow_but_arrive(bench: Bench) -> None:
    bench.node.delay_s = 0.3
    bench.start()
    bench.until(payments=8)
    states = {snapshot.state for snapshot in bench.listener.snapshots if snapshot.payments > 1}
    bench.finish()
    assert states == {"delivering"}


def test_a_step_of_the_load_is_followed_by_larger_payments(bench: Bench) -> None:
    bench.world.set_power(50_000)
    bench.start()
    bench.until(payments=3)
    wait_for(lambda: bench.shown.power_mw == 50_000)
    before = bench.node.sends[-1][1]
    bench.world.set_power(1_300_000)
    count = len(bench.socket.orders)
    bench.until(payments=count + 6)
    summary = bench.finish()
    assert bench.node.sends[-1][1] > before
    assert summary.is_good, summary


def test_the_session_fee_is_paid_before_delivery_begins(bench: Bench) -> None:
    bench.socket.tariff = Tariff.of(300_000, 0, 900)
    bench.limits["max_session_fee_msat"] = 900
    bench.start()
    bench.until(payments=3)
    summary = bench.finish()
    assert summary.is_good, summary
    assert summary.charged_msat > 900


def test_meter_values_go_up_about_once_a_second_counted_from_the_open(bench: Bench) -> None:
    bench.start()
    wait_for(lambda: len(bench.socket.meter_values) >= 3)
    bench.finish()
    assert bench.socket.meter_values[0].energy_uwh < 1_000_000
    assert bench.socket.meter_values[-1].energy_uwh > bench.socket.meter_values[0].energy_uwh
    assert bench.socket.meter_values[-1].voltage_mv == 48_000


def test_an_open_is_signed_when_the_cable_is_to_identify_itself(bench: Bench) -> None:
    bench.identify = True
    bench.start()
    bench.until(payments=1)
    bench.finish()
    sent = bench.socket.opens[0]
    unsigned = pb.Open()
    unsigned.CopyFrom(sent)
    unsigned.signature = ""
    content = unsigned.SerializeToString(deterministic=True)
    assert is_signed_by(FakeSigner(CABLE_NODE), "open", content, sent.signature, CABLE_NODE)


def test_the_first_available_outlet_is_taken_when_none_is_named(bench: Bench) -> None:
    bench.start()
    bench.until(payments=1)
    assert bench.finish().outlet_id == "A1"


# What the budgets and failures end.


def test_the_session_budget_ends_the_session_and_is_not_exceeded(bench: Bench) -> None:
    bench.limits.update(max_prepaid_msat=400, max_session_msat=450)
    summary = bench.run()
    assert summary.stop_reason == "budget_spent"
    assert "max_session_msat" in summary.message
    assert summary.paid_msat <= 450
    assert bench.ledger.outgoing.sent_msat() <= 450


def test_the_day_budget_counts_the_sessions_before(bench: Bench) -> None:
    bench.limits.update(max_prepaid_msat=400, max_session_msat=600, max_day_msat=600)
    bench.start()
    bench.until(payments=2)
    first = bench.finish()
    bench.wish.__init__()  # type: ignore[misc]
    summary = bench.run()
    assert summary.stop_reason == "budget_spent"
    assert "max_day_msat" in summary.message
    assert first.paid_msat + summary.paid_msat <= 600


def test_a_prepaid_cap_too_small_to_begin_is_said(bench: Bench) -> None:
    bench.limits["max_prepaid_msat"] = 20
    summary = bench.run()
    assert summary.stop_reason == "prepaid_limit"
    assert bench.node.sends == []
    assert bench.socket.sessions == {}


def test_a_session_fee_above_what_may_be_prepaid_is_said_before_anything_is_paid(bench: Bench) -> None:
    bench.limits["max_session_fee_msat"] = bench.limits["max_prepaid_msat"]
    bench.socket.tariff = Tariff.of(300_000, 0, 4_990)
    summary = bench.run()
    assert summary.stop_reason == "prepaid_limit"
    assert "4990 msat of it for the session" in summary.message
    assert bench.node.sends == []
    assert bench.socket.sessions == {}


def test_payments_that_the_socket_refuses_end_the_session_with_its_reason(bench: Bench) -> None:
    bench.socket.refuse_payments = ("outlet_faulted", "the meter is broken")
    summary = bench.run()
    assert summary.stop_reason == "payment_failed"
    assert "outlet_faulted" in summary.message
    assert summary.paid_msat == 0


def test_a_few_failures_are_survived(bench: Bench) -> None:
    bench.socket.refuse_payments = ("starting", "not ready yet")
    bench.start()
    wait_for(lambda: any("payment refused: starting" in line for line in bench.listener.lines))
    bench.socket.refuse_payments = None
    bench.until(payments=4)
    summary = bench.finish()
    assert summary.is_good, summary
    assert summary.failed_payments >= 1


def test_fees_make_the_increment_grow_until_they_are_within_the_ratio(bench: Bench) -> None:
    bench.node.fee_msat = 100
    bench.limits.update(max_fee_ratio=0.1, max_prepaid_msat=20_000)
    bench.start()
    bench.until(payments=1)
    summary = bench.finish()
    assert all(amount >= 1_000 for _, amount, _ in bench.node.sends)
    assert summary.fees_msat == 100 * summary.payments


def test_the_cable_says_when_no_allowed_payment_is_worth_its_fee(bench: Bench) -> None:
    bench.node.fee_msat = 5_000
    bench.limits.update(max_fee_ratio=0.01)
    summary = bench.run()
    assert summary.stop_reason == "fee_too_high"
    assert summary.paid_msat == 0


def test_where_no_single_route_carries_it_payments_get_smaller(bench: Bench) -> None:
    bench.node.largest_msat = 60
    bench.start()
    bench.until(payments=8)
    summary = bench.finish()
    assert summary.is_good, summary
    assert max(amount for _, amount, _ in bench.node.sends) <= 60


# What goes wrong on the way.


def test_a_cut_stream_is_resumed_with_the_token(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.socket.cut_streams()
    wait_for(lambda: bench.socket.resumes == 1)
    count = len(bench.socket.orders)
    bench.until(payments=count + 3)
    summary = bench.finish()
    assert summary.is_good, summary
    assert len(bench.socket.sessions) == 1


def test_a_socket_that_is_gone_for_too_long_is_given_up(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.world.switch(False)
    bench.socket.stop()
    summary = bench.wait(60)
    assert summary.stop_reason == "socket_lost"
    assert not summary.is_good
    assert "the socket gave no receipt" in summary.objections


def test_a_socket_that_gave_no_receipt_is_not_paid_again_without_a_word_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.closing.RECEIPT_MS", 600)
    bench.socket.gives_receipt = False
    for visits in range(2):
        bench.wish = StopWish()
        paid = len(bench.socket.orders)
        bench.start()
        bench.until(payments=paid + 2)
        bench.finish()
        told = [line for line in bench.listener.lines if f"gave no receipt for {visits} earlier session(s)" in line]
        assert len(told) == min(visits, 1), bench.listener.lines
    # Of another socket nothing is said.
    assert not bench.ledger.cable_sessions.without_receipt("02" * 33, 9)


def test_a_session_that_the_socket_ends_is_told_from_one_of_our_own(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.socket.close_session(bench.socket.session, "operator_stopped")
    summary = bench.wait()
    assert summary.stop_reason == "socket_closed"
    assert summary.socket_stop_reason == "operator_stopped"
    assert summary.objections == ()
    assert not summary.is_good


def test_a_broken_own_meter_ends_the_session_with_its_code(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.meter.error = MeterError("meter_frozen", "energy stands still")
    summary = bench.wait()
    assert summary.stop_reason == "meter_frozen"
    assert bench.socket.session.cable_reason == "meter_frozen"
    assert bench.meter.is_closed


def test_without_an_own_meter_no_session_is_opened(bench: Bench) -> None:
    bench.meter.error = MeterError("meter_bus_error", "no answer at 0x41")
    summary = bench.run()
    assert summary.stop_reason == "meter_bus_error"
    assert bench.socket.sessions == {}


def test_a_receipt_that_the_stream_did_not_bring_is_asked_for(bench: Bench) -> None:
    bench.socket.sends_receipt = False
    bench.start()
    bench.until(payments=2)
    bench.wish.want("done", "enough")
    wait_for(lambda: bench.socket.session.receipt is not None)
    bench.socket.cut_streams()
    summary = bench.wait()
    assert summary.receipt
    assert summary.is_good, summary


def test_the_time_that_was_given_ends_the_session_as_done(bench: Bench) -> None:
    bench.wish.__init__(3_500)  # type: ignore[misc]
    summary = bench.run()
    assert summary.stop_reason == "done"
    assert summary.is_good, summary
    assert 2 <= summary.seconds < 10


@pytest.mark.parametrize("code", ["not_allowed", "outlet_busy"])
def test_a_refused_open_is_told_with_the_socket_s_words(bench: Bench, code: str) -> None:
    bench.socket.refuse_open = [pb.Refusal(code=code, message="not for you")]
    summary = bench.run()
    assert summary.stop_reason == code
    assert "not for you" in summary.message
    assert bench.ledger.cable_sessions.unfinished() is None


def test_a_price_that_changed_between_offer_and_open_is_looked_at_again(bench: Bench) -> None:
    bench.socket.refuse_open = [pb.Refusal(code="tariff_changed", message="ask again")]
    bench.start()
    bench.until(payments=1)
    assert bench.finish().is_good


def test_a_socket_that_is_starting_is_waited_for(bench: Bench) -> None:
    bench.socket.refuse_open = [pb.Refusal(code="starting", message="in a moment")]
    bench.start()
    bench.until(payments=1)
    assert bench.finish().is_good


# Restarts.


def test_a_killed_cable_resumes_its_session_and_pays_nothing_twice(bench: Bench) -> None:
    bench.start()
    bench.until(payments=3)
    bench.crash()
    assert bench.socket.session.cable_reason == ""
    bench.start()
    wait_for(lambda: bench.socket.resumes == 1)
    count = len(bench.socket.orders)
    bench.until(payments=count + 2)
    summary = bench.finish()
    assert summary.is_good, summary
    assert len(bench.socket.sessions) == 1
    assert summary.paid_msat == bench.socket.session.credited
    assert len(set(bench.socket.orders)) == len(bench.socket.orders)
    assert abs(summary.energy_uwh_cable - summary.energy_uwh_socket) < 200_000


def test_a_payment_in_doubt_over_a_restart_is_counted_once(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.node.hold.clear()
    wait_for(lambda: bench.node.held)
    bench.crash()
    assert bench.node.held[0] in [intent.payment_hash for intent in bench.ledger.outgoing.pending()]
    bench.start()
    wait_for(lambda: any("in doubt" in line for line in bench.listener.lines))
    bench.node.hold.set()
    wait_for(lambda: not bench.ledger.outgoing.pending() and bench.shown.in_doubt == 0)
    summary = bench.finish()
    assert summary.is_good, summary
    assert summary.paid_msat == bench.socket.session.credited
    assert bench.ledger.outgoing.sent_msat() == summary.paid_msat


def test_an_intent_that_never_left_is_sent_again_while_the_session_is_open(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.node.lost_sends = 1
    wait_for(lambda: bench.node.is_down)
    bench.crash()
    lost = bench.ledger.outgoing.pending()[0]
    bench.node.is_down = False
    bench.start()
    wait_for(lambda: (lost.session_id, str(lost.sequence)) in bench.socket.orders)
    wait_for(lambda: bench.shown.in_doubt == 0)
    summary = bench.finish()
    assert summary.is_good, summary
    assert summary.paid_msat == bench.socket.session.credited


def test_after_a_restart_a_session_that_is_over_is_put_on_record_and_a_new_one_begins(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.crash()
    old = bench.socket.session
    bench.socket.close_session(old, "cable_lost")
    bench.start()
    wait_for(lambda: len(bench.socket.sessions) == 2)
    count = len(bench.socket.orders)
    bench.until(payments=count + 1)
    summary = bench.finish()
    assert summary.is_good, summary
    assert summary.session_id != old.session_id
    kept = bench.ledger.cable_sessions.of(old.session_id)
    assert kept is not None
    assert kept.closed_at is not None
    assert old.receipt is not None
    assert kept.receipt == old.receipt.receipt


def test_increments_are_recorded_under_their_session_and_sequence_from_one_on(bench: Bench) -> None:
    bench.start()
    bench.until(payments=3)
    summary = bench.finish()
    intents = bench.ledger.outgoing.of_session(Purpose.INCREMENT, summary.session_id)
    assert [intent.sequence for intent in intents] == list(range(1, len(intents) + 1))
    assert {intent.destination for intent in intents} == {SOCKET_NODE}


def test_a_node_that_is_still_connecting_to_its_peers_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable, asked = list(bench.node.channels()), iter(range(100))
    monkeypatch.setattr(bench.node, "channels", lambda: usable if next(asked) >= 2 else [])
    bench.start()
    bench.until(payments=1)
    assert bench.finish().stop_reason == "done"


def test_without_a_channel_no_session_is_opened(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.node, "channels", list)
    monkeypatch.setattr("wattline.cable.service.CHANNEL_MS", 50)
    summary = bench.run()
    assert (summary.stop_reason, summary.session_id, summary.is_good) == ("no_channel", "", False)
    assert bench.socket.opens == []
    assert bench.ledger.cable_sessions.unfinished() is None


def test_a_node_without_its_keysend_plugin_is_told_before_anything_is_paid(bench: Bench) -> None:
    """Nothing could bring a refund; the session is bought all the same."""
    bench.node.has_keysend = False
    bench.start()
    bench.until(payments=1)
    bench.finish()
    lines = bench.listener.lines
    (warning,) = [number for number, line in enumerate(lines) if line.startswith("warning: keysend_off: ")]
    assert "no refund can arrive" in lines[warning]
    assert warning < next(number for number, line in enumerate(lines) if line.startswith("session "))


@pytest.mark.parametrize("receivable_msat", [0, 99, 100])
def test_it_is_said_when_nothing_could_come_back_and_bought_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, receivable_msat: int
) -> None:
    bench.socket.min_refund_msat = 100
    monkeypatch.setattr(bench.node, "channels", lambda: [ChannelBalance(SOCKET_NODE, "1x1x1", 10**8, receivable_msat)])
    bench.start()
    bench.until(payments=2)
    assert bench.finish().stop_reason == "done"
    warnings = [event for event in bench.listener.lines if event.startswith("warning: no_way_back: ")]
    assert len(warnings) == (1 if receivable_msat < 100 else 0)
    assert all("at most 5.000 sat" in warning for warning in warnings)


@pytest.mark.parametrize("is_honest", [True, False])
def test_the_receipt_of_a_session_that_ended_while_the_cable_was_away_is_held_against_the_own_account(
    bench: Bench, is_honest: bool
) -> None:
    bench.start()
    bench.until(3)
    bench.crash()
    if not is_honest:
        bench.socket.lie_receipt = lambda told: setattr(told, "credited_msat", told.charged_msat)
    bench.socket.close_session(bench.socket.session, "cable_lost")
    bench.start()
    wait_for(lambda: len(bench.socket.sessions) == 2, what=f"{bench.listener.lines}")
    bench.finish()
    warnings = [line for line in bench.listener.lines if line.startswith("warning: session")]
    assert bool(warnings) is not is_honest, bench.listener.lines
    assert any("were paid" in line for line in warnings) is not is_honest
