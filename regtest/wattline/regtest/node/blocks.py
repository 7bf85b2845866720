"""The practice chain: one SQLite file that all nodes of a network share. It has a height, transactions that say who
gets what, and the gossip about public channels. Nobody checks a signature, there is nothing to steal."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from wattline.regtest.node.chain_view import NewBlock

FIRST_BLOCKS = 101
"""Blocks from the start, as the regtest chain of the real harness has."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tip (height INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS txs (txid TEXT PRIMARY KEY, height INTEGER, position INTEGER);
CREATE TABLE IF NOT EXISTS outputs (
    txid TEXT NOT NULL, number INTEGER NOT NULL, address TEXT NOT NULL, value_sat INTEGER NOT NULL,
    spent_by TEXT, PRIMARY KEY (txid, number));
"""


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a transaction."""

    txid: str
    number: int
    address: str
    value_sat: int
    height: int | None
    """Of the block that it is in; None while it is in none."""


class PracticeBlocks:
    """The file, opened. Every method is one unit of work; other processes see it at once."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may lose the newest blocks of a pretended chain.
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(_SCHEMA)
        self._connection.execute("INSERT INTO tip SELECT ? WHERE NOT EXISTS (SELECT 1 FROM tip)", (FIRST_BLOCKS,))
        self._told = self.height

    def close(self) -> None:
        self._connection.close()

    @property
    def height(self) -> int:
        return int(self._connection.execute("SELECT height FROM tip").fetchone()[0])

    async def open(self) -> None:
        """It is a file, and open."""

    async def news(self) -> Sequence[NewBlock]:
        """The blocks since the last time, or since the file was opened."""
        height, self._told = self._told, self.height
        return [
            NewBlock(new, hashlib.sha256(f"block {new}".encode()).hexdigest())
            for new in range(height + 1, self._told + 1)
        ]

    def mine(self, blocks: int) -> int:
        """Blocks with everything that waits in the first of them; the new height."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            height = self.height
            waiting = cursor.execute("SELECT txid FROM txs WHERE height IS NULL ORDER BY rowid").fetchall()
            for position, (txid,) in enumerate(waiting, start=1):
                cursor.execute("UPDATE txs SET height = ?, position = ? WHERE txid = ?", (height + 1, position, txid))
            cursor.execute("UPDATE tip SET height = ?", (height + blocks,))
            cursor.execute("COMMIT")
        return height + blocks

    def pay(self, outputs: Sequence[tuple[str, int]], spent: Sequence[tuple[str, int]] = ()) -> str:
        """A transaction with these addresses and values (sat) that spends those outputs; its txid."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            number = cursor.execute("SELECT count(*) FROM txs").fetchone()[0]
            txid = hashlib.sha256(f"{number} {outputs} {spent}".encode()).hexdigest()
            cursor.execute("INSERT INTO txs (txid) VALUES (?)", (txid,))
            cursor.executemany(
                "INSERT INTO outputs (txid, number, address, value_sat) VALUES (?, ?, ?, ?)",
                [(txid, i, address, value_sat) for i, (address, value_sat) in enumerate(outputs)],
            )
            cursor.executemany(
                "UPDATE outputs SET spent_by = ? WHERE txid = ? AND number = ?", [(txid, *output) for output in spent]
            )
            cursor.execute("COMMIT")
        return txid

    def waiting(self) -> list[str]:
        """Transactions in no block yet."""
        return [row[0] for row in self._connection.execute("SELECT txid FROM txs WHERE height IS NULL")]

    def confirmed_at(self, txid: str) -> tuple[int, int] | None:
        """Height and position of a transaction; None while it is in no block."""
        row = self._connection.execute("SELECT height, position FROM txs WHERE txid = ?", (txid,)).fetchone()
        return (row[0], row[1]) if row is not None and row[0] is not None else None

    def unspent(self, addresses: Sequence[str]) -> list[Output]:
        """What these addresses have."""
        marks = ",".join("?" * len(addresses))
        rows = self._connection.execute(
            "SELECT o.txid, o.number, o.address, o.value_sat, t.height FROM outputs o JOIN txs t USING (txid)"
            f" WHERE o.spent_by IS NULL AND o.address IN ({marks}) ORDER BY t.rowid, o.number",
            tuple(addresses),
        )
        return [Output(*row) for row in rows]
