"""From whatever version a database has to this program's.

A new database is made in the newest version at once. An older one gets the migrations between its version and ours, in
one unit of work each; a database of a newer program is refused, because we cannot know what its rows mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from sqlalchemy import Connection, delete, insert, inspect, select
from sqlalchemy.dialects import registry
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from wattline.core.errors import UsageError
from wattline.core.ledger.schema import PARTIAL_INDEXES, SCHEMA_VERSION, metadata, schema_version

Migration = Callable[[Connection], None]

MIGRATIONS: Mapping[int, Migration] = {}
"""By the version that they lead to. A migration spells out its own SQL and never uses the tables of
:mod:`wattline.core.ledger.schema`, which are those of the newest version."""


def bring_up_to_date(
    connection: Connection, migrations: Mapping[int, Migration] = MIGRATIONS, version: int = SCHEMA_VERSION
) -> int:
    """Make or migrate the tables within the caller's unit of work; the version that was found, 0 for a new database.

    Raises UsageError ``ledger_too_new`` for a database of a newer program, ``ledger_too_old`` for one that was made
    before the first release, ``ledger_foreign`` for one that holds something else. Nothing is changed then.
    """
    names = set(inspect(connection).get_table_names())
    if schema_version.name not in names:
        if names:
            raise UsageError("ledger_foreign", f"the database is not a wattline ledger: it holds {sorted(names)[0]!r}")
        for statement in statements_of_new(connection.dialect.name):
            connection.exec_driver_sql(statement)
        connection.execute(insert(schema_version).values(version=version))
        return 0
    found = connection.execute(select(schema_version.c.version)).scalar_one_or_none()
    if found is None:
        raise UsageError("ledger_foreign", "the database has no schema version: it was not made by wattline")
    if found > version:
        raise UsageError(
            "ledger_too_new",
            f"the database has schema version {found}, this wattline knows versions up to {version}: update wattline",
        )
    for number in range(found + 1, version + 1):
        if number not in migrations:
            raise UsageError(
                "ledger_too_old",
                f"the database has schema version {found}, this wattline begins with {number}: let the wattline that "
                "made it end its sessions, then move the database away",
            )
        migrations[number](connection)
    if found < version:
        connection.execute(delete(schema_version))
        connection.execute(insert(schema_version).values(version=version))
    return int(found)


@cache
def statements_of_new(dialect_name: str) -> tuple[str, ...]:
    """What makes the tables and indexes of a new database, in order, in the SQL of ``sqlite`` or ``postgresql``."""
    dialect = registry.load(dialect_name)()
    tables = metadata.sorted_tables
    indexes = sorted((index for table in tables for index in table.indexes), key=lambda index: str(index.name))
    made: list[DDLElement] = [*(CreateTable(table) for table in tables), *(CreateIndex(index) for index in indexes)]
    return (*(str(each.compile(dialect=dialect)).strip() for each in made), *PARTIAL_INDEXES)
