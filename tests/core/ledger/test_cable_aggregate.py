"""What the cable signed on-chain, over restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.core.ledger.onchain_samples import cable_aggregate
from tests.core.ledger.samples import NODE_ID, session_id
from wattline.core.clock import DAY_S, Moment
from wattline.core.errors import StopError
from wattline.core.ledger.cable import CableAggregate, CableAggregateStatus
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.ledger.schema import cable_aggregates

OPEN, ENDED, SETTLED, UNANSWERED, CHEATED, VOID = CableAggregateStatus
TXID = "ee" * 32


def test_an_aggregate_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    first = cable_aggregate()
    last = replace(
        first,
        number=4,
        signed_sat=5000,
        accepted_sat=4000,
        final_sat=1500,
        agreed_sat=4000,
        due_sat=1501,
        status=SETTLED,
        mined_txid=TXID,
        mined_sat=1500,
        closed_at=99,
        is_final_taken=True,
    )
    for row in (first, last):
        with open_ledger(path) as ledger:
            ledger.cable_aggregates.save(row)
        with open_ledger(path) as ledger:
            assert ledger.cable_aggregates.of(session_id(1)) == row
            assert ledger.cable_aggregates.of(session_id(2)) is None


def test_what_was_signed_cannot_be_unsigned(ledger: Ledger) -> None:
    signed = cable_aggregate(number=2, signed_sat=2000)
    ledger.cable_aggregates.save(signed)
    with pytest.raises(StopError) as caught:
        ledger.cable_aggregates.save(replace(signed, signed_sat=1999))
    assert caught.value.code == "signed_fell"
    assert ledger.cable_aggregates.of(session_id(1)) == signed
    # The final version has a lower value, but the larger one was handed over all the same.
    ledger.cable_aggregates.save(replace(signed, number=3, final_sat=1500))


def test_what_is_not_over_is_found_oldest_first(ledger: Ledger) -> None:
    store = ledger.cable_aggregates
    rows = [
        cable_aggregate(1, status=ENDED),
        cable_aggregate(2),
        cable_aggregate(3, created_at=5),
        cable_aggregate(4, status=VOID, closed_at=9),
        cable_aggregate(5, status=SETTLED, closed_at=9),
        cable_aggregate(6, status=CHEATED, closed_at=9),
        cable_aggregate(7, status=UNANSWERED, closed_at=9),
    ]
    for row in rows:
        store.save(row)
    assert store.unfinished() == [rows[2], rows[0], rows[1]]


def test_a_socket_that_took_more_than_agreed_is_remembered(ledger: Ledger) -> None:
    other = "03" + "cd" * 32
    store = ledger.cable_aggregates
    store.save(cable_aggregate(1, status=SETTLED, closed_at=9))
    assert store.cheating_socket(NODE_ID) is None
    cheated = cable_aggregate(2, status=CHEATED, mined_txid=TXID, mined_sat=5000, signed_sat=5000, closed_at=9)
    store.save(cheated)
    assert store.cheating_socket(NODE_ID) == cheated
    assert store.cheating_socket(other) is None


def test_what_a_socket_owes_is_remembered_apart_from_cheating(ledger: Ledger) -> None:
    other = "03" + "cd" * 32
    store = ledger.cable_aggregates
    rows = [
        cable_aggregate(
            n, status=UNANSWERED, signed_sat=2425, due_sat=1400, mined_txid=TXID, mined_sat=2425, closed_at=9
        )
        for n in (1, 2)
    ]
    rows[1] = replace(rows[1], node_id=other)
    for row in rows:
        store.save(row)
    assert store.unanswered() == rows
    assert store.unanswered(NODE_ID) == rows[:1]
    assert store.cheating_socket(NODE_ID) is None
    assert rows[0].owed_sat == 1025
    assert replace(rows[0], due_sat=None).owed_sat == 0
    assert replace(rows[0], due_sat=3000).owed_sat == 0


@pytest.mark.parametrize(
    ("changes", "expected_sat"),
    [
        ({"signed_sat": 0}, 154),
        ({"signed_sat": 5000, "accepted_sat": 4000}, 5154),
        ({"signed_sat": 5000, "final_sat": 1500, "status": ENDED}, 5154),
        ({"signed_sat": 5000, "final_sat": 1500, "status": SETTLED, "closed_at": 9}, 1654),
        (
            {"signed_sat": 5000, "final_sat": 1500, "status": SETTLED, "mined_txid": TXID, "mined_sat": 1000}
            | {"closed_at": 9},
            1154,
        ),
        (
            {"signed_sat": 5000, "final_sat": 1500, "status": CHEATED, "mined_txid": TXID, "mined_sat": 5000}
            | {"closed_at": 9},
            5154,
        ),
        (
            {"signed_sat": 5000, "final_sat": 1500, "status": UNANSWERED, "mined_txid": TXID, "mined_sat": 4000}
            | {"closed_at": 9},
            4154,
        ),
        ({"signed_sat": 5000, "status": SETTLED, "closed_at": 9}, 5154),
        ({"signed_sat": 5000, "status": VOID, "closed_at": 9}, 0),
    ],
)
def test_what_may_leave_the_wallet_is_the_largest_version_until_the_end_is_known(
    ledger: Ledger, changes: dict[str, int], expected_sat: int
) -> None:
    ledger.cable_aggregates.save(cable_aggregate(1, **changes))
    assert ledger.cable_aggregates.sent_msat() == 1000 * expected_sat


def test_what_was_sent_is_counted_by_session_and_age(ledger: Ledger) -> None:
    store = ledger.cable_aggregates
    assert store.sent_msat() == 0
    for number in (1, 2):
        store.save(cable_aggregate(number, signed_sat=1000 * number, signed_at=2000 + number))
    assert store.sent_msat() == 3_308_000
    assert store.sent_msat(session_id(1)) == 1_154_000
    two = Moment(2002 + DAY_S, "a", 2 * DAY_S * 1000)
    assert store.sent_msat(day_before=two) == 2_154_000
    assert store.sent_msat(session_id(1), day_before=two) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: cable_aggregate(signed_sat=-1),
        lambda: cable_aggregate(number=True),
        lambda: cable_aggregate(inputs=()),
        lambda: cable_aggregate(closed_at=9),
        lambda: cable_aggregate(status=VOID),
    ],
)
def test_what_cannot_be_is_not_made(make: Callable[[], CableAggregate]) -> None:
    with pytest.raises(StopError) as caught:
        make()
    assert caught.value.code == "record_invalid"


@pytest.mark.parametrize("inputs", ["{", "7", "[7]", '[["nonsense", 1]]', "[[1, 1]]"])
def test_inputs_that_cannot_be_read_are_damage(ledger: Ledger, inputs: str) -> None:
    ledger.cable_aggregates.save(cable_aggregate())
    with ledger._database.unit() as connection:
        connection.execute(update(cable_aggregates).values(inputs=inputs))
    with pytest.raises(LedgerError) as caught:
        ledger.cable_aggregates.unfinished()
    assert caught.value.code == "ledger_damaged"
