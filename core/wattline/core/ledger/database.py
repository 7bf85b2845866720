"""Units of work on one database, for several threads.

A unit of work is committed as a whole or leaves nothing behind, also when the process or the machine dies: SQLite runs
with a write-ahead log that is synced at every commit.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from wattline.core.errors import RetryError, StopError, UsageError
from wattline.core.ledger.schema import bring_up_to_date
from wattline.core.ownership import ForeignFile, check_folder

_READING = "wattline_reading"
BUSY_TIMEOUT_MS = 10_000
"""How long a unit of work waits for another process's."""


class LedgerError(StopError):
    """The durable record cannot be kept: take no money and deliver nothing.

    Codes ``ledger_full``, ``ledger_not_writable``, ``ledger_exposed``, ``ledger_damaged``, ``ledger_failed``."""


class LedgerBusy(RetryError):
    """The database is locked by another process or cannot be reached just now. Code ``ledger_busy``; nothing was
    changed, unless the connection was lost in a commit."""


class Database:
    """One database. Every thread has its own unit of work; a unit within a unit is a part of the outer one."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name
        """For messages: a path, or a URL without its password."""
        self._current = threading.local()
        self._reading = engine.execution_options(**{_READING: True})

    @property
    def in_unit(self) -> bool:
        """Whether the calling thread is inside a unit of work."""
        return getattr(self._current, "connection", None) is not None

    @contextmanager
    def unit(self) -> Iterator[Connection]:
        """A unit of work: committed at the end, rolled back when the block raises. Inside another unit of the same
        thread it is a part of it: rolled back alone when its block raises, committed with the outer one. When the
        database itself failed (a full disk, say), the outer one fails too, whoever caught the error in between.

        Raises LedgerBusy, LedgerError; IntegrityError passes, for whoever knows what it means.
        """
        with self._named_errors():
            if self.in_unit:
                with self._part() as connection:
                    yield connection
                return
            with self.engine.begin() as connection:
                self._current.connection, self._current.failure = connection, None
                try:
                    yield connection
                    if self._current.failure is not None:
                        raise self._current.failure
                finally:
                    self._current.connection = None

    @contextmanager
    def view(self) -> Iterator[Connection]:
        """For reading alone: one consistent state, without waiting for writers. Inside a unit of work of the same
        thread it sees what that has written. Raises LedgerBusy, LedgerError."""
        with self._named_errors():
            if self.in_unit:
                with self._part() as connection:
                    yield connection
                return
            with self._reading.connect() as connection:
                yield connection

    @contextmanager
    def _part(self) -> Iterator[Connection]:
        """A savepoint of the thread's unit of work."""
        if self._current.failure is not None:
            raise self._current.failure
        connection: Connection = self._current.connection
        savepoint = connection.begin_nested()
        try:
            yield connection
            savepoint.commit()
        except BaseException as error:
            if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
                # SQLite may have rolled the whole transaction back by itself; what came then would be committed alone.
                self._current.failure = _named(error, self.name)
            if self._current.failure is None:
                savepoint.rollback()
            raise

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise _named(error, self.name) from error


def open_database(where: str | Path) -> Database:
    """The database at ``where``: the path of a SQLite file, or a SQLAlchemy URL. Made or migrated when needed; a SQLite
    file is readable by its owner alone.

    Raises UsageError ``ledger_url``, ``ledger_too_new`` or ``ledger_foreign``; LedgerError, LedgerBusy.
    """
    url = _url(where)
    name = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite":
        path = url.database
        if not path or path == ":memory:":
            raise UsageError("ledger_url", f"{name}: a ledger in memory forgets money; name a file")
        name = path
    try:
        engine = create_engine(url)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise UsageError("ledger_url", f"{name}: no such kind of database: {error}") from error
    if url.get_backend_name() == "sqlite":
        _make_private(Path(name))  # not before the URL is known to be usable
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    database = Database(engine, name)
    try:
        with database.unit() as connection:
            bring_up_to_date(connection)
    except UsageError as error:
        database.close()
        raise UsageError(error.code, f"{name}: {error.message}") from error
    except BaseException:
        database.close()
        raise
    return database


def _url(where: str | Path) -> URL:
    if isinstance(where, str) and "://" in where:
        try:
            return make_url(where)
        except ArgumentError as error:
            raise UsageError("ledger_url", f"not a database URL: {error}") from error
    return URL.create("sqlite", database=str(where))


def _make_private(path: Path) -> None:
    """Create the file for its owner alone before SQLite does: it gives its log and index the same rights."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # SQLite believes what lies beside the file: whoever may put a log there can rewrite the ledger with it.
        check_folder(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            if file.exists():
                file.chmod(0o600)
    except ForeignFile as error:
        raise LedgerError("ledger_exposed", f"{path.parent}: {error.strerror}; keep the ledger elsewhere") from error
    except OSError as error:
        raise LedgerError("ledger_not_writable", f"{path}: cannot be opened for writing: {error.strerror}") from error


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # Transactions are begun by _begin_sqlite; Python's own, which begin at the first write, could deadlock.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE: a unit that reads and then writes must not find that another has written in between.
    reading = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


_SQLITE_CODES = {
    sqlite3.SQLITE_FULL: "ledger_full",
    sqlite3.SQLITE_IOERR: "ledger_failed",
    sqlite3.SQLITE_READONLY: "ledger_not_writable",
    sqlite3.SQLITE_CANTOPEN: "ledger_not_writable",
    sqlite3.SQLITE_PERM: "ledger_not_writable",
    sqlite3.SQLITE_CORRUPT: "ledger_damaged",
    sqlite3.SQLITE_NOTADB: "ledger_damaged",
}
_SQLITE_MESSAGES = {
    "ledger_full": "the disk is full",
    "ledger_not_writable": "it cannot be written",
    "ledger_damaged": "it is damaged or not a SQLite database",
    "ledger_failed": "the database failed",
}


def _named(error: DBAPIError, name: str) -> LedgerError | LedgerBusy:
    cause = error.orig
    number = getattr(cause, "sqlite_errorcode", None)
    if number is None:
        # Not SQLite: whoever lost the server can come again, all else needs a person.
        if error.connection_invalidated:
            return LedgerBusy("ledger_busy", f"{name}: the connection was lost: {cause}")
        if type(cause).__name__ == "OperationalError":
            return LedgerBusy("ledger_busy", f"{name}: the database cannot be used just now: {cause}")
        return LedgerError("ledger_failed", f"{name}: the database failed: {cause}")
    primary = number & 0xFF  # the rest is SQLite's extended code
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerBusy("ledger_busy", f"{name}: another process keeps the database locked")
    code = _SQLITE_CODES.get(primary, "ledger_failed")
    return LedgerError(code, f"{name}: {_SQLITE_MESSAGES[code]}: {cause}")


class Store:
    """A part of the ledger, by concern. Every method is a unit of work of its own, or a part of the caller's; each may
    raise LedgerBusy and LedgerError."""

    def __init__(self, database: Database) -> None:
        self._database = database
