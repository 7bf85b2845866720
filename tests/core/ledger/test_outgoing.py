"""The payer's intents: nothing is paid twice, and budgets see all that may leave."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from tests.core.ledger.samples import intent, session_id
from wattline.core.clock import DAY_S, Moment
from wattline.core.errors import StopError, WattlineError
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.outgoing import AlreadyPaying, IntentStatus, Purpose

HASHES = [intent(number).payment_hash for number in range(10)]


def test_an_intent_comes_back_as_it_was_written(ledger: Ledger) -> None:
    ledger.outgoing.add(intent(1))
    assert ledger.outgoing.pending() == [intent(1)]
    assert ledger.outgoing.intent(HASHES[1]) == intent(1)
    assert ledger.outgoing.intent(HASHES[2]) is None


def test_the_same_thing_is_not_paid_twice(ledger: Ledger) -> None:
    outgoing = ledger.outgoing
    outgoing.add(intent(1))
    with pytest.raises(AlreadyPaying):
        outgoing.add(intent(2, sequence=1))
    outgoing.complete(HASHES[1], 1010, 5)
    with pytest.raises(AlreadyPaying):
        outgoing.add(intent(2, sequence=1))
    assert outgoing.intent(HASHES[2]) is None
    # Another number, purpose or session is another thing.
    outgoing.add(intent(3, sequence=2))
    outgoing.add(intent(4, sequence=1, purpose=Purpose.REFUND))
    outgoing.add(intent(5, sequence=1, session_id=session_id(2)))


def test_what_has_failed_may_be_tried_again(ledger: Ledger) -> None:
    outgoing = ledger.outgoing
    outgoing.add(intent(1))
    outgoing.fail(HASHES[1], "no route", 5)
    outgoing.add(intent(2, sequence=1))
    outgoing.fail(HASHES[2], "again no route", 6)
    newest = outgoing.of("increment", session_id(1), 1)
    assert newest is not None
    assert (newest.payment_hash, newest.failure) == (HASHES[2], "again no route")
    outgoing.add(intent(3, sequence=1))
    assert outgoing.of("increment", session_id(1), 1) == intent(3, sequence=1)
    assert [found.payment_hash for found in outgoing.of_session("increment", session_id(1))] == HASHES[1:4]


def test_of_two_threads_that_want_to_pay_the_same_only_one_may(ledger: Ledger) -> None:
    refused: list[WattlineError] = []

    def add(number: int) -> None:
        try:
            ledger.outgoing.add(intent(number, sequence=1))
        except AlreadyPaying as error:
            refused.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert len(ledger.outgoing.pending()) == 1


def test_a_preimage_is_used_once(ledger: Ledger) -> None:
    ledger.outgoing.add(intent(1))
    ledger.outgoing.fail(HASHES[1], "", 5)
    with pytest.raises(StopError) as caught:
        ledger.outgoing.add(intent(1, sequence=2))
    assert caught.value.code == "intent_exists"


def test_an_intent_is_never_part_of_a_larger_unit_of_work(ledger: Ledger) -> None:
    with ledger.unit(), pytest.raises(StopError) as caught:
        ledger.outgoing.add(intent(1))
    assert caught.value.code == "in_unit_of_work"
    assert ledger.outgoing.pending() == []


def test_an_outcome_told_twice_counts_once_and_never_turns_round(ledger: Ledger) -> None:
    outgoing = ledger.outgoing
    for number in (1, 2):
        outgoing.add(intent(number))
    outgoing.complete(HASHES[1], 1010, 5)
    outgoing.complete(HASHES[1], 9999, 6)
    outgoing.fail(HASHES[2], "peer gone", 5)
    outgoing.fail(HASHES[2], "other", 6)
    complete, failed = outgoing.intent(HASHES[1]), outgoing.intent(HASHES[2])
    assert complete == replace(intent(1), status=IntentStatus.COMPLETE, amount_sent_msat=1010, resolved_at=5)
    assert failed == replace(intent(2), status=IntentStatus.FAILED, failure="peer gone", resolved_at=5)
    with pytest.raises(StopError) as caught:
        outgoing.fail(HASHES[1], "", 7)
    assert caught.value.code == "intent_resolved"
    with pytest.raises(StopError) as caught:
        outgoing.complete(HASHES[2], 1000, 7)
    assert caught.value.code == "intent_resolved"
    assert (outgoing.intent(HASHES[1]), outgoing.intent(HASHES[2])) == (complete, failed)
    assert outgoing.pending() == []


def test_the_fate_of_an_unknown_payment_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(StopError) as caught:
        ledger.outgoing.complete(HASHES[1], 1, 1)
    assert caught.value.code == "unknown_intent"


def test_budgets_count_what_left_and_what_may_leave_with_fees(ledger: Ledger) -> None:
    outgoing = ledger.outgoing
    for number in (1, 2, 3):
        outgoing.add(intent(number))
    outgoing.add(intent(4, session_id=session_id(2), purpose=Purpose.REFUND))
    outgoing.complete(HASHES[1], 1017, 5)
    outgoing.fail(HASHES[2], "", 5)
    assert outgoing.sent_msat() == 1017 + 1050 + 1050
    assert outgoing.sent_msat(session_id(1)) == 1017 + 1050
    assert outgoing.sent_msat(day_before=Moment(103 + DAY_S, "a", 2 * DAY_S * 1000)) == 1050 + 1050
    assert outgoing.sent_msat(session_id(1), day_before=Moment(102 + DAY_S, "a", 2 * DAY_S * 1000)) == 1050
    assert outgoing.sent_msat(purpose=Purpose.REFUND) == 1050
    assert outgoing.sent_msat(session_id(3)) == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"payment_hash": "00" * 32}, "not the SHA-256"),
        ({"preimage": "AB" * 32}, "preimage"),
        ({"destination": "05" + "ab" * 32}, "destination"),
        ({"amount_msat": 0}, "amount_msat"),
        ({"maxfee_msat": -1}, "maxfee_msat"),
        ({"purpose": "gift"}, "purpose"),
        ({"resolved_at": 5}, "resolved_at"),
    ],
)
def test_an_impossible_intent_cannot_be_made(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(StopError, match=complaint) as caught:
        intent(1, **changes)
    assert caught.value.code == "intent_invalid"


def test_only_a_pending_intent_can_be_added(ledger: Ledger) -> None:
    with pytest.raises(StopError, match="pending"):
        ledger.outgoing.add(replace(intent(1), status=IntentStatus.FAILED, resolved_at=5))
