"""What cables are told when they open, resume and ask for receipts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.fakes import (
    CABLE,
    SOCKET,
    Stall,
    WatchedLock,
    hello,
    new_session,
    node_id,
    record_of,
    session_id,
    wait_until,
)
from tests.plugin.still_stall import Wallet
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.lightning.node import NodeUnavailable, signed_text
from wattline.core.session.event import BooksClosed, CableClosed, CreditArrived, RefundOwed
from wattline.core.session.machine import step
from wattline.core.session.state import State
from wattline.device.relays.relay import RelayError
from wattline.plugin.limits import BURST_SHARE, Limits
from wattline.plugin.outlet_state import Condition, LoopEnded
from wattline.plugin.settings import LimitSettings
from wattline.plugin.streams import Refused
from wattline.v1 import charging_pb2 as pb

TOKEN, OTHER_TOKEN = b"\x01" * 32, b"\x02" * 32


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[Stall]:
    with Stall(tmp_path, settles=False) as stall:
        yield stall


@pytest.fixture
def ending_stall(tmp_path: Path) -> Iterator[Stall]:
    """Whose sessions come to their end."""
    with Stall(tmp_path) as stall:
        yield stall


def refusal(stall: Stall, **changes: Any) -> str:
    with pytest.raises(Refused) as caught:
        stall.app.requests.open(stall.request(**changes))
    return caught.value.code


def died_before_its_receipt(token: bytes = TOKEN) -> SessionRecord:
    """CLOSED in the ledger, and the process died then."""
    session = new_session(7)
    for event in (CreditArrived(5000), CableClosed(), BooksClosed(), RefundOwed()):
        session, _ = step(session, event, 0)
    assert session.state is State.CLOSED
    return record_of(session, token, closed_at=2000)


def test_two_opens_with_the_same_token_at_once_open_one_session(stall: Stall) -> None:
    both_here, first_looks = threading.Event(), threading.Event()

    def look() -> None:
        if first_looks.is_set():
            both_here.set()
        first_looks.set()
        assert both_here.wait(3), "the first to look holds until the second waits at the door, or looks as well"

    vars(stall.opener)["_opening"] = WatchedLock(both_here.set)
    stall.ledger.before_look = look
    with ThreadPoolExecutor(2) as pool:
        opens = [pool.submit(stall.app.requests.open, stall.request(TOKEN)) for _ in range(2)]
        hellos = [hello(future.result(5)) for future in opens]
    assert len({opened.session_id for opened in hellos}) == 1
    assert sorted(opened.resumed for opened in hellos) == [False, True]
    assert len(stall.ledger.sessions(10)) == 1


def test_a_session_that_was_never_paid_has_its_receipt_signed_once_however_often_it_is_asked_for(
    ending_stall: Stall,
) -> None:
    stall = ending_stall
    session = stall.open(TOKEN)
    stall.app.requests.close(session, "bye")
    wait_until(lambda: stall.is_over(session))
    for _ in range(20):
        stall.app.requests.resume(pb.Resume(session_id=session, token=TOKEN))
        stall.app.requests.open(stall.request(TOKEN))
    again = next(iter(stall.app.requests.open(stall.request(TOKEN)))).receipt
    assert len(stall.signer.signed) == 1
    assert stall.signer.verify(stall.signer.signed[0], again.signature, SOCKET)
    assert stall.app.requests.receipt(session, TOKEN) == again


@pytest.mark.parametrize("asks", ["sign", "verify"])
def test_no_open_waits_while_the_node_signs_or_looks_at_a_signature_for_another_one(
    ending_stall: Stall, asks: str
) -> None:
    stall = ending_stall
    session = stall.open(TOKEN)
    stall.app.requests.close(session, "bye")
    wait_until(lambda: stall.is_over(session))
    vars(stall.app.receipts)["_unpaid"].clear()  # as after a restart
    slow = stall.request(TOKEN if asks == "sign" else OTHER_TOKEN, signature="" if asks == "sign" else "forged")
    does, is_asked, goes_on = getattr(stall.signer, asks), threading.Event(), threading.Event()

    def held(*what: str) -> object:
        is_asked.set()
        assert goes_on.wait(5)
        return does(*what)

    vars(stall.signer)[asks] = held
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stall.app.requests.open, slow)
        assert is_asked.wait(5)
        other = pool.submit(stall.app.requests.open, stall.request(b"\x04" * 32))
        assert hello(other.result(3)).session_id
        goes_on.set()
        assert (first.exception(5) is not None) is (asks == "verify")


@pytest.mark.parametrize("method", [pb.METHOD_KEYSEND, pb.METHOD_ONCHAIN])
def test_a_cable_whose_payment_cost_it_nothing_counts_as_one_that_has_not_paid(
    tmp_path: Path, method: pb.Method.ValueType
) -> None:
    with Stall(tmp_path, takes_onchain=True) as stall:
        limits: Limits = vars(stall.app.requests)["_limits"]
        for number, cost_msat in ((1, 0), (2, 5_000)):
            request = stall.request(number.to_bytes(32, "big"), method=method)
            request.signature = signature(request, CABLE)
            session = hello(stall.app.requests.open(request)).session_id
            if method == pb.METHOD_KEYSEND:
                stall.pay(session, number, 50_000)
            else:
                aggregate = stall.ask_for_address(session)
                stall.hand_over(session, 1, Wallet.of(stall.chain, aggregate.script).sign(aggregate.rules.floor_sat))
            stall.deliver(cost_msat)
            refusal(stall, token=b"\x05" * 32)  # at each open it is looked at who has paid
            assert limits.has_paid(CABLE) is (cost_msat > 0)
            if not cost_msat:
                stall.app.requests.close(session, "done")
                wait_until(lambda session=session: stall.is_over(session))  # type: ignore[misc]


def test_sessions_that_are_paid_buy_nothing_and_get_all_back_are_as_many_as_opens_that_nobody_pays(
    ending_stall: Stall,
) -> None:
    stall, most, began = ending_stall, 6, time.monotonic()
    stall.limit(Limits(LimitSettings(opens_per_minute=most)))
    opened = 0

    def buy_nothing(_: int) -> None:
        nonlocal opened
        session = stall.open(opened.to_bytes(32, "big"))
        opened += 1
        stall.pay(session, opened, 50_000)
        stall.app.requests.close(session, "done")
        wait_until(lambda: stall.is_over(session))

    with pytest.raises(Refused) as caught:
        list(map(buy_nothing, range(2 * most)))
    assert caught.value.code == "too_many_opens"
    assert opened <= most * (BURST_SHARE + (time.monotonic() - began) / 60) + 1


def test_an_open_with_the_token_of_a_session_is_answered_with_it(stall: Stall) -> None:
    session = stall.open(TOKEN)
    again = hello(stall.app.requests.open(stall.request(TOKEN)))
    assert (again.session_id, again.resumed) == (session, True)
    assert stall.open(OTHER_TOKEN) != session, "while nobody has paid, others may be about to"
    stall.credit(session, 1, 5000)
    assert refusal(stall, token=b"\x03" * 32) == "outlet_busy"


def test_an_open_that_cannot_be_saved_leaves_its_outlet_free_and_nothing_behind(stall: Stall) -> None:
    stall.ledger.full = True
    with pytest.raises(LedgerError):
        stall.app.requests.open(stall.request(TOKEN))
    assert stall.outlet.view.session is None
    assert stall.outlet.view.condition is Condition.AVAILABLE
    stall.ledger.full = False
    stall.app.sessions.save_changed()  # no statement of a session that the ledger does not know
    assert not stall.app.sessions.unsaved
    assert list(stall.ledger.sessions(10)) == []
    session = stall.open(OTHER_TOKEN)
    assert stall.session.session_id == session
    stored = stall.ledger.session(session)
    assert stored is not None
    assert stored.session.state is State.OPEN


def test_an_open_at_an_outlet_that_has_stopped_is_refused_at_once_and_leaves_nothing_behind(stall: Stall) -> None:
    stall.outlet.stop()
    with pytest.raises(LoopEnded) as caught:
        stall.app.requests.open(stall.request(TOKEN))
    assert caught.value.code == "shutting_down"
    stall.app.sessions.save_changed()  # no statement of a session that the ledger does not know
    assert list(stall.ledger.sessions(10)) == []


def test_an_open_is_in_the_ledger_before_the_cable_hears_of_it(stall: Stall) -> None:
    session = stall.open(TOKEN)
    record = stall.ledger.session(session)
    assert record is not None
    assert record.cable_node_id == CABLE


def test_nothing_is_sold_while_the_ledger_cannot_be_written_and_again_when_it_can(stall: Stall) -> None:
    stall.app.sessions.keep(pb.Statement(session_id=session_id(9), sequence=1))  # of no session: cannot be written
    with pytest.raises(Exception, match="never saved"):
        stall.app.sessions.save_changed()
    assert refusal(stall) == "ledger_failed"
    assert stall.outlet.view.session is None
    stall.app.sessions.never_opened(session_id(9))
    stall.app.sessions.save_changed()
    assert stall.open(TOKEN)


def test_a_token_of_another_session_opens_no_door(stall: Stall) -> None:
    session = stall.open(TOKEN)
    with pytest.raises(Refused) as caught:
        stall.app.requests.resume(pb.Resume(session_id=session, token=OTHER_TOKEN))
    assert caught.value.code == "wrong_token"
    stall.ledger.save_session(died_before_its_receipt(OTHER_TOKEN))
    for known, token in ((session, OTHER_TOKEN), (session_id(7), TOKEN)):
        with pytest.raises(Refused) as caught:
            stall.app.requests.resume(pb.Resume(session_id=known, token=token))
        assert caught.value.code == "wrong_token"
        with pytest.raises(Refused) as caught:
            stall.app.requests.receipt(known, token)
        assert caught.value.code == "unknown_session"
    assert stall.signer.signed == []
    assert hello(stall.app.requests.resume(pb.Resume(session_id=session, token=TOKEN))).session_id == session


def test_a_session_that_never_was_cannot_be_resumed(stall: Stall) -> None:
    with pytest.raises(Refused) as caught:
        stall.app.requests.resume(pb.Resume(session_id=session_id(3), token=TOKEN))
    assert caught.value.code == "unknown_session"


def test_a_receipt_that_cannot_be_had_yet_leaves_no_stream_behind(stall: Stall) -> None:
    stall.ledger.save_session(died_before_its_receipt())
    resume = pb.Resume(session_id=session_id(7), token=TOKEN)
    stall.signer.gone = True
    with pytest.raises(NodeUnavailable):
        stall.app.requests.resume(resume)
    assert not stall.app.streams.is_attached(session_id(7))
    stall.signer.gone = False
    assert next(iter(stall.app.requests.resume(resume))).receipt.receipt


def test_a_receipt_that_was_never_signed_is_signed_when_somebody_asks_and_then_kept(stall: Stall) -> None:
    record = died_before_its_receipt()
    stall.ledger.save_session(record)
    assert stall.ledger.receipt(session_id(7)) is None
    signed = stall.app.requests.receipt(session_id(7), TOKEN)
    receipt = pb.Receipt.FromString(signed.receipt)
    assert (receipt.session_id, receipt.node_id, receipt.closed_at) == (session_id(7), SOCKET, 2000)
    assert receipt.refund_status == pb.REFUND_STATUS_OWED
    assert stall.signer.verify(stall.signer.signed[0], signed.signature, SOCKET)
    assert stall.app.requests.receipt(session_id(7), TOKEN) == signed
    assert len(stall.signer.signed) == 1
    assert len(stall.ledger.receipts(session_id(7))) == 1


def test_a_receipt_that_cannot_be_signed_now_is_signed_later(stall: Stall) -> None:
    stall.ledger.save_session(died_before_its_receipt())
    stall.signer.gone = True
    with pytest.raises(NodeUnavailable):
        stall.app.requests.receipt(session_id(7), TOKEN)
    stall.signer.gone = False
    assert stall.app.requests.receipt(session_id(7), TOKEN).signature


def test_who_resumes_a_session_that_is_over_gets_its_receipt_and_the_end(stall: Stall) -> None:
    stall.ledger.save_session(died_before_its_receipt())
    (message,) = stall.app.requests.resume(pb.Resume(session_id=session_id(7), token=TOKEN))
    assert pb.Receipt.FromString(message.receipt.receipt).session_id == session_id(7)
    (again,) = stall.app.requests.open(stall.request(TOKEN))
    assert again == message


def test_there_is_no_receipt_of_a_session_that_lives(stall: Stall) -> None:
    session = stall.open(TOKEN)
    with pytest.raises(Refused) as caught:
        stall.app.requests.receipt(session, TOKEN)
    assert caught.value.code == "not_closed"


def test_opens_that_cannot_be_are_refused_with_their_reason_and_leave_the_outlet_free(stall: Stall) -> None:
    assert refusal(stall, token=b"short") == "bad_request"
    assert refusal(stall, outlet_id="B7") == "unknown_outlet"
    assert refusal(stall, method=pb.METHOD_ONCHAIN) == "method_not_supported"
    assert refusal(stall, cable_node_id="nobody") == "bad_request"
    assert refusal(stall, tariff_id="yesterday") == "tariff_changed"
    assert refusal(stall, signature="forged") == "not_allowed"
    stall.app.ready.clear()
    assert refusal(stall) == "starting"
    with pytest.raises(Refused):
        stall.app.requests.resume(pb.Resume(session_id=session_id(1), token=TOKEN))
    assert stall.outlet.view.session is None
    assert list(stall.ledger.sessions(10)) == []


def test_an_outlet_whose_relay_does_not_answer_is_not_sold(stall: Stall) -> None:
    stall.hardware.open_error = RelayError("relay_bus_error", "no chip answers")
    assert refusal(stall) == "outlet_faulted"
    assert stall.outlet.view.session is None
    assert list(stall.ledger.sessions(10)) == []


def test_only_cables_on_the_list_are_served_when_there_is_one(stall: Stall) -> None:
    vars(stall.opener)["_settings"] = stall.settings.model_copy(
        update={"access": stall.settings.access.model_copy(update={"allow_node_ids": [CABLE]})}
    )
    assert refusal(stall) == "not_allowed", "not signed"
    stranger = stall.request(cable_node_id=node_id(3))
    assert refusal(stall, cable_node_id=node_id(3), signature=signature(stranger, node_id(3))) == "not_allowed"
    elsewhere = stall.request(socket_node_id=node_id(7))
    said = signature(elsewhere, CABLE)
    assert refusal(stall, socket_node_id=node_id(7), signature=said) == "not_allowed", "signed for another socket"
    assert refusal(stall, signature=said) == "not_allowed"
    request = stall.request()
    request.signature = signature(request, CABLE)
    assert hello(stall.app.requests.open(request)).session_id


def signature(request: pb.Open, by: str) -> str:
    return f"{by} says {signed_text('open', request.SerializeToString(deterministic=True))}"


def test_the_offer_is_signed_and_carries_the_nonce(stall: Stall) -> None:
    answer = stall.app.requests.offer(b"n" * 16)
    offer = pb.Offer.FromString(answer.offer)
    assert (offer.nonce, offer.node_id, offer.outlets[0].available) == (b"n" * 16, SOCKET, True)
    assert stall.signer.verify(stall.signer.signed[0], answer.signature, SOCKET)
    for length in (15, 33):
        with pytest.raises(Refused):
            stall.app.requests.offer(b"n" * length)
