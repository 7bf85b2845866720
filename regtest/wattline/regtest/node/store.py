"""The node's memory: one SQLite file, written before an answer leaves."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS addresses (address TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS peers (node_id TEXT PRIMARY KEY, host TEXT, port INTEGER);
CREATE TABLE IF NOT EXISTS channels (
    channel_id TEXT PRIMARY KEY, peer_id TEXT NOT NULL, is_opener INTEGER NOT NULL, state TEXT NOT NULL, scid TEXT,
    funding_txid TEXT NOT NULL, capacity_msat INTEGER NOT NULL, pushed_msat INTEGER NOT NULL,
    to_us_msat INTEGER NOT NULL, min_to_us_msat INTEGER NOT NULL, max_to_us_msat INTEGER NOT NULL,
    is_announced INTEGER NOT NULL, gossiped INTEGER NOT NULL DEFAULT 0, alias_local TEXT NOT NULL,
    alias_remote TEXT NOT NULL, normal_since TEXT, next_htlc_id INTEGER NOT NULL DEFAULT 0,
    sent INTEGER NOT NULL DEFAULT 0, received INTEGER NOT NULL DEFAULT 0,
    in_payments_offered INTEGER NOT NULL DEFAULT 0, in_offered_msat INTEGER NOT NULL DEFAULT 0,
    in_payments_fulfilled INTEGER NOT NULL DEFAULT 0, in_fulfilled_msat INTEGER NOT NULL DEFAULT 0,
    out_payments_offered INTEGER NOT NULL DEFAULT 0, out_offered_msat INTEGER NOT NULL DEFAULT 0,
    out_payments_fulfilled INTEGER NOT NULL DEFAULT 0, out_fulfilled_msat INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS outbox (
    channel_id TEXT NOT NULL, number INTEGER NOT NULL, message TEXT NOT NULL, PRIMARY KEY (channel_id, number));
CREATE TABLE IF NOT EXISTS htlcs (
    channel_id TEXT NOT NULL, direction TEXT NOT NULL, htlc_id INTEGER NOT NULL, amount_msat INTEGER NOT NULL,
    payment_hash TEXT NOT NULL, cltv_expiry INTEGER NOT NULL, onion TEXT NOT NULL,
    sendpay_id INTEGER, from_channel TEXT, from_htlc_id INTEGER,
    PRIMARY KEY (channel_id, direction, htlc_id));
CREATE TABLE IF NOT EXISTS invoices (
    created_index INTEGER PRIMARY KEY, label TEXT UNIQUE NOT NULL, payment_hash TEXT UNIQUE NOT NULL,
    preimage TEXT NOT NULL, payment_secret TEXT NOT NULL, bolt11 TEXT NOT NULL, description TEXT NOT NULL,
    amount_msat INTEGER, expires_at INTEGER NOT NULL, status TEXT NOT NULL, pay_index INTEGER,
    amount_received_msat INTEGER, paid_at INTEGER, updated_index INTEGER);
CREATE TABLE IF NOT EXISTS sendpays (
    created_index INTEGER PRIMARY KEY, payment_hash TEXT NOT NULL, partid INTEGER NOT NULL, groupid INTEGER NOT NULL,
    destination TEXT, amount_msat INTEGER, amount_sent_msat INTEGER NOT NULL, created_at INTEGER NOT NULL,
    completed_at INTEGER, status TEXT NOT NULL, preimage TEXT, label TEXT, bolt11 TEXT, secrets TEXT NOT NULL,
    failure TEXT, updated_index INTEGER, UNIQUE (payment_hash, groupid, partid));
CREATE TABLE IF NOT EXISTS forwards (
    created_index INTEGER PRIMARY KEY, in_channel TEXT NOT NULL, in_htlc_id INTEGER NOT NULL, out_channel TEXT,
    out_htlc_id INTEGER, in_msat INTEGER NOT NULL, out_msat INTEGER, status TEXT NOT NULL, failcode INTEGER,
    failreason TEXT, received_time REAL NOT NULL, resolved_time REAL, updated_index INTEGER,
    UNIQUE (in_channel, in_htlc_id));
"""


class Store:
    """The file, opened by the one process that writes it."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        # What is committed survives the process; it need not survive the machine.
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(_SCHEMA)
        self._depth = 0
        self._afterwards: list[Callable[[], None]] = []

    def create(self, schema: str) -> None:
        """Tables of one part of the node, where they are not there yet."""
        self._connection.executescript(schema)

    @contextmanager
    def unit(self) -> Iterator[None]:
        """One unit of work; a unit inside of another one is part of it."""
        if self._depth == 0:
            self._connection.execute("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
        except BaseException:
            self._depth -= 1
            if self._depth == 0:
                self._connection.execute("ROLLBACK")
                self._afterwards.clear()
            raise
        self._depth -= 1
        if self._depth == 0:
            self._connection.execute("COMMIT")
            afterwards, self._afterwards = self._afterwards, []
            for tell in afterwards:
                tell()

    def afterwards(self, tell: Callable[[], None]) -> None:
        """Call it when the unit of work has been written; at once when there is none."""
        if self._depth:
            self._afterwards.append(tell)
        else:
            tell()

    def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        return [dict(row) for row in self._connection.execute(statement, values)]

    def row(self, statement: str, *values: object) -> dict[str, Any] | None:
        found = self._connection.execute(statement, values).fetchone()
        return dict(found) if found is not None else None

    def execute(self, statement: str, *values: object) -> int:
        """How many rows it changed."""
        return self._connection.execute(statement, values).rowcount

    def insert(self, table: str, **values: object) -> None:
        """A new row. Raises sqlite3.IntegrityError when it is there already."""
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))

    def next_number(self, counter: str) -> int:
        """1, 2, 3, ...; no number comes twice, also after a restart."""
        self._connection.execute(
            "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1", (counter,)
        )
        return int(self._connection.execute("SELECT value FROM counters WHERE name = ?", (counter,)).fetchone()[0])
