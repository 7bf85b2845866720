"""Whatever dies, lies or comes late: an order is paid at most once, and the ledger knows what left the wallet."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.payment.payer_fakes import SOCKET, Clock, Crash, FakeStore, FakeWallet, FaultyLedger, no_fault
from wattline.core.errors import WattlineError
from wattline.core.ledger.ledger import open_ledger
from wattline.core.ledger.outgoing import AlreadyPaying, Intent, IntentStatus
from wattline.core.lightning.node import SendStatus
from wattline.core.payer import Payer

FAULTS = {
    "find_route": ["ok", "ok", "crash", "gone"],
    "add": ["ok", "ok", "crash before", "crash after", "busy"],
    "send": [
        "ok",
        "ok",
        "crash before",
        "gone before",
        "crash, read late",
        "gone, read late",
        "refused",
        "crash after",
        "gone after",
    ],
    "wait": ["ok", "ok", "crash", "gone", "late", "lie"],
    "sent": ["ok", "ok", "crash", "gone", "ended"],
    "complete": ["ok", "ok", "crash before", "crash after", "busy"],
    "fail": ["ok", "ok", "crash before", "crash after", "busy"],
}
OUTCOMES = [SendStatus.COMPLETE, SendStatus.COMPLETE, SendStatus.FAILED, SendStatus.PENDING]
ACTS = st.one_of(
    st.tuples(st.just("pay"), st.integers(0, 2)),
    st.tuples(st.just("resolve"), st.booleans()),
    st.tuples(st.just("pass_by"), st.sampled_from([0.5, 3.0, 30.0])),
    st.tuples(st.just("set_clock"), st.sampled_from([-100_000, 0, 100_000])),
    st.tuples(st.just("decide"), st.none()),
    st.tuples(st.just("restart"), st.none()),
)


def order(sequence: int) -> Intent:
    return Intent(
        purpose="increment",
        session_id="S",
        sequence=sequence,
        destination=SOCKET,
        amount_msat=1000 + sequence,
        maxfee_msat=50,
        record=f"record {sequence}",
        label=f"label {sequence}",
    )


Fault = Callable[[str], str]


@settings(max_examples=400, deadline=None)
@given(acts=st.lists(ACTS, min_size=1, max_size=12), data=st.data())
def test_an_order_is_paid_at_most_once_and_the_ledger_says_what_left_the_wallet(
    acts: list[tuple[str, object]], data: st.DataObject
) -> None:
    run(acts, data, FakeStore)


@settings(max_examples=40, deadline=None)
@given(acts=st.lists(ACTS, min_size=4, max_size=12), data=st.data())
def test_the_same_holds_with_the_real_ledger(acts: list[tuple[str, object]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory, open_ledger(Path(directory) / "ledger.sqlite3") as ledger:
        run(acts, data, lambda fault: FaultyLedger(ledger.outgoing, fault))


def run(
    acts: list[tuple[str, object]], data: st.DataObject, make_store: Callable[[Fault], FakeStore | FaultyLedger]
) -> None:
    def fault(step: str) -> str:
        return data.draw(st.sampled_from(FAULTS[step]), label=step)

    clock = Clock()
    store = make_store(fault)
    wallet = FakeWallet(clock, fault, outcome=lambda: data.draw(st.sampled_from(OUTCOMES), label="outcome"), fee_msat=7)

    def fresh() -> Payer:
        return Payer(wallet, store, clock.moment, clock, clock.pass_by)

    payer = fresh()
    for act, value in acts:
        try:
            if act == "pay":
                assert isinstance(value, int)
                with contextlib.suppress(WattlineError):
                    outcome = payer.pay(order(value), timeout_s=1.0)
                    row = store.intent(outcome.payment_hash)
                    assert row is not None
                    assert row.status.value == outcome.status.value, "the caller is told what the ledger says"
            elif act == "resolve":
                payer.resolve(resend=bool(value), timeout_s=1.0)
            elif act == "decide":
                for doubt in store.pending():
                    with contextlib.suppress(WattlineError):
                        is_paid = doubt.payment_hash in wallet.paid()
                        payer.decide(doubt.payment_hash, is_paid=is_paid, why="looked")
            elif act == "pass_by":
                assert isinstance(value, float)
                clock.pass_by(value)
            elif act == "set_clock":
                assert isinstance(value, int)
                clock.wall_offset_s = value
            else:
                payer = fresh()
        except Crash:
            payer = fresh()
        check_once(wallet, store)

    # All is well again: every doubt is resolved within a few rounds, and the two books agree.
    wallet.fault = store.fault = no_fault
    wallet.outcome = lambda: SendStatus.COMPLETE
    payer = fresh()
    for _ in range(3):
        clock.pass_by(30.0)
        payer.resolve(timeout_s=1.0)
    assert not store.pending()
    assert not wallet.late
    check_once(wallet, store)
    check_books(wallet, store)


def check_once(wallet: FakeWallet, store: FakeStore | FaultyLedger) -> None:
    paid = Counter(wallet.labels[h] for h in wallet.paid())
    assert all(times == 1 for times in paid.values()), paid
    for payment_hash, payment in wallet.record.items():
        row = store.intent(payment_hash)
        assert row is not None, "nothing is sent before its intent is written"
        if row.status is IntentStatus.COMPLETE:
            assert payment.status is SendStatus.COMPLETE
        if row.status is IntentStatus.FAILED:
            assert payment.status is SendStatus.FAILED


def check_books(wallet: FakeWallet, store: FakeStore | FaultyLedger) -> None:
    """Nothing is pending any more: what the ledger calls complete is what left the wallet, to the msat."""
    rows = [store.intent(h) for h in wallet.sends]
    complete = {row.payment_hash: row for row in rows if row is not None and row.status is IntentStatus.COMPLETE}
    assert set(complete) == set(wallet.paid())
    assert sum(row.amount_sent_msat for row in complete.values()) == wallet.spent_msat()


def test_a_second_order_of_the_same_name_is_refused_before_anything_is_sent() -> None:
    clock = Clock()
    store = FakeStore()
    wallet = FakeWallet(clock)
    payer = Payer(wallet, store, clock.moment, clock, clock.pass_by)
    assert payer.pay(order(1)).status is SendStatus.COMPLETE
    with pytest.raises(AlreadyPaying):
        payer.pay(order(1))
    assert len(wallet.sends) == 1
