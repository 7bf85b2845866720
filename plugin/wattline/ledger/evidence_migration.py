"""From version 2 to 4: what a cable has to know of a session whose end it did not live to see."""

from __future__ import annotations

from sqlalchemy import Connection

_STATEMENTS = (
    "ALTER TABLE cable_sessions ADD COLUMN delivered_ms BIGINT",
    "ALTER TABLE cable_sessions ADD COLUMN min_refund_msat BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE cable_sessions ADD COLUMN saved_boot_id TEXT DEFAULT '' NOT NULL",
    "ALTER TABLE cable_sessions ADD COLUMN saved_boot_ms BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE cable_aggregates ADD COLUMN is_final_taken BOOLEAN DEFAULT false NOT NULL",
)
"""SQLite and PostgreSQL mean the same by them."""


def add_evidence(connection: Connection) -> None:
    """Within the caller's unit of work. What there is stays as it is."""
    for statement in _STATEMENTS:
        connection.exec_driver_sql(statement)


def add_lasting(connection: Connection) -> None:
    """Within the caller's unit of work. How long a socket bears the absence of a cable (of older sessions: what sockets
    say as they are shipped), and from which block on inputs are kept."""
    connection.exec_driver_sql("ALTER TABLE cable_sessions ADD COLUMN cable_lost_s BIGINT DEFAULT 60 NOT NULL")
    connection.exec_driver_sql("ALTER TABLE cable_aggregates ADD COLUMN kept_from_height BIGINT DEFAULT 0 NOT NULL")
