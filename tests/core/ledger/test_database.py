"""Opening the ledger, its units of work, and what it says when it cannot write."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Connection, event

from tests.core.ledger.samples import record, session_id
from wattline.core.errors import UsageError
from wattline.core.ledger.database import LedgerBusy, LedgerError, open_database
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.ledger.schema import SCHEMA_VERSION, bring_up_to_date, metadata, statements_of_new


class Interruption(Exception):
    """Whatever may end a unit of work before its time."""


def test_a_new_ledger_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "ledger.sqlite3"
    with open_ledger(path) as ledger:
        ledger.append_event(1, None, "kept", {})
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == ["ledger.sqlite3", "ledger.sqlite3-shm", "ledger.sqlite3-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_ledger_that_others_could_read_is_made_private_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    open_ledger(path).close()
    path.chmod(0o644)
    open_ledger(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_commit_is_synced_and_foreign_keys_hold(tmp_path: Path) -> None:
    database = open_database(tmp_path / "ledger.sqlite3")
    with database.view() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_a_database_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    open_ledger(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(UsageError, match=rf"version 99.*up to {SCHEMA_VERSION}") as caught:
        open_ledger(path)
    assert caught.value.code == "ledger_too_new"
    assert str(path) in caught.value.message
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(99,)]


def test_a_ledger_from_before_the_first_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    open_ledger(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = 1")
    with pytest.raises(UsageError, match=r"version 1.*move the database away") as caught:
        open_ledger(path)
    assert caught.value.code == "ledger_too_old"
    assert str(path) in caught.value.message
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(1,)]


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(UsageError, match="invoices") as caught:
        open_ledger(path)
    assert caught.value.code == "ledger_foreign"


def test_an_older_database_is_migrated_step_by_step_and_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    with open_ledger(path) as ledger:
        ledger.append_event(1, None, "kept", {"since": "this version"})
    next_version, last_version = SCHEMA_VERSION + 1, SCHEMA_VERSION + 2
    steps: list[int] = []

    def first(connection: Connection) -> None:
        steps.append(next_version)
        connection.exec_driver_sql("CREATE TABLE two (id INTEGER)")

    def second(connection: Connection) -> None:
        steps.append(last_version)
        connection.exec_driver_sql("INSERT INTO two VALUES (3)")

    database = open_database(path)
    for found in (SCHEMA_VERSION, last_version):
        with database.unit() as connection:
            migrations = {next_version: first, last_version: second}
            assert bring_up_to_date(connection, migrations, version=last_version) == found
    assert steps == [next_version, last_version]
    database.close()
    with pytest.raises(UsageError, match=f"version {last_version}"):
        open_ledger(path)


def test_a_migration_that_fails_leaves_the_database_in_its_old_version(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    open_ledger(path).close()

    def broken(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE two (id INTEGER)")
        raise RuntimeError("power cut")

    database = open_database(path)
    with pytest.raises(RuntimeError), database.unit() as connection:
        bring_up_to_date(connection, {SCHEMA_VERSION + 1: broken}, version=SCHEMA_VERSION + 1)
    database.close()
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT name FROM sqlite_master WHERE name = 'two'").fetchall() == []
        assert raw.execute("SELECT version FROM schema_version").fetchall() == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("where", ["sqlite://", "sqlite:///:memory:"])
def test_a_ledger_in_memory_is_refused(where: str) -> None:
    with pytest.raises(UsageError, match="forgets money"):
        open_ledger(where)


@pytest.mark.parametrize("where", ["nonsense://there", "://", "sqlite+nonsense:///x"])
def test_an_unknown_kind_of_database_is_a_usage_error(where: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_ledger(where)
    assert caught.value.code == "ledger_url"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no" / "folder" / "x.sqlite3", tmp_path / "file" / "x.sqlite3", tmp_path):
        with pytest.raises(LedgerError, match=str(path)) as caught:
            open_ledger(path)
        assert caught.value.code == "ledger_not_writable"


def test_a_file_that_is_no_database_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(LedgerError) as caught:
        open_ledger(path)
    assert caught.value.code == "ledger_damaged"


def test_a_full_disk_is_said_and_nothing_of_the_unit_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    open_ledger(path).close()
    database = open_database(path)

    def limit_size(connection: sqlite3.Connection, _record: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 3}")

    database.engine.dispose()
    event.listen(database.engine, "connect", limit_size)
    ledger = Ledger(database)

    def write_much() -> None:
        with ledger.unit():
            ledger.append_event(1, None, "small", {})
            ledger.append_event(2, None, "large", {"text": "x" * 100_000})

    def write_on() -> None:
        with ledger.unit():
            ledger.append_event(1, None, "small", {})
            for text in ("x" * 100_000, "small"):
                with suppress(LedgerError):
                    ledger.append_event(2, None, "caught", {"text": text})

    for write in (write_much, write_on):
        with pytest.raises(LedgerError, match="disk is full") as caught:
            write()
        assert caught.value.code == "ledger_full"
        assert ledger.events(10) == []
    ledger.append_event(3, None, "small", {})
    assert [logged.at for logged in ledger.events(10)] == [3]
    ledger.close()


def test_a_database_that_cannot_be_written_any_more_is_said(tmp_path: Path) -> None:
    database = open_database(tmp_path / "ledger.sqlite3")
    database.engine.dispose()
    event.listen(
        database.engine, "connect", lambda connection, _record: connection.execute("PRAGMA query_only = ON") and None
    )
    ledger = Ledger(database)
    with pytest.raises(LedgerError) as caught:
        ledger.append_event(1, None, "lost", {})
    assert caught.value.code == "ledger_not_writable"
    ledger.close()


def test_a_database_that_another_process_keeps_locked_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    database = open_database(path)
    database.engine.dispose()
    event.listen(
        database.engine, "connect", lambda connection, _record: connection.execute("PRAGMA busy_timeout = 1") and None
    )
    ledger = Ledger(database)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusy, match="locked"):
        ledger.append_event(1, None, "lost", {})
    assert ledger.events(10) == []  # reading goes on
    other.execute("COMMIT")
    ledger.append_event(1, None, "kept", {})
    other.close()
    ledger.close()


def test_a_unit_of_work_keeps_all_or_nothing(ledger: Ledger) -> None:
    with suppress(Interruption), ledger.unit():
        ledger.save_session(record())
        ledger.append_event(1, session_id(1), "opened", {})
        raise Interruption
    assert ledger.session(session_id(1)) is None
    assert ledger.events(10) == []
    with ledger.unit():
        ledger.save_session(record())
        ledger.append_event(1, session_id(1), "opened", {})
        assert ledger.session(session_id(1)) is not None
    assert ledger.session(session_id(1)) is not None
    assert len(ledger.events(10)) == 1


def test_a_unit_within_a_unit_can_fail_alone(ledger: Ledger) -> None:
    with ledger.unit():
        ledger.append_event(1, None, "kept", {})
        with suppress(Interruption), ledger.unit():
            ledger.append_event(2, None, "dropped", {})
            raise Interruption
        ledger.append_event(3, None, "kept", {})
    assert [logged.at for logged in ledger.events(10)] == [3, 1]


def test_several_threads_write_and_none_is_lost(ledger: Ledger) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 20):
            with ledger.unit():
                count = len(ledger.events(1000))
                ledger.append_event(number, None, "counted", {"before": count})

    threads = [threading.Thread(target=write, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logged = ledger.events(1000)
    assert len({event.at for event in logged}) == 80
    if ledger._database.engine.dialect.name == "sqlite":
        # Units that write come one after the other, so that each has seen all before it.
        assert sorted(event.detail["before"] for event in logged) == list(range(80))


def test_a_reader_sees_only_what_is_committed(ledger: Ledger) -> None:
    seen: list[int] = []
    with ledger.unit():
        ledger.append_event(1, None, "not yet", {})
        reader = threading.Thread(target=lambda: seen.append(len(ledger.events(10))))
        reader.start()
        reader.join()
    assert seen == [0]
    assert len(ledger.events(10)) == 1


def test_every_table_and_index_can_be_made_in_postgresql() -> None:
    made = statements_of_new("postgresql")
    for name in metadata.tables:
        assert any(statement.startswith(f"CREATE TABLE {name} (") for statement in made)
    assert "BIGSERIAL" in next(statement for statement in made if "CREATE TABLE events" in statement)
    (pay_once,) = (statement for statement in made if statement.startswith("CREATE UNIQUE INDEX intents_pay_once "))
    assert pay_once.endswith(" WHERE status <> 'failed'")


def test_who_keeps_the_ledger_in_a_file_loads_nothing_of_postgresql(tmp_path: Path) -> None:
    program = (
        "import sys; from wattline.core.ledger.ledger import open_ledger; open_ledger(sys.argv[1]).close(); "
        "print(*(name for name in sys.modules if name.startswith('sqlalchemy.dialects.')))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "ledger.sqlite3")]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "sqlalchemy.dialects.sqlite" in loaded
    assert "sqlalchemy.dialects.postgresql" not in loaded
