"""The tables, in their newest version, and how a database comes to have them: plain columns, so that SQLite and
PostgreSQL mean the same by them.

Money, energy and time are 64-bit integers with the unit in the name; times of day are seconds of the Unix epoch.

A new database is made in the newest version at once. An older one gets the migrations between its version and ours, in
one unit of work each; a database of a newer program is refused, because we cannot know what its rows mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import registry
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from wattline.core.errors import UsageError

SCHEMA_VERSION = 5
"""Of this program; see :mod:`wattline.core.ledger.schema` for what raises it."""

metadata = MetaData()

# An INTEGER primary key is what numbers the rows by itself in SQLite; BIGINT is not.
_RowNumber = BigInteger().with_variant(Integer(), "sqlite")

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String(26), primary_key=True),
    Column("outlet_id", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("stop_reason", Text),
    Column("tariff_id", Text, nullable=False),
    Column("energy_msat_per_kwh", BigInteger, nullable=False),
    Column("time_msat_per_hour", BigInteger, nullable=False),
    Column("session_fee_msat", BigInteger, nullable=False),
    Column("rated_power_mw", BigInteger, nullable=False),
    Column("meter_interval_ms", BigInteger, nullable=False),
    Column("pause_max_s", BigInteger, nullable=False),
    Column("open_timeout_s", BigInteger, nullable=False),
    Column("cable_lost_s", BigInteger, nullable=False),
    Column("credit_cap_msat", BigInteger, nullable=False),
    Column("min_refund_msat", BigInteger, nullable=False),
    # The credit is not here: it is the sum of the session's payments and the newest version of its aggregate, and
    # nothing else.
    Column("charged_msat", BigInteger, nullable=False),
    Column("refunded_msat", BigInteger, nullable=False),
    Column("energy_uwh", BigInteger, nullable=False),
    Column("delivered_ms", BigInteger, nullable=False),
    Column("started", Boolean, nullable=False),
    Column("refund_status", Text, nullable=False),
    Column("refund_budget_msat", BigInteger, nullable=False),
    Column("refund_fee_msat", BigInteger, nullable=False),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("cable_node_id", Text, nullable=False),
    Column("opened_at", BigInteger, nullable=False, index=True),
    Column("closed_at", BigInteger),
    Column("meter_base_uwh", BigInteger, nullable=False),
    Column("chip_uwh", BigInteger, nullable=False),
    Column("statement_sequence", BigInteger, nullable=False),
    # Last, where a migrated table has it too.
    Column("returned_msat", BigInteger, nullable=False, server_default=text("0")),
)

payments = Table(
    "payments",
    metadata,
    Column("payment_hash", String(64), primary_key=True),
    Column("kind", Text, nullable=False),
    # No foreign key: an orphan may name a session that never was. Credits are checked when they are booked.
    Column("session_id", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("amount_msat", BigInteger, nullable=False),
    Column("pay_index", BigInteger, nullable=False),
    Column("updated_index", BigInteger, nullable=False),
    Column("paid_at", BigInteger, nullable=False),
    CheckConstraint("kind IN ('credit', 'orphan')", name="payments_kind"),
    CheckConstraint("amount_msat > 0", name="payments_amount"),
)
Index("payments_by_session", payments.c.session_id, payments.c.kind)

journal_cursor = Table(
    "journal_cursor",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="journal_cursor_is_one"), primary_key=True),
    Column("updated_index", BigInteger, nullable=False),
    Column("pay_index", BigInteger, nullable=False),
)

tariffs = Table(
    "tariffs",
    metadata,
    Column("number", _RowNumber, primary_key=True, autoincrement=True),
    Column("tariff_id", Text, nullable=False),
    Column("energy_msat_per_kwh", BigInteger, nullable=False),
    Column("time_msat_per_hour", BigInteger, nullable=False),
    Column("session_fee_msat", BigInteger, nullable=False),
    Column("effective_at", BigInteger, nullable=False),
)

statements = Table(
    "statements",
    metadata,
    Column("session_id", String(26), ForeignKey("sessions.session_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("statement", LargeBinary, nullable=False),
)

receipts = Table(
    "receipts",
    metadata,
    Column("number", _RowNumber, primary_key=True, autoincrement=True),
    Column("session_id", String(26), ForeignKey("sessions.session_id"), nullable=False, index=True),
    Column("receipt", LargeBinary, nullable=False),
    Column("signature", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("number", _RowNumber, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("session_id", Text, index=True),
    Column("kind", Text, nullable=False),
    Column("detail", Text, nullable=False),
)

intents = Table(
    "intents",
    metadata,
    Column("payment_hash", String(64), primary_key=True),
    Column("preimage", String(64), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("destination", String(66), nullable=False),
    Column("amount_msat", BigInteger, nullable=False),
    Column("maxfee_msat", BigInteger, nullable=False),
    Column("record", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("amount_sent_msat", BigInteger, nullable=False),
    Column("failure", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("created_boot_id", Text, nullable=False),
    Column("created_boot_ms", BigInteger, nullable=False),
    Column("resolved_at", BigInteger),
    CheckConstraint("status IN ('pending', 'complete', 'failed')", name="intents_status"),
)
Index("intents_by_session", intents.c.session_id)
Index("intents_by_status", intents.c.status, intents.c.created_at)

boots = Table(
    "boots",
    metadata,
    Column("number", _RowNumber, primary_key=True, autoincrement=True),
    Column("boot_id", Text, nullable=False, unique=True),
    Column("wall_s", BigInteger, nullable=False),
    Column("boot_ms", BigInteger, nullable=False),
)

cable_sessions = Table(
    "cable_sessions",
    metadata,
    Column("token", String(64), primary_key=True),
    Column("address", Text, nullable=False),
    Column("node_id", String(66), nullable=False),
    Column("outlet_id", Text, nullable=False),
    Column("tariff_id", Text, nullable=False),
    Column("energy_msat_per_kwh", BigInteger, nullable=False),
    Column("time_msat_per_hour", BigInteger, nullable=False),
    Column("session_fee_msat", BigInteger, nullable=False),
    Column("rated_power_mw", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("session_id", Text, index=True),
    Column("opened_at", BigInteger),
    Column("base_uwh", BigInteger, nullable=False),
    Column("extra_uwh", BigInteger, nullable=False),
    Column("energy_uwh", BigInteger, nullable=False),
    Column("saved_at", BigInteger, nullable=False),
    Column("stop_reason", Text, nullable=False),
    Column("closed_at", BigInteger),
    Column("receipt", LargeBinary, nullable=False),
    Column("receipt_signature", Text, nullable=False),
    Column("delivered_ms", BigInteger, nullable=False),
    Column("lasted_ms", BigInteger, nullable=False),
    Column("is_end_seen", Boolean, nullable=False),
    Column("min_refund_msat", BigInteger, nullable=False, server_default=text("0")),
    Column("saved_boot_id", Text, nullable=False, server_default=""),
    Column("saved_boot_ms", BigInteger, nullable=False, server_default=text("0")),
    Column("cable_lost_s", BigInteger, nullable=False, server_default=text("60")),
)

aggregates = Table(
    "aggregates",
    metadata,
    Column("session_id", String(26), ForeignKey("sessions.session_id"), primary_key=True),
    Column("cable_node_id", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("script", Text, nullable=False),
    Column("rules", Text, nullable=False),
    Column("status", Text, nullable=False, index=True),
    Column("invited_at", BigInteger, nullable=False),
    Column("first_height", BigInteger, nullable=False),
    Column("chosen_number", BigInteger),
    Column("choice_reason", Text, nullable=False),
    Column("chosen_at", BigInteger),
    Column("mined_txid", String(64)),
    Column("mined_value_sat", BigInteger, nullable=False),
    Column("mined_height", BigInteger),
    Column("mined_block", String(64)),
    Column("child_txid", String(64)),
    Column("lost_msat", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    CheckConstraint("status IN ('open', 'sent', 'settled', 'lost', 'void')", name="aggregates_status"),
)

aggregate_inputs = Table(
    "aggregate_inputs",
    metadata,
    Column("session_id", String(26), ForeignKey("aggregates.session_id"), primary_key=True),
    Column("txid", String(64), primary_key=True),
    Column("vout", BigInteger, primary_key=True, autoincrement=False),
    Column("value_sat", BigInteger, nullable=False),
)
Index("aggregate_inputs_by_outpoint", aggregate_inputs.c.txid, aggregate_inputs.c.vout)

aggregate_versions = Table(
    "aggregate_versions",
    metadata,
    Column("session_id", String(26), ForeignKey("aggregates.session_id"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("value_sat", BigInteger, nullable=False),
    Column("fee_sat", BigInteger, nullable=False),
    Column("vsize", BigInteger, nullable=False),
    Column("vout", BigInteger, nullable=False),
    # Not unique: a final version may be the same transaction as an early one.
    Column("txid", String(64), nullable=False),
    Column("psbt", Text, nullable=False),
    Column("raw", Text, nullable=False),
    Column("is_final", Boolean, nullable=False),
    Column("stored_at", BigInteger, nullable=False),
    CheckConstraint("value_sat > 0", name="aggregate_versions_value"),
)
# A value counts once: the database itself refuses the second row.
Index(
    "aggregate_versions_grow",
    aggregate_versions.c.session_id,
    aggregate_versions.c.is_final,
    aggregate_versions.c.value_sat,
    unique=True,
)

refused_cables = Table(
    "refused_cables",
    metadata,
    Column("cable_node_id", String(66), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

refused_inputs = Table(
    "refused_inputs",
    metadata,
    Column("txid", String(64), primary_key=True),
    Column("vout", BigInteger, primary_key=True, autoincrement=False),
    # Empty for a cable that named no node.
    Column("cable_node_id", Text, nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

cable_aggregates = Table(
    "cable_aggregates",
    metadata,
    Column("session_id", String(26), primary_key=True),
    Column("node_id", String(66), nullable=False, index=True),
    Column("address", Text, nullable=False),
    Column("script", Text, nullable=False),
    Column("change_address", Text, nullable=False),
    Column("base_psbt", Text, nullable=False),
    Column("inputs_weight", BigInteger, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("fee_sat", BigInteger, nullable=False),
    Column("floor_sat", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("signed_sat", BigInteger, nullable=False),
    Column("accepted_sat", BigInteger, nullable=False),
    Column("final_sat", BigInteger),
    Column("agreed_sat", BigInteger),
    Column("due_sat", BigInteger),
    Column("status", Text, nullable=False, index=True),
    Column("mined_txid", String(64)),
    Column("mined_sat", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    Column("is_final_taken", Boolean, nullable=False, server_default=text("false")),
    Column("kept_from_height", BigInteger, nullable=False, server_default=text("0")),
    Column("signed_at", BigInteger, nullable=False),
    Column("signed_boot_id", Text, nullable=False),
    Column("signed_boot_ms", BigInteger, nullable=False),
    CheckConstraint(
        "status IN ('open', 'ended', 'settled', 'unanswered', 'cheated', 'void')", name="cable_aggregates_status"
    ),
)

PARTIAL_INDEXES = (
    # Nobody pays one increment or refund twice: the database itself refuses the second row.
    "CREATE UNIQUE INDEX intents_pay_once ON intents (purpose, session_id, sequence) WHERE status <> 'failed'",
    # Nor is there a second final version.
    "CREATE UNIQUE INDEX aggregate_versions_end_once ON aggregate_versions (session_id) WHERE is_final",
)
"""Of those tables, and the same in both databases. As an ``Index`` with a condition they would load all of SQLAlchemy's
PostgreSQL dialect at every start of every program, also where nobody has a PostgreSQL."""


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
