"""A ledger in SQLite; in PostgreSQL too where WATTLINE_POSTGRESQL_URL names an empty database to use for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from wattline.core.ledger.ledger import Ledger, open_ledger

POSTGRESQL_URL = os.environ.get("WATTLINE_POSTGRESQL_URL")


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRESQL_URL else ["sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "sqlite":
        where: str | Path = tmp_path / "ledger.sqlite3"
    else:
        where = empty_postgresql()
    with open_ledger(where) as opened:
        yield opened


def empty_postgresql() -> str:
    """The URL of the database in PostgreSQL, of which nothing is left."""
    assert POSTGRESQL_URL is not None
    engine = create_engine(POSTGRESQL_URL)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return POSTGRESQL_URL
