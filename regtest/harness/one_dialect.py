"""Statements of the ledger compiled once for a whole run of tests.

SQLAlchemy keeps what it has compiled for each engine by itself, and in it by the engine's dialect, so that each of the
hundreds of ledgers that tests make would have every statement compiled anew: a third of the time of such tests. Here
the dialects of all SQLite ledgers count as the same, which they are, and all engines share one cache.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.util import LRUCache

STATEMENTS = 2_000


class OneDialect(SQLiteDialect_pysqlite):
    """Equal to all its kind."""

    supports_statement_cache = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OneDialect)

    def __hash__(self) -> int:
        return hash(OneDialect)


def share_compiled_statements() -> None:
    """From now on, for every ledger that this process opens."""
    compiled: LRUCache[Any, Any] = LRUCache(STATEMENTS)
    registry.register("sqlite", __name__, OneDialect.__name__)

    @event.listens_for(Engine, "engine_connect")
    def share(connection: Connection) -> None:
        connection.execution_options(compiled_cache=compiled)
