"""A socket that says what it likes, on real gRPC: what the cable shows of it, what it makes of it, and when it ends."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import pytest
from rich.console import Console

from tests.cable.conftest import Bench
from tests.cable.fakes import wait_for
from wattline.cable.closing import Summary
from wattline.cable.opening import LineLimit
from wattline.cli.cable_view import LiveView, Snapshot, ending
from wattline.v1 import charging_pb2 as pb

EVIL = "\x1b[2J\x1b]0;owned\x07\r\n\u202e\u2028[red]free[/red]\u200b\x9b" + "A" * 900
WORDS = "\\x1b[2J"


def everything(bench: Bench, summary: Summary) -> list[str]:
    """All that a person, a log or a program gets to see."""
    shown = [str(value) for snapshot in bench.listener.snapshots for value in asdict(snapshot).values()]
    told = [str(value) for value in asdict(summary).values()]
    return [*bench.listener.lines, *shown, *told, *ending(summary).split("\n")]


def check_shown(bench: Bench, summary: Summary, *words: str) -> None:
    lines = everything(bench, summary)
    for line in lines:
        assert line.isprintable(), repr(line)
        assert len(line) < 1_500
    for word in words:
        assert any(word in line for line in lines), (word, bench.listener.lines, summary)
    json.dumps(summary.to_json()).encode("ascii")


def test_a_refusal_is_shown_without_what_it_would_do_to_a_terminal(bench: Bench) -> None:
    bench.socket.refuse_open = [pb.Refusal(code="outlet_busy", message=EVIL)]
    summary = bench.run()
    assert summary.stop_reason == "outlet_busy"
    check_shown(bench, summary, WORDS, "characters)")


def test_a_refusal_that_calls_itself_done_is_no_good_end(bench: Bench) -> None:
    bench.socket.refuse_open = [pb.Refusal(code="done", message="all went well")]
    summary = bench.run()
    assert summary.stop_reason == "socket_refuses"
    assert not summary.is_good
    assert "done" in summary.message


def test_why_an_outlet_is_not_available_is_shown_harmless(bench: Bench) -> None:
    bench.socket.available = False
    bench.socket.lie_offer = lambda offer: setattr(offer.outlets[0], "unavailable_reason", EVIL)
    summary = bench.run()
    assert summary.stop_reason == "outlet_busy"
    check_shown(bench, summary, WORDS)


def test_a_refused_payment_is_shown_harmless_and_a_flood_of_them_is_some_lines(bench: Bench) -> None:
    bench.payment["max_failures_in_a_row"] = 5
    bench.socket.refuse_payments = ("over_credit_cap", EVIL)
    bench.start()
    wait_for(lambda: bench.socket.sessions)
    account = bench.socket.session
    refused = pb.PaymentRefused(payment_hash="ab" * 32, amount_msat=1, code="over_credit_cap", message=EVIL)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            bench.socket._send(account, pb.ChargeResponse(payment_refused=refused))
            time.sleep(0.0005)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    summary = bench.wait()
    stop.set()
    thread.join()
    assert summary.stop_reason == "payment_failed"
    check_shown(bench, summary, WORDS, "others)")
    assert len(bench.listener.lines) < 3 * LineLimit.LINES


@pytest.mark.parametrize(
    "lie",
    [
        lambda offer: setattr(offer.outlets[0], "outlet_id", EVIL),
        lambda offer: setattr(offer.outlets[0], "max_power_mw", 2**64 - 1),
        lambda offer: setattr(offer, "min_refund_msat", 2**63),
        lambda offer: setattr(offer, "cable_lost_s", 2**32 - 1),
        lambda offer: setattr(offer, "statement_interval_ms", 2**32 - 1),
        lambda offer: setattr(offer.tariff, "energy_msat_per_kwh", 2**64 - 1),
        lambda offer: setattr(offer.tariff, "tariff_id", "a b"),
        lambda offer: offer.ClearField("tariff"),
        lambda offer: offer.outlets.extend([offer.outlets[0]] * 300),
    ],
    ids=["outlet_id", "power", "refund", "lost", "interval", "price", "tariff_id", "no tariff", "outlets"],
)
def test_an_offer_that_cannot_be_is_not_taken_and_nothing_is_written(
    bench: Bench, lie: Callable[[pb.Offer], None]
) -> None:
    bench.socket.lie_offer = lie
    summary = bench.run()
    assert summary.stop_reason == "offer_invalid"
    check_shown(bench, summary, "allowed: ")
    assert bench.ledger.cable_sessions.unfinished() is None
    assert bench.node.sends == []


def test_a_socket_that_keeps_more_than_the_limit_is_not_taken(bench: Bench) -> None:
    bench.socket.min_refund_msat = 1_001  # of 5_000 that may be prepaid a fifth, unless told otherwise
    summary = bench.run()
    assert summary.stop_reason == "socket_keeps_too_much"
    assert "1001 msat" in summary.message
    assert "max_kept_msat" in summary.message
    bench.limits["max_kept_msat"] = 1_001
    bench.start()
    bench.until(payments=1)
    assert bench.finish().stop_reason == "done"


def test_an_impossible_statement_makes_no_room_and_ends_the_session(bench: Bench) -> None:
    def lie(statement: pb.Statement) -> None:
        statement.energy_uwh += 10**12
        statement.charged_msat += 300 * 10**6
        statement.balance_msat -= 300 * 10**6

    bench.start()
    bench.until(payments=2)
    bench.socket.lie_statement = lie
    summary = bench.wait()
    assert summary.stop_reason == "energy_mismatch"
    assert summary.max_prepaid_msat <= 5_000
    assert bench.socket.peak_balance <= 5_000


@pytest.mark.parametrize(
    "lie",
    [
        lambda statement: setattr(statement, "energy_uwh", 2**64 - 1),
        lambda statement: setattr(statement, "power_mw", -(2**63)),
        lambda statement: setattr(statement, "balance_msat", -(2**63)),
        lambda statement: setattr(statement, "stop_reason", EVIL),
        lambda statement: setattr(statement, "session_id", "../../etc"),
    ],
    ids=["energy", "power", "balance", "stop_reason", "session_id"],
)
def test_a_statement_that_cannot_be_ends_the_session_and_the_socket_is_told_why(
    bench: Bench, lie: Callable[[pb.Statement], None]
) -> None:
    bench.start()
    bench.until(payments=2)
    bench.socket.lie_statement = lie
    summary = bench.wait()
    assert summary.stop_reason == "message_invalid"
    check_shown(bench, summary, "allowed: ")
    assert bench.socket.session.cable_reason == "message_invalid"


def test_a_message_larger_than_any_honest_one_ends_the_session(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    big = pb.PaymentRefused(code="over_credit_cap", message="x" * 900_000)
    bench.socket._send(bench.socket.session, pb.ChargeResponse(payment_refused=big))
    summary = bench.wait()
    assert summary.stop_reason == "message_invalid"
    assert "larger than" in summary.message


def test_a_receipt_that_cannot_be_is_no_receipt(bench: Bench) -> None:
    bench.socket.lie_receipt = lambda receipt: setattr(receipt, "stop_reason", EVIL)
    bench.start()
    bench.until(payments=2)
    summary = bench.finish()
    assert not summary.receipt
    assert not summary.is_good
    check_shown(bench, summary, "the signed receipt cannot be")


def test_what_grpc_says_in_the_name_of_a_socket_is_shown_harmless(bench: Bench) -> None:
    bench.socket.offer_error = EVIL
    summary = bench.run()
    assert summary.stop_reason == "socket_unreachable"
    check_shown(bench, summary, "failed_precondition")


def test_a_stop_by_a_person_ends_soon_although_the_socket_wants_to_be_waited_for(bench: Bench) -> None:
    bench.socket.cable_lost_s = 86_400
    bench.start()
    bench.until(payments=2)
    bench.socket.stop()
    wait_for(lambda: not bench.shown.connected, what="the cut is seen")
    began = time.monotonic()
    summary = bench.finish("operator")
    assert time.monotonic() - began < 10
    assert summary.stop_reason == "operator"
    assert summary.objections == ("the socket gave no receipt",)


def test_a_stop_by_a_person_ends_soon_although_the_socket_never_gives_a_receipt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.closing.HURRY_MS", 500)
    bench.socket.gives_receipt = False
    bench.start()
    bench.until(payments=2)
    began = time.monotonic()
    summary = bench.finish("operator")
    assert time.monotonic() - began < 8
    assert not summary.receipt


def test_a_wish_of_a_person_ends_the_wait_for_a_session_that_is_taken_up(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    bench.crash()
    bench.socket.answers_resume = False
    bench.start()
    wait_for(lambda: bench.socket.resumes, what="the resume")
    began = time.monotonic()
    assert bench.finish("operator").stop_reason == "nothing_delivered"
    assert time.monotonic() - began < 8
    assert bench.ledger.cable_sessions.unfinished() is not None, "it is taken up by the next run"


def test_brackets_of_a_socket_are_no_colours() -> None:
    screen = io.StringIO()
    view = LiveView(Console(file=screen, width=100, height=40, color_system=None))
    view.draw(snapshot_with("[red]A1[/red]"))
    view.event("[bold]free[/bold] :smile:")
    console = Console(file=screen, width=100, height=40, color_system=None, record=True)
    console.print(view._whole())
    text = console.export_text()
    assert "[red]A1[/red]" in text
    assert "[bold]free[/bold] :smile:" in text


def snapshot_with(outlet_id: str) -> Snapshot:
    numbers = {name: 1 for name, kind in Snapshot.__annotations__.items() if kind in ("int", "float")}
    texts = {name: "x" for name, kind in Snapshot.__annotations__.items() if kind == "str"}
    values = numbers | texts | {"outlet_id": outlet_id, "relay_closed": True, "connected": True, "hold": None}
    return Snapshot(**values)  # type: ignore[arg-type]
