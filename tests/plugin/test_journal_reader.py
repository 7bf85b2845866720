"""The journal becomes credits, orphans and the ledger's cursor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugin.fakes import (
    FakeJournal,
    Stall,
    WatchedLedger,
    new_session,
    payment_hash,
    record_of,
    session_id,
    wait_until,
)
from wattline.core.clock import Clock
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.payment import Kind
from wattline.core.lightning.node import NodeUnavailable
from wattline.plugin import journal as bookkeeping
from wattline.plugin.journal import JournalReader

SESSION, OTHER = session_id(1), session_id(2)


class Taker:
    """Takes what is for one session."""

    def __init__(self, ledger: WatchedLedger) -> None:
        self._ledger = ledger
        self.takes = True
        self.taken: list[tuple[str, str, int]] = []
        self.told: list[str] = []

    def take(self, session_id: str, payment_hash: str, amount_msat: int) -> bool:
        if not self.takes or session_id != SESSION:
            return False
        self.taken.append((session_id, payment_hash, amount_msat))
        return True

    def booked(self, payment_hashes: Sequence[str]) -> None:
        assert all(self._ledger.booked(known) is not None for known in payment_hashes), "told before it was true"
        self.told += payment_hashes


class Books:
    def __init__(self, path: Path) -> None:
        self.ledger = WatchedLedger(path / "socket.sqlite3")
        self.ledger.save_session(record_of(new_session()))
        self.journal = FakeJournal()
        self.taker = Taker(self.ledger)
        self.keeper = self.another()

    def another(self) -> JournalReader:
        """As after a restart."""
        return JournalReader(self.journal, self.ledger, self.taker.take, self.taker.booked, 1.0, Clock())


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path)
    yield books
    books.ledger.close()


def test_what_a_session_takes_is_booked_as_its_credit(books: Books) -> None:
    books.journal.add(SESSION, 1, 5000)
    assert books.keeper.read_to_end() == 1
    assert books.ledger.credited(SESSION) == (5000, 1)
    assert list(books.ledger.orphans()) == []
    assert books.taker.taken == [(SESSION, payment_hash(1), 5000)]
    assert books.taker.told == [payment_hash(1)]


@pytest.mark.parametrize("session", [SESSION, OTHER])
def test_what_no_session_takes_is_booked_as_an_orphan_and_credits_nothing(books: Books, session: str) -> None:
    books.taker.takes = False
    books.journal.add(session, 1, 5000)
    assert books.keeper.read_to_end() == 1
    (orphan,) = books.ledger.orphans()
    assert (orphan.kind, orphan.session_id, orphan.amount_msat) == (Kind.ORPHAN, session, 5000)
    assert orphan.pay_index == 1, "the number of its refund"
    assert books.ledger.credited(session) == (0, 0)


def test_every_row_is_booked_once_however_often_the_journal_is_read(books: Books) -> None:
    books.journal.add(SESSION, 1, 5000)
    books.keeper.read_to_end()
    assert books.another().read_to_end() == 0
    row = books.journal.rows[0]
    books.journal.add(SESSION, 1, 5000, pay_index=row.pay_index)  # lightningd has touched the row again
    assert books.another().read_to_end() == 0
    assert books.ledger.credited(SESSION) == (5000, 1)
    assert len(books.taker.taken) == 1


def test_the_journal_is_read_batch_by_batch_to_its_end(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeping, "BATCH", 2)
    for number in range(1, 6):
        books.journal.add(SESSION, number, 100)
    assert books.keeper.read_to_end() == 5
    assert books.ledger.credited(SESSION) == (500, 5)
    assert books.keeper.missing_invoices == 0


def test_a_gap_in_the_pay_index_is_an_alarm(books: Books, caplog: pytest.LogCaptureFixture) -> None:
    books.journal.add(SESSION, 1, 100)
    books.journal.add(SESSION, 2, 100)
    books.keeper.read_to_end()
    assert books.keeper.missing_invoices == 0
    assert caplog.records == []
    books.journal.add(SESSION, 3, 100, pay_index=5)
    books.keeper.read_to_end()
    assert books.keeper.missing_invoices == 2
    assert "2 paid invoice(s) were deleted" in caplog.text
    assert "pay_index 3 to 4" in caplog.text


def test_a_gap_is_noticed_across_a_restart_and_within_one_batch(books: Books) -> None:
    books.journal.add(SESSION, 1, 100)
    books.keeper.read_to_end()
    books.journal.add(SESSION, 2, 100, pay_index=3)
    books.journal.add(SESSION, 3, 100, pay_index=4)
    books.journal.add(SESSION, 4, 100, pay_index=7)
    keeper = books.another()
    keeper.read_to_end()
    assert keeper.missing_invoices == 3


def test_a_journal_that_begins_late_or_is_out_of_order_has_no_gap(books: Books) -> None:
    for number, pay_index in ((1, 40), (2, 41), (3, 41), (4, 40), (5, 42)):
        books.journal.add(SESSION, number, 100, pay_index=pay_index)
    books.keeper.read_to_end()
    assert books.keeper.missing_invoices == 0
    assert books.ledger.cursor().pay_index == 42


def test_other_peoples_invoices_and_unpaid_ones_only_move_the_cursor(books: Books) -> None:
    ours = f"keysend: wattline:1:{SESSION}:1"
    books.journal.add(SESSION, 1, 100, label="coffee")
    books.journal.add(SESSION, 2, 100, description="keysend: a gift")
    books.journal.add(SESSION, 3, 100, description=f"{ours}:1")
    books.journal.add(SESSION, 4, 100, description=ours.removeprefix("keysend: "))
    books.journal.add(SESSION, 5, 100, is_paid=False, pay_index=None)
    assert books.keeper.read_to_end() == 0
    assert books.taker.taken == []
    assert books.ledger.cursor().updated_index == 5
    assert books.ledger.cursor().pay_index == 4


def test_what_cannot_be_written_is_read_again_and_nobody_is_told_that_it_was_booked(books: Books) -> None:
    books.journal.add(SESSION, 1, 5000)
    books.ledger.full = True
    with pytest.raises(LedgerError):
        books.keeper.read_to_end()
    assert books.taker.told == []
    assert books.ledger.cursor().updated_index == 0
    books.ledger.full = False
    assert books.keeper.read_to_end() == 1
    assert books.taker.told == [payment_hash(1)]


def test_a_credit_that_could_not_be_booked_at_first_is_on_the_account_once(tmp_path: Path) -> None:
    with Stall(tmp_path, settles=False) as stall:
        session = stall.open()
        stall.journal.add(session, 1, 5000)
        stall.ledger.full = True
        with pytest.raises(LedgerError):
            stall.app.journal.read_to_end()
        assert stall.session.account.credited_msat == 5000
        stall.ledger.full = False
        stall.app.journal.read_to_end()
        assert stall.session.account.credited_msat == 5000
        assert stall.ledger.credited(session) == (5000, 1)


def test_a_node_that_does_not_answer_is_no_end_of_the_journal(books: Books) -> None:
    books.journal.gone = True
    with pytest.raises(NodeUnavailable):
        books.keeper.read_to_end()


def test_the_reader_books_by_itself_and_goes_on_when_the_node_was_away(books: Books) -> None:
    books.journal.gone = True
    books.journal.add(SESSION, 1, 5000)
    keeper = JournalReader(books.journal, books.ledger, books.taker.take, books.taker.booked, 0.01, Clock())
    keeper.start()
    keeper.wake()
    books.journal.gone = False
    keeper.wake()
    wait_until(lambda: books.ledger.credited(SESSION) == (5000, 1))
    keeper.stop()


# What lightningd told of and the journal does not show.

acts = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["told", "listed", "told and listed"]), st.integers(1, 6)),
        st.tuples(st.sampled_from(["read", "wait", "restart"]), st.just(0)),
    ),
    max_size=25,
)


@given(acts)
@settings(deadline=None, max_examples=60)
def test_what_was_told_or_listed_is_booked_once_whatever_was_deleted_and_whenever(
    acts: list[tuple[str, int]],
) -> None:
    """Only what was told less than LAG_S before the process died and never listed is lost: nobody had written it."""
    with TemporaryDirectory() as directory:
        books = Books(Path(directory))
        seconds = [0.0]
        clock = Clock(wall=lambda: 1.0, monotonic=lambda: seconds[0])
        keeper = JournalReader(books.journal, books.ledger, books.taker.take, books.taker.booked, 1.0, clock)
        told: dict[int, float] = {}
        due: set[int] = set()
        listed: set[int] = set()
        for act, number in acts:
            seconds[0] += 0.1
            if act in ("told", "told and listed") and number not in told:
                told[number] = seconds[0]
                keeper.told(SESSION, payment_hash(number), 100 + number)
            if act in ("listed", "told and listed") and number not in listed:
                listed.add(number)
                books.journal.add(SESSION, number, 100 + number)
            if act == "wait":
                seconds[0] += bookkeeping.LAG_S
            if act == "restart":
                told = {number: at for number, at in told.items() if number in due}
                keeper = JournalReader(books.journal, books.ledger, books.taker.take, books.taker.booked, 1.0, clock)
            if act == "read":
                keeper.read_to_end()
                due |= {number for number, at in told.items() if at <= seconds[0] - bookkeeping.LAG_S}
        seconds[0] += 2 * bookkeeping.LAG_S
        keeper.read_to_end()
        wanted = listed | told.keys() | due
        rows = books.ledger.payments(SESSION)
        assert sorted(row.payment_hash for row in rows) == sorted(payment_hash(number) for number in wanted)
        assert books.ledger.credited(SESSION) == (sum(100 + number for number in wanted), len(wanted))
        books.ledger.close()


def test_what_is_told_is_left_to_the_journal_for_a_while(books: Books) -> None:
    keeper = JournalReader(books.journal, books.ledger, books.taker.take, books.taker.booked, 1.0, Clock())
    keeper.told(SESSION, payment_hash(1), 5000)
    assert keeper.read_to_end() == 0
    books.journal.add(SESSION, 1, 5000)
    assert keeper.read_to_end() == 1
    (row,) = books.ledger.payments(SESSION)
    assert (row.pay_index, row.sequence) == (1, 1), "the journal's row, not what was told"
    assert keeper.unlisted_payments == 0
