"""An aggregate's life: invited, grown, chosen, mined, closed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from sqlalchemy import event, update

from tests.core.ledger.onchain_samples import INPUTS, RULES, aggregate, outpoint, txid_of, version
from tests.core.ledger.samples import NODE_ID, record, session_id
from wattline.core.aggregate import Aggregate, AggregateInput, AggregateStatus, Version
from wattline.core.errors import StopError
from wattline.core.ledger.aggregate import RefusedCable
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.schema import aggregates

BLOCK = "00" * 31 + "aa"
OTHER_BLOCK = "00" * 31 + "bb"
SESSION = session_id(1)


@pytest.fixture
def shop(ledger: Ledger) -> Ledger:
    """A ledger with the sessions 1 to 3, of which the first may pay on-chain."""
    for number in (1, 2, 3):
        ledger.save_session(record(number))
    ledger.invite(aggregate())
    return ledger


def grown(ledger: Ledger, values: list[int], session: int = 1) -> None:
    for number, value_sat in enumerate(values, 1):
        inputs = [AggregateInput(outpoint(10 * session), 100_000)] if session != 1 else INPUTS
        assert ledger.store_version(version(number, session, value_sat), inputs if number == 1 else (), 77)


def kept(ledger: Ledger, session: int = 1) -> Aggregate:
    found = ledger.aggregate(session_id(session))
    assert found is not None
    return found


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(StopError) as caught:
        call()
    return caught.value.code


def test_an_aggregate_comes_back_as_it_was_made(shop: Ledger) -> None:
    assert kept(shop) == aggregate()
    assert shop.aggregate(session_id(2)) is None


def test_a_session_is_invited_once_and_only_when_it_was_saved(shop: Ledger) -> None:
    assert code_of(lambda: shop.invite(aggregate(address="another"))) == "aggregate_exists"
    assert kept(shop) == aggregate()
    assert code_of(lambda: shop.invite(aggregate(77))) == "unknown_session"
    assert code_of(lambda: shop.invite(aggregate(2, inputs=INPUTS))) == "aggregate_invalid"
    sent = aggregate(2, status=AggregateStatus.SENT, chosen_number=1)
    assert code_of(lambda: shop.invite(sent)) == "aggregate_invalid"


def test_the_first_version_brings_the_inputs_and_later_ones_cannot_change_them(shop: Ledger) -> None:
    assert code_of(lambda: shop.store_version(version(1))) == "version_invalid"
    assert code_of(lambda: shop.store_version(version(1), [INPUTS[0], INPUTS[0]])) == "version_invalid"
    assert shop.store_version(version(1), INPUTS[::-1], 77) is True
    assert (kept(shop).inputs, kept(shop).first_height) == (INPUTS, 77)
    assert code_of(lambda: shop.store_version(version(2), INPUTS[:1])) == "other_inputs"
    assert shop.store_version(version(2), INPUTS, 99) is True
    assert (kept(shop).inputs, kept(shop).first_height) == (INPUTS, 77)


@pytest.mark.parametrize(
    ("stale", "code"),
    [
        (version(1, value_sat=4000), "bad_version"),
        (version(2, value_sat=4000), "bad_version"),
        (version(4, value_sat=4000), "bad_version"),
        (version(3, value_sat=2000), "value_not_larger"),
        (version(3, value_sat=1999), "value_not_larger"),
        (version(2, value_sat=1500, is_final=True), "bad_version"),
        (version(3, value_sat=2000, is_final=True), "wrong_output"),
        (version(3, value_sat=2001, is_final=True), "wrong_output"),
    ],
)
def test_what_does_not_grow_is_refused(shop: Ledger, stale: Version, code: str) -> None:
    grown(shop, [1000, 2000])
    assert code_of(lambda: shop.store_version(stale)) == code
    assert (shop.onchain_credited_msat(SESSION), shop.increments(SESSION)) == (2_000_000, 2)


def test_a_final_version_pays_less_comes_once_and_ends_the_growth(shop: Ledger) -> None:
    first_final = version(1, value_sat=1, is_final=True)
    assert code_of(lambda: shop.store_version(first_final, INPUTS)) == "wrong_output"
    grown(shop, [1000, 2000, 3000])
    final = version(4, value_sat=1000, is_final=True)  # the same transaction as the first version
    assert shop.store_version(final) is True
    assert shop.store_version(final) is False
    assert (shop.final_version(SESSION), shop.onchain_credited_msat(SESSION)) == (final, 3_000_000)
    assert shop.newest_version(SESSION) == version(3)
    assert shop.version_value_sat(SESSION, txid_of(1, 1000)) == 1000
    assert code_of(lambda: shop.store_version(version(5, value_sat=900, is_final=True))) == "session_closed"
    assert code_of(lambda: shop.store_version(version(5))) == "session_closed"


def test_the_same_version_again_changes_nothing_at_any_time(shop: Ledger) -> None:
    grown(shop, [1000, 2000, 3000])
    resigned = replace(version(3), psbt="b3RoZXI=", raw="ff")
    shop.choose(SESSION, 3, "closed", 9)
    for known in (version(1), resigned):
        assert shop.store_version(known, INPUTS) is False
    assert shop.version(SESSION, 3) == version(3)
    assert code_of(lambda: shop.store_version(version(4))) == "session_closed"


def test_old_versions_keep_their_txid_and_value_alone(shop: Ledger) -> None:
    grown(shop, [1000, 2000, 3000, 4000])
    assert shop.version(SESSION, 1) == replace(version(1), psbt="", raw="")
    assert shop.version(SESSION, 2) == replace(version(2), psbt="", raw="")
    # The newest may yet be dropped: then the one before it is what can be broadcast.
    assert shop.version(SESSION, 3) == version(3)
    assert shop.version(SESSION, 4) == version(4)
    assert [shop.version_value_sat(SESSION, txid_of(1, value)) for value in (1000, 4000, 5000)] == [1000, 4000, None]


def test_a_version_that_is_dropped_was_never_credited(shop: Ledger) -> None:
    grown(shop, [1000, 2000, 3000])
    assert code_of(lambda: shop.drop_version(SESSION, 2)) == "version_in_use"
    shop.drop_version(SESSION, 3)
    shop.drop_version(SESSION, 3)
    assert (shop.onchain_credited_msat(SESSION), shop.newest_version(SESSION)) == (2_000_000, version(2))
    # The first one's transaction is gone: it could not be broadcast, so the second stays.
    assert code_of(lambda: shop.drop_version(SESSION, 2)) == "version_in_use"
    assert shop.store_version(version(3, value_sat=2500)) is True
    shop.choose(SESSION, 3, "closed", 9)
    assert code_of(lambda: shop.drop_version(SESSION, 3)) == "version_in_use"


def test_with_the_first_version_its_inputs_are_free_again(shop: Ledger) -> None:
    grown(shop, [1000])
    shop.drop_version(SESSION, 1)
    assert kept(shop) == aggregate()
    assert shop.input_in_use(INPUTS[0].outpoint, "") is None
    assert shop.store_version(version(1), [AggregateInput(outpoint(5), 9000)], 80) is True
    assert (kept(shop).inputs, kept(shop).first_height) == ((AggregateInput(outpoint(5), 9000),), 80)


def test_an_input_pays_for_one_live_session_only(shop: Ledger) -> None:
    grown(shop, [1000])
    for number in (2, 3):
        shop.invite(aggregate(number))
    spent = INPUTS[0].outpoint
    assert shop.input_in_use(spent, but_not=session_id(2)) == SESSION
    assert shop.input_in_use(spent, but_not=SESSION) is None
    assert shop.input_in_use(outpoint(9), but_not="") is None
    assert code_of(lambda: shop.store_version(version(1, 2), INPUTS[:1])) == "input_refused"
    assert shop.newest_version(session_id(2)) is None
    shop.choose(SESSION, 1, "closed", 9)
    assert code_of(lambda: shop.store_version(version(1, 2), INPUTS[:1])) == "input_refused"
    shop.mined(SESSION, txid_of(1, 1000), 1000, 78, BLOCK)
    shop.close_aggregate(SESSION, AggregateStatus.SETTLED, 10)
    assert shop.input_in_use(spent, but_not="") is None
    assert shop.store_version(version(1, 3), INPUTS[:1]) is True


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """Results, or the codes of errors, of calls from as many threads at the same time."""
    start = threading.Barrier(len(calls))
    results: list[object] = []

    def run(call: Callable[[], object]) -> None:
        start.wait()
        try:
            results.append(call())
        except StopError as error:
            results.append(error.code)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_two_sessions_that_bring_the_same_input_at_once_one_is_taken(shop: Ledger) -> None:
    for number in (2, 3):
        shop.invite(aggregate(number))
    results = at_once(
        [lambda: shop.store_version(version(1, 2), INPUTS), lambda: shop.store_version(version(1, 3), INPUTS)]
    )
    assert sorted(map(str, results)) == ["True", "input_refused"]
    assert shop.exposure_sat() == 1000


def test_a_version_that_comes_twice_at_once_is_new_once(shop: Ledger) -> None:
    results = at_once([lambda: shop.store_version(version(1), INPUTS)] * 3)
    assert sorted(map(str, results)) == ["False", "False", "True"]
    assert shop.onchain_credited_msat(SESSION) == 1_000_000


def test_of_two_decisions_at_once_both_learn_of_the_first(shop: Ledger) -> None:
    grown(shop, [1000])
    results = at_once([lambda: shop.choose(SESSION, 1, "closed", 9), lambda: shop.void(SESSION, "nothing owed", 9)])
    assert results == [kept(shop), kept(shop)]


def test_the_first_choice_stands(shop: Ledger) -> None:
    grown(shop, [1000, 2000])
    shop.store_version(version(3, value_sat=1500, is_final=True))
    assert code_of(lambda: shop.choose(SESSION, 1, "closed", 8)) == "version_stale"
    assert code_of(lambda: shop.choose(SESSION, 9, "closed", 8)) == "version_stale"
    chosen = shop.choose(SESSION, 3, "final", 9)
    assert (chosen.status, chosen.chosen_number, chosen.choice_reason, chosen.chosen_at) == (
        AggregateStatus.SENT,
        3,
        "final",
        9,
    )
    assert shop.choose(SESSION, 2, "double_spent", 10) == chosen
    assert shop.void(SESSION, "nothing owed", 10) == chosen
    assert kept(shop) == chosen


def test_what_was_void_is_never_broadcast(shop: Ledger) -> None:
    grown(shop, [1000])
    voided = shop.void(SESSION, "nothing owed", 9)
    assert (voided.status, voided.choice_reason, voided.closed_at) == (AggregateStatus.VOID, "nothing owed", 9)
    assert shop.choose(SESSION, 1, "closed", 10) == voided
    assert code_of(lambda: shop.store_version(version(2))) == "session_closed"
    assert shop.unfinished_aggregates() == []


def test_of_what_was_void_the_newest_version_stays_alone(shop: Ledger) -> None:
    grown(shop, [1000, 2000, 3000])
    assert shop.store_version(version(4, value_sat=500, is_final=True))
    shop.void(SESSION, "nothing owed", 9)
    assert [shop.version(SESSION, number) is not None for number in range(1, 5)] == [False, False, True, False]
    assert (shop.onchain_credited_msat(SESSION), shop.increments(SESSION)) == (3_000_000, 1)


def test_what_the_chain_says_is_followed_through_a_reorg(shop: Ledger) -> None:
    grown(shop, [1000, 2000])
    shop.choose(SESSION, 2, "closed", 9)
    sent = kept(shop)
    shop.mined(SESSION, txid_of(1, 1000), 1000, 80, BLOCK)
    shop.lose(SESSION, 1_000_000)
    shop.child(SESSION, "cc" * 32)
    assert kept(shop) == replace(
        sent,
        mined_txid=txid_of(1, 1000),
        mined_value_sat=1000,
        mined_height=80,
        mined_block=BLOCK,
        lost_msat=1_000_000,
        child_txid="cc" * 32,
    )
    # The same in another block: the loss stands.
    shop.mined(SESSION, txid_of(1, 1000), 1000, 81, OTHER_BLOCK)
    assert (kept(shop).mined_block, kept(shop).lost_msat) == (OTHER_BLOCK, 1_000_000)
    # Another version: what was lost has to be said anew.
    shop.mined(SESSION, txid_of(1, 2000), 2000, 81, OTHER_BLOCK)
    assert (kept(shop).mined_txid, kept(shop).lost_msat) == (txid_of(1, 2000), 0)
    shop.lose(SESSION, 0)
    shop.unmined(SESSION)
    assert kept(shop) == replace(sent, child_txid="cc" * 32)
    shop.lose(SESSION, 5)
    shop.unmined(SESSION)
    assert kept(shop).lost_msat == 0


def test_an_aggregate_is_closed_once_and_only_when_something_was_mined(shop: Ledger) -> None:
    grown(shop, [1000])

    def close(status: AggregateStatus, at: int = 10) -> None:
        shop.close_aggregate(SESSION, status, at)

    assert code_of(lambda: close(AggregateStatus.SETTLED)) == "aggregate_not_sent"
    shop.choose(SESSION, 1, "closed", 9)
    assert code_of(lambda: close(AggregateStatus.LOST)) == "aggregate_not_mined"
    assert code_of(lambda: close(AggregateStatus.SETTLED)) == "aggregate_not_mined"
    assert code_of(lambda: close(AggregateStatus.VOID)) == "aggregate_invalid"
    shop.mined(SESSION, "dd" * 32, 0, 80, BLOCK)
    shop.lose(SESSION, 1_000_000)
    close(AggregateStatus.LOST)
    close(AggregateStatus.LOST, 99)
    assert (kept(shop).status, kept(shop).closed_at, kept(shop).lost_msat) == (AggregateStatus.LOST, 10, 1_000_000)
    assert code_of(lambda: close(AggregateStatus.SETTLED)) == "aggregate_not_sent"
    totals = shop.totals(0, 10**6)
    assert (totals.missing_msat, totals.lost_msat) == (1_000_000, 0), "nothing of it was delivered"


def test_what_can_never_be_mined_is_closed_as_lost_once_it_is_said_how_much_that_is(shop: Ledger) -> None:
    grown(shop, [1000])
    shop.choose(SESSION, 1, "double_spent", 9)
    shop.lose(SESSION, 1_000_000)
    assert code_of(lambda: shop.close_aggregate(SESSION, AggregateStatus.SETTLED, 10)) == "aggregate_not_mined"
    shop.close_aggregate(SESSION, AggregateStatus.LOST, 10)
    assert (kept(shop).status, kept(shop).mined_txid, kept(shop).lost_msat) == (AggregateStatus.LOST, None, 1_000_000)
    assert shop.exposure_sat() == 0


@pytest.mark.parametrize("status", [AggregateStatus.OPEN, AggregateStatus.VOID, AggregateStatus.SETTLED])
def test_nothing_but_what_was_sent_is_followed(shop: Ledger, status: AggregateStatus) -> None:
    grown(shop, [1000])
    if status is AggregateStatus.VOID:
        shop.void(SESSION, "nothing owed", 9)
    elif status is AggregateStatus.SETTLED:
        shop.choose(SESSION, 1, "closed", 9)
        shop.mined(SESSION, txid_of(1, 1000), 1000, 80, BLOCK)
        shop.close_aggregate(SESSION, AggregateStatus.SETTLED, 10)
    before = kept(shop)
    calls: list[Callable[[], object]] = [
        lambda: shop.mined(SESSION, "dd" * 32, 0, 80, BLOCK),
        lambda: shop.unmined(SESSION),
        lambda: shop.lose(SESSION, 1),
        lambda: shop.child(SESSION, "cc" * 32),
    ]
    assert {code_of(call) for call in calls} == {"aggregate_not_sent"}
    assert kept(shop) == before


def test_a_session_that_was_never_invited_is_named(shop: Ledger) -> None:
    name = session_id(2)
    calls: list[Callable[[], object]] = [
        lambda: shop.store_version(version(1, 2), INPUTS),
        lambda: shop.drop_version(name, 1),
        lambda: shop.choose(name, 1, "closed", 9),
        lambda: shop.void(name, "nothing owed", 9),
        lambda: shop.mined(name, "dd" * 32, 0, 80, BLOCK),
        lambda: shop.unmined(name),
        lambda: shop.lose(name, 1),
        lambda: shop.child(name, "cc" * 32),
        lambda: shop.close_aggregate(name, AggregateStatus.LOST, 9),
    ]
    assert {code_of(call) for call in calls} == {"unknown_aggregate"}
    assert (shop.onchain_credited_msat(name), shop.increments(name), shop.newest_version(name)) == (0, 0, None)


def test_exposure_is_what_was_credited_and_is_in_no_block(shop: Ledger) -> None:
    for number in (2, 3):
        shop.invite(aggregate(number))
    grown(shop, [1000, 2000])
    grown(shop, [1000, 5000], session=2)
    assert shop.exposure_sat() == 7000
    shop.store_version(version(3, 2, 1500, is_final=True))
    assert shop.exposure_sat() == 7000
    shop.choose(session_id(2), 3, "final", 9)
    assert shop.exposure_sat() == 3500
    shop.mined(session_id(2), txid_of(2, 1500), 1500, 80, BLOCK)
    assert shop.exposure_sat() == 2000
    shop.unmined(session_id(2))
    assert shop.exposure_sat() == 3500
    shop.void(SESSION, "nothing owed", 9)
    assert shop.exposure_sat() == 1500


def test_what_is_not_over_is_found_oldest_first(shop: Ledger) -> None:
    shop.invite(aggregate(2, invited_at=5))
    shop.invite(aggregate(3))
    grown(shop, [1000])
    grown(shop, [1000], session=3)
    shop.choose(session_id(3), 1, "closed", 9)
    shop.void(session_id(2), "nothing owed", 9)
    assert [(item.session_id, item.status) for item in shop.unfinished_aggregates()] == [
        (SESSION, AggregateStatus.OPEN),
        (session_id(3), AggregateStatus.SENT),
    ]
    assert shop.unfinished_aggregates()[0] == kept(shop)


def test_a_cable_that_cheated_is_refused_with_its_inputs_until_it_is_forgiven(shop: Ledger) -> None:
    other = "03" + "cd" * 32
    spent = [item.outpoint for item in INPUTS]
    shop.refuse_cable(NODE_ID, spent, SESSION, "double_spent", 9)
    shop.refuse_cable(NODE_ID, [*spent, outpoint(3)], session_id(2), "older_version", 10)
    shop.refuse_cable(other, [outpoint(4)], session_id(3), "older_version", 11)
    assert shop.refused_cable(NODE_ID) == "double_spent"
    assert [shop.refused_input(item) for item in (*spent, outpoint(3), outpoint(9))] == [
        "double_spent",
        "double_spent",
        "older_version",
        None,
    ]
    refusals = [(NODE_ID, "double_spent", SESSION, 9), (other, "older_version", session_id(3), 11)]
    assert shop.refused_cables() == refusals
    assert shop.refused_cables()[0] == RefusedCable(*refusals[0])
    assert shop.forgive_cable(NODE_ID) is True
    assert shop.forgive_cable(NODE_ID) is False
    assert (shop.refused_cable(NODE_ID), shop.refused_input(spent[0]), shop.refused_input(outpoint(3))) == (None,) * 3
    assert (shop.refused_cable(other), shop.refused_input(outpoint(4))) == ("older_version", "older_version")


def test_a_cable_without_a_name_taints_its_inputs_but_not_other_cables_without_a_name(shop: Ledger) -> None:
    shop.refuse_cable("", [outpoint(1)], SESSION, "double_spent", 9)
    assert (shop.refused_cable(""), shop.refused_cables()) == (None, [])
    assert shop.refused_input(outpoint(1)) == "double_spent"
    assert shop.forgive_cable("") is True
    assert shop.refused_input(outpoint(1)) is None


GOOD_RULES = asdict(RULES)


@pytest.mark.parametrize(
    "rules",
    ["{", "[]", "{}", json.dumps(GOOD_RULES | {"floor_sat": "1000"}), json.dumps(GOOD_RULES | {"max_age_s": True})],
)
def test_rules_that_cannot_be_read_are_damage(shop: Ledger, rules: str) -> None:
    with shop._database.unit() as connection:
        connection.execute(update(aggregates).values(rules=rules))
    with pytest.raises(LedgerError) as caught:
        shop.aggregate(SESSION)
    assert caught.value.code == "ledger_damaged"


@pytest.mark.parametrize(
    "make",
    [
        lambda: version(0),
        lambda: version(1, value_sat=0),
        lambda: version(1, fee_sat=-1),
        lambda: version(1, vout=True),
        lambda: version(1, txid="AB" * 32),
        lambda: version(1, raw=""),
        lambda: aggregate(script=""),
        lambda: aggregate(lost_msat=-1),
        lambda: aggregate(status=AggregateStatus.SENT),
        lambda: aggregate(chosen_number=1),
        lambda: aggregate(status=AggregateStatus.VOID),
        lambda: aggregate(mined_txid="short"),
        lambda: aggregate(inputs=(INPUTS[0], INPUTS[0])),
        lambda: AggregateInput(outpoint(1), 0),
    ],
)
def test_what_cannot_be_is_not_made(make: Callable[[], Any]) -> None:
    assert code_of(make) in ("version_invalid", "aggregate_invalid")


def test_what_contradicts_itself_is_not_written(shop: Ledger) -> None:
    grown(shop, [1000])
    shop.choose(SESSION, 1, "closed", 9)
    before = kept(shop)
    assert code_of(lambda: shop.lose(SESSION, -1)) == "aggregate_invalid"
    assert code_of(lambda: shop.mined(SESSION, "no txid", 1, 80, BLOCK)) == "aggregate_invalid"
    assert kept(shop) == before
    scrubbed = replace(version(2), psbt="", raw="")
    assert code_of(lambda: shop.store_version(scrubbed)) in ("version_invalid", "session_closed", "bad_version")


class PowerCut(BaseException):
    """Everything ends here."""


STEPS: dict[str, Callable[[Ledger], object]] = {
    "invite": lambda ledger: ledger.invite(aggregate(2)),
    "first version": lambda ledger: ledger.store_version(version(1), INPUTS, 77),
    "second version": lambda ledger: ledger.store_version(version(2)),
    "third version": lambda ledger: ledger.store_version(version(3)),
    "drop": lambda ledger: ledger.drop_version(SESSION, 3),
    "another third version": lambda ledger: ledger.store_version(version(3, value_sat=2500)),
    "final version": lambda ledger: ledger.store_version(version(4, value_sat=1500, is_final=True)),
    "choice": lambda ledger: ledger.choose(SESSION, 4, "final", 9),
    "void": lambda ledger: ledger.void(session_id(2), "nothing owed", 9),
    "mined": lambda ledger: ledger.mined(SESSION, txid_of(1, 1500), 1500, 80, BLOCK),
    "unmined": lambda ledger: ledger.unmined(SESSION),
    "mined again": lambda ledger: ledger.mined(SESSION, txid_of(1, 1000), 1000, 80, BLOCK),
    "loss": lambda ledger: ledger.lose(SESSION, 500_000),
    "refusal": lambda ledger: ledger.refuse_cable(NODE_ID, [outpoint(1), outpoint(2)], SESSION, "older_version", 9),
    "close": lambda ledger: ledger.close_aggregate(SESSION, AggregateStatus.LOST, 10),
    "forgiveness": lambda ledger: ledger.forgive_cable(NODE_ID),
}


def test_a_power_cut_at_any_statement_of_any_step_leaves_all_of_it_or_nothing(shop: Ledger) -> None:
    countdown = 0

    def cut(*_arguments: object) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise PowerCut

    engine = shop._database.engine
    for name in ("before_cursor_execute", "commit"):
        event.listen(engine, name, cut)
    for name, take in STEPS.items():
        before = picture(shop)
        statement = 0
        while True:
            statement += 1
            countdown = statement
            try:
                take(shop)
            except PowerCut:
                assert picture(shop) == before, (name, statement)
                continue
            break
        countdown = 0
        assert picture(shop) != before, name
        assert statement > 2, name


def picture(ledger: Ledger) -> list[object]:
    """All that the ledger says of aggregates."""
    return [
        [ledger.aggregate(session_id(number)) for number in (1, 2)],
        [ledger.version(SESSION, number) for number in range(1, 6)],
        ledger.refused_cables(),
        [ledger.refused_input(outpoint(number)) for number in (1, 2)],
        ledger.exposure_sat(),
        ledger.session(SESSION),
    ]
