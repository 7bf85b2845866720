"""Credit by both methods: whatever is handed over, told again or dropped, it counts once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.core.ledger.onchain_samples import INPUTS, aggregate, outpoint, version
from tests.core.ledger.samples import booking, record, session_id
from wattline.core.aggregate import AggregateInput, AggregateStatus, Version
from wattline.core.errors import StopError
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.ledger.payment import Cursor


@dataclass
class Books:
    """What one session ought to have."""

    keysend: dict[int, int] = field(default_factory=dict)
    versions: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """Value (sat) and whether it is final, by number."""
    whole: set[int] = field(default_factory=set)
    """Of which the ledger still has the transaction."""
    status: AggregateStatus = AggregateStatus.OPEN
    chosen: int | None = None

    @property
    def growing(self) -> dict[int, int]:
        return {number: value for number, (value, is_final) in self.versions.items() if not is_final}

    def refusal(self, new: Version) -> str:
        """Why a version is not taken; empty when it is."""
        newest = max(self.growing, default=0)
        value_sat = self.growing.get(newest, 0)
        if self.status is not AggregateStatus.OPEN or len(self.growing) < len(self.versions):
            return "session_closed"
        if new.number != newest + 1:
            return "bad_version"
        if new.is_final:
            return "" if new.value_sat < value_sat else "wrong_output"
        return "" if new.value_sat > value_sat else "value_not_larger"

    @property
    def choices(self) -> set[int]:
        """The newest version, and the final one."""
        return {number for number in (max(self.growing, default=0), max(self.versions, default=0)) if number}

    def store(self, new: Version) -> None:
        if self.growing and not new.is_final:
            self.whole = {max(self.growing)}
        self.versions[new.number] = (new.value_sat, new.is_final)
        self.whole.add(new.number)

    def drops(self, number: int) -> bool:
        """Only the last one, when the one before it could still be broadcast."""
        earlier = self.versions.keys() - {number}
        is_last = number in self.versions and all(other < number for other in earlier)
        return self.status is AggregateStatus.OPEN and is_last and (not earlier or max(earlier) in self.whole)

    def forget_all_but_the_newest(self) -> None:
        newest = max(self.growing, default=0)
        self.versions = {number: kept for number, kept in self.versions.items() if number == newest}

    def knows(self, new: Version) -> bool:
        return self.versions.get(new.number) == (new.value_sat, new.is_final)


sessions = st.sampled_from([1, 2])
steps = st.one_of(
    st.tuples(st.just("book"), sessions, st.integers(1, 6), st.integers(1, 5000)),
    st.tuples(st.just("store"), sessions, st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.just("store"), sessions, st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.just("final"), sessions, st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.just("drop"), sessions, st.integers(1, 6), st.just(0)),
    st.tuples(st.just("choose"), sessions, st.integers(1, 6), st.just(0)),
    st.tuples(st.just("void"), sessions, st.just(0), st.just(0)),
)
counter = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=20))
@example([("store", 1, 1, 1), ("store", 1, 2, 2), ("final", 1, 3, 1), ("void", 1, 0, 0), ("store", 1, 1, 1)])
def test_a_session_is_credited_its_payments_and_its_newest_version_and_nothing_twice(
    tmp_path: Path, steps: list[tuple[str, int, int, int]]
) -> None:
    prove(tmp_path, steps)


@pytest.mark.long
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=20))
def test_the_same_of_more_histories(tmp_path: Path, steps: list[tuple[str, int, int, int]]) -> None:
    prove(tmp_path, steps)


def prove(tmp_path: Path, steps: list[tuple[str, int, int, int]]) -> None:
    books = {1: Books(), 2: Books()}
    path = tmp_path / f"{next(counter)}.sqlite3"
    with open_ledger(path) as ledger:
        for number in books:
            ledger.save_session(record(number))
            ledger.invite(aggregate(number))
        for kind, session, number, amount in steps:
            take_step(ledger, books[session], kind, session, number, amount)
            check(ledger, books)
    with open_ledger(path) as ledger:
        check(ledger, books)


def take_step(ledger: Ledger, own: Books, kind: str, session: int, number: int, amount: int) -> None:
    if kind == "book":
        row = booking(10 * session + number, session=session, amount_msat=amount)
        if own.keysend.setdefault(number, amount) == amount:
            ledger.book([row], Cursor())
    elif kind in ("store", "final"):
        new = version(number, session, value_sat=1000 * amount, is_final=kind == "final")
        inputs = [AggregateInput(outpoint(session), 100_000)]
        expected: object = False if own.knows(new) else own.refusal(new) or True
        assert result_of(lambda: ledger.store_version(new, inputs, first_height=7)) == expected
        if expected is True:
            own.store(new)
    elif kind == "drop":
        expected = None if own.drops(number) or number not in own.versions else "version_in_use"
        assert result_of(lambda: ledger.drop_version(session_id(session), number)) == expected
        if expected is None:
            own.versions.pop(number, None)
    elif kind == "choose":
        if own.status is AggregateStatus.OPEN and number not in own.choices:
            choosing = result_of(lambda: ledger.choose(session_id(session), number, "closed", 9))
            assert choosing == "version_stale"
            return
        if own.status is AggregateStatus.OPEN:
            own.status, own.chosen = AggregateStatus.SENT, number
        chosen = ledger.choose(session_id(session), number, "closed", 9)
        assert (chosen.status, chosen.chosen_number) == (own.status, own.chosen)
    else:
        voided = ledger.void(session_id(session), "nothing owed", 9)
        if own.status is AggregateStatus.OPEN:
            own.status = AggregateStatus.VOID
            own.forget_all_but_the_newest()
        assert (voided.status, voided.chosen_number) == (own.status, own.chosen)


def result_of(call: Callable[[], object]) -> object:
    """What the call returns, or the code of the error that it raises."""
    try:
        return call()
    except StopError as error:
        return error.code


def check(ledger: Ledger, books: dict[int, Books]) -> None:
    exposure_sat = 0
    onchain_msat = {}
    for session, own in books.items():
        name = session_id(session)
        newest = max(own.growing, default=0)
        onchain_msat[session] = 1000 * own.growing.get(newest, 0)
        found = ledger.session(name)
        assert found is not None
        account = found.session.account
        assert account.credited_msat == sum(own.keysend.values()) + onchain_msat[session]
        assert account.payments == len(own.keysend) + len(own.growing)
        assert ledger.credited(name) == (sum(own.keysend.values()), len(own.keysend))
        assert ledger.onchain_credited_msat(name) == onchain_msat[session]
        assert ledger.increments(name) == len(own.growing)
        stored, final = ledger.newest_version(name), ledger.final_version(name)
        assert (stored.number if stored else 0) == newest
        assert ({final.number} if final else set()) == own.versions.keys() - own.growing.keys()
        # Whatever may be broadcast can be.
        assert all(candidate.is_whole for candidate in (stored, final) if candidate is not None)
        if own.status is AggregateStatus.OPEN:
            exposure_sat += onchain_msat[session] // 1000
        elif own.chosen is not None:
            exposure_sat += own.versions[own.chosen][0]
    assert ledger.exposure_sat() == exposure_sat
    totals = ledger.totals(0, 10**6)
    assert totals.onchain_credited_msat == sum(onchain_msat.values())
    assert totals.credited_msat == sum(onchain_msat.values()) + sum(
        amount for own in books.values() for amount in own.keysend.values()
    )
    assert totals.payments == sum(len(own.keysend) + len(own.growing) for own in books.values())


def test_what_a_session_gave_back_unsent_is_kept(ledger: Ledger) -> None:
    settled = record()
    ledger.save_session(settled)
    ledger.invite(aggregate())
    ledger.store_version(version(1, value_sat=3000), INPUTS)
    ledger.save_session(replace(settled, session=replace(settled.session, returned_msat=2000)))
    found = ledger.session(session_id(1))
    assert found is not None
    assert (found.session.returned_msat, found.session.account.credited_msat) == (2000, 3_000_000)


def test_a_version_within_a_unit_of_work_that_fails_is_not_credited(ledger: Ledger) -> None:
    ledger.save_session(record())
    ledger.invite(aggregate())
    with suppress(KeyError), ledger.unit():
        ledger.store_version(version(1), INPUTS)
        raise KeyError
    assert ledger.newest_version(session_id(1)) is None
    assert ledger.onchain_credited_msat(session_id(1)) == 0
    assert ledger.input_in_use(INPUTS[0].outpoint, "") is None
