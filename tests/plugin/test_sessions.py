"""What the ledger is told of the sessions that live."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plugin.fakes import Stall, WatchedLock, new_session, record_of, session_id, wait_until
from wattline.core.clock import Clock
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.session.event import BooksClosed, CableClosed
from wattline.core.session.machine import step
from wattline.core.session.session import Session
from wattline.core.session.state import State
from wattline.plugin.outlet_state import Condition
from wattline.plugin.sessions import Sessions
from wattline.v1 import charging_pb2 as pb

SESSION = session_id(1)


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[Stall]:
    """One session that is saved as it was opened; the outlet's loop does not run."""
    stall = Stall(tmp_path, settles=False)
    show(stall, new_session())
    stall.app.sessions.add(record_of(new_session()), stall.outlet)
    stall.app.sessions.save(SESSION)
    yield stall
    stall.ledger.close()


def show(stall: Stall, session: Session) -> None:
    stall.outlet.view = replace(stall.outlet.view, session=session, condition=Condition.IN_USE)


def closed(session: Session) -> Session:
    for event in (CableClosed(), BooksClosed()):
        session, _ = step(session, event, 0)
    assert session.state is State.CLOSED
    return session


def saved(stall: Stall) -> SessionRecord:
    record = stall.ledger.session(SESSION)
    assert record is not None
    return record


def save(live: Sessions) -> None:
    live.save(SESSION)


def save_changed(live: Sessions) -> None:
    live.mark_changed(SESSION)
    live.save_changed()


@pytest.mark.parametrize("older_save", [save, save_changed])
def test_an_older_look_at_a_session_does_not_overwrite_its_end(
    stall: Stall, older_save: Callable[[Sessions], None]
) -> None:
    looked, go_on = threading.Event(), threading.Event()

    def hold_the_older(record: SessionRecord) -> None:
        if record.session.state is not State.CLOSED:
            looked.set()
            assert go_on.wait(3)

    def write_the_end() -> None:
        try:
            stall.app.sessions.save_over(replace(record_of(closed(new_session())), closed_at=5))
        finally:
            go_on.set()  # it did not have to wait for anybody

    vars(stall.app.sessions)["_saving"] = WatchedLock(go_on.set)
    stall.ledger.before_save = hold_the_older
    with ThreadPoolExecutor(2) as pool:
        older = pool.submit(older_save, stall.app.sessions)
        assert looked.wait(3)
        newer = pool.submit(write_the_end)
        older.result(5)
        newer.result(5)
    assert saved(stall).session.state is State.CLOSED
    assert saved(stall).closed_at == 5


def test_a_look_is_taken_after_whoever_writes_has_written(stall: Stall) -> None:
    writing, go_on, second_waits = threading.Event(), threading.Event(), threading.Event()

    def hold_the_first(record: SessionRecord) -> None:
        if not writing.is_set():
            writing.set()
            assert go_on.wait(3)

    vars(stall.app.sessions)["_saving"] = WatchedLock(second_waits.set)
    stall.ledger.before_save = hold_the_first
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stall.app.sessions.save, SESSION)
        assert writing.wait(3)
        second = pool.submit(stall.app.sessions.save, SESSION)
        wait_until(lambda: second_waits.is_set() or second.done())
        show(stall, closed(new_session()))
        go_on.set()
        first.result(5)
        second.result(5)
    assert saved(stall).session.state is State.CLOSED


def test_saving_what_has_changed_keeps_no_unit_of_work_open_while_it_waits_for_another_save(stall: Stall) -> None:
    writing, go_on, second_waits = threading.Event(), threading.Event(), threading.Event()

    def hold_the_first(record: SessionRecord) -> None:
        if not writing.is_set():
            writing.set()
            assert go_on.wait(3)

    vars(stall.app.sessions)["_saving"] = WatchedLock(second_waits.set)
    stall.ledger.before_save = hold_the_first
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stall.app.sessions.save, SESSION)
        assert writing.wait(3)
        second = pool.submit(save_changed, stall.app.sessions)
        wait_until(lambda: second_waits.is_set() or second.done())
        # Only one may write at a time: this would wait for the unit of work that the second must not have begun.
        stall.ledger.append_event(1, None, "anything", {})
        go_on.set()
        first.result(3)
        second.result(3)


def test_a_session_that_is_closed_in_memory_gets_the_time_of_its_end_with_the_save(stall: Stall) -> None:
    assert saved(stall).closed_at is None
    show(stall, closed(new_session()))
    stall.app.sessions.save(SESSION)
    assert saved(stall).session.state is State.CLOSED
    assert saved(stall).closed_at is not None


def test_what_could_not_be_saved_is_saved_the_next_time(stall: Stall) -> None:
    ended, _ = step(new_session(), CableClosed(), 0)
    show(stall, ended)
    stall.app.sessions.mark_changed(SESSION)
    stall.app.sessions.keep(pb.Statement(session_id=SESSION, sequence=7))
    stall.ledger.full = True
    with pytest.raises(LedgerError):
        stall.app.sessions.save_changed()
    assert stall.app.sessions.unsaved
    assert saved(stall).session.state is State.OPEN
    assert list(stall.ledger.statements(SESSION, 10)) == []
    stall.ledger.full = False
    stall.app.sessions.keep(pb.Statement(session_id=SESSION, sequence=8))
    stall.app.sessions.save_changed()
    assert not stall.app.sessions.unsaved
    assert saved(stall).session.state is State.SETTLING
    assert [kept.sequence for kept in stall.ledger.statements(SESSION, 10)] == [8, 7]


def test_a_session_without_changes_is_not_written(stall: Stall) -> None:
    stall.app.sessions.mark_changed(SESSION)
    stall.app.sessions.save_changed()
    writes: list[str] = []
    stall.ledger.before_save = lambda record: writes.append(record.session.session_id)
    stall.app.sessions.save_changed()
    assert writes == []


def test_no_number_of_a_statement_is_used_again_after_a_restart(stall: Stall) -> None:
    numbers = [stall.app.sessions.next_sequence(SESSION) for _ in range(3)]
    stall.app.sessions.save(SESSION)
    numbers += [stall.app.sessions.next_sequence(SESSION) for _ in range(50)]  # sent, not saved
    again = Sessions(stall.ledger, Clock())
    again.add(saved(stall), stall.outlet, restored=True)
    assert again.next_sequence(SESSION) > max(numbers)
    assert numbers == sorted(set(numbers))


def test_what_is_said_of_a_session_that_is_over_is_kept_nowhere(stall: Stall) -> None:
    stall.app.sessions.drop(SESSION)
    before = {name: len(kept) for name, kept in vars(stall.app.sessions).items() if isinstance(kept, dict)}
    stall.app.sessions.note(SESSION, "cable_closed", {})
    assert stall.app.sessions.next_sequence(SESSION) > 0
    assert {name: len(kept) for name, kept in vars(stall.app.sessions).items() if isinstance(kept, dict)} == before


def test_an_outlet_that_serves_another_session_by_now_shows_nothing_of_this_one(stall: Stall) -> None:
    show(stall, new_session(2))
    assert stall.app.sessions.view_of(SESSION) is None
    record = stall.app.sessions.record(SESSION)
    assert record is not None
    assert record.session.session_id == SESSION
