"""Ledgers of earlier versions, from the first day on."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, inspect

from tests.ledger.conftest import POSTGRESQL_URL, empty_postgresql
from tests.ledger.onchain_samples import INPUTS, aggregate, version
from tests.ledger.samples import NODE_ID, intent, payment_hash, session_id
from wattline.ledger import IntentStatus, open_ledger
from wattline.ledger.schema import SCHEMA_VERSION
from wattline.session import RefundStatus, State

VERSION_1 = Path(__file__).with_name("version_1.sql").read_text(encoding="utf-8")
NAMES = {
    "sqlite": {"{row_number}": "INTEGER", "{one}": "INTEGER", "{bytes}": "BLOB"},
    "postgresql": {"{row_number}": "BIGSERIAL", "{one}": "SERIAL", "{bytes}": "BYTEA"},
}


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRESQL_URL else ["sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    else:
        yield empty_postgresql()


def make_version_1(place: str) -> None:
    engine = create_engine(place)
    with engine.begin() as connection:
        for statement in version_1(engine.dialect.name):
            connection.exec_driver_sql(statement)
    engine.dispose()


def version_1(dialect: str) -> list[str]:
    script = re.sub(r"^--.*$", "", VERSION_1, flags=re.MULTILINE)
    for name, meaning in NAMES[dialect].items():
        script = script.replace(name, meaning)
    return [statement for statement in script.split(";") if statement.strip()]


def rows(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """All that a database holds, by table."""
    return {
        name: sorted(
            (dict(row._mapping) for row in connection.exec_driver_sql(f"SELECT * FROM {name}")),
            key=lambda row: str(row),
        )
        for name in inspect(connection).get_table_names()
    }


def definitions(engine: Engine) -> dict[str, Any]:
    """Everything that the database knows about its tables but for the rows."""
    found: dict[str, Any] = {}
    inspector = inspect(engine)
    for name in inspector.get_table_names():
        found[name] = {
            "columns": [{**column, "type": str(column["type"])} for column in inspector.get_columns(name)],
            "primary key": inspector.get_pk_constraint(name),
            "foreign keys": inspector.get_foreign_keys(name),
            "unique": sorted(json.dumps(item, default=str) for item in inspector.get_unique_constraints(name)),
            "checks": sorted(json.dumps(item, default=str) for item in inspector.get_check_constraints(name)),
            "indexes": sorted(json.dumps(item, default=str) for item in inspector.get_indexes(name)),
        }
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            for row in connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
                found[f"SQL of {row.name}"] = re.sub(r"\s+", " ", row.sql).replace(" ,", ",").replace(" )", ")")
    return found


def test_a_ledger_of_version_1_becomes_what_a_new_ledger_is(place: str, tmp_path: Path) -> None:
    open_ledger(place).close()
    engine = create_engine(place)
    new = definitions(engine)
    assert "aggregate_versions" in new
    engine.dispose()
    if engine.dialect.name == "sqlite":
        place = f"sqlite:///{tmp_path / 'old.sqlite3'}"
    else:
        empty_postgresql()
    make_version_1(place)
    open_ledger(place).close()
    engine = create_engine(place)
    assert definitions(engine) == new
    engine.dispose()


def test_no_row_of_a_ledger_of_version_1_changes(place: str) -> None:
    make_version_1(place)
    engine = create_engine(place)
    with engine.connect() as connection:
        before = rows(connection)
    open_ledger(place).close()
    with engine.connect() as connection:
        after = rows(connection)
    engine.dispose()
    assert all(before.values())  # every table had something to lose
    assert after.pop("schema_version") == [{"version": SCHEMA_VERSION}]
    before.pop("schema_version")
    for row in before["sessions"]:
        row["returned_msat"] = 0
    for row in before["cable_sessions"]:
        row |= {"delivered_ms": None, "min_refund_msat": 0, "saved_boot_id": "", "saved_boot_ms": 0, "cable_lost_s": 60}
    assert {name: table for name, table in after.items() if table} == before


def test_the_sessions_and_payments_of_version_1_go_on(place: str) -> None:
    make_version_1(place)
    with open_ledger(place) as ledger:
        live = ledger.live_sessions()
        assert [record.session.session_id for record in live] == [session_id(1), session_id(2)]
        delivering = live[0].session
        assert (delivering.state, delivering.returned_msat) == (State.DELIVERING, 0)
        assert (delivering.account.credited_msat, delivering.account.payments) == (7500, 2)
        assert (delivering.account.charged_msat, delivering.energy_uwh) == (4321, 14_000_000)
        (owed,) = ledger.owed_refunds()
        assert (owed.session.session_id, owed.session.refund_status) == (session_id(3), RefundStatus.OWED)
        assert [row.amount_msat for row in ledger.orphans()] == [777]
        assert (ledger.cursor().updated_index, ledger.cursor().pay_index) == (23, 12)
        (pending,) = ledger.outgoing.pending()
        assert (pending.payment_hash, pending.amount_msat) == (intent(2).payment_hash, 4290)
        done = ledger.outgoing.intent(intent(1).payment_hash)
        assert done is not None
        assert (done.status, done.amount_sent_msat) == (IntentStatus.COMPLETE, 1997)
        cable = ledger.cable_sessions.unfinished()
        assert cable is not None
        assert (cable.node_id, cable.session_id, cable.energy_uwh) == (NODE_ID, session_id(1), 13_900_000)
        # The session that was live goes on on-chain.
        ledger.invite(aggregate(1))
        ledger.store_version(version(1, value_sat=2000), INPUTS)
        found = ledger.session(session_id(1))
        assert found is not None
        assert (found.session.account.credited_msat, found.session.account.payments) == (2_007_500, 3)
        assert ledger.booked(payment_hash(1)) is None


class PowerCut(BaseException):
    """Everything ends here."""


def test_a_power_cut_at_any_statement_of_the_migration_leaves_version_1_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    make_version_1(f"sqlite:///{path}")
    before = whole(path)
    countdown = 0

    def cut(*_arguments: object) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise PowerCut

    statements = 0
    event.listen(Engine, "before_cursor_execute", cut)
    event.listen(Engine, "commit", cut)
    try:
        while True:
            statements += 1
            countdown = statements
            try:
                open_ledger(path).close()
            except PowerCut:
                assert whole(path) == before
                continue
            break
    finally:
        event.remove(Engine, "before_cursor_execute", cut)
        event.remove(Engine, "commit", cut)
    assert statements > 15
    after = whole(path)
    assert f'INSERT INTO "schema_version" VALUES({SCHEMA_VERSION});' in after
    assert after != before


def whole(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return list(connection.iterdump())
