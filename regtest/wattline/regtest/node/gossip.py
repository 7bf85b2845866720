"""Gossip: one SQLite file in which the nodes of a network tell each other of their public channels."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS gossip (
    scid TEXT NOT NULL, direction INTEGER NOT NULL, source TEXT NOT NULL, destination TEXT NOT NULL,
    capacity_msat INTEGER NOT NULL, fee_base_msat INTEGER NOT NULL, fee_ppm INTEGER NOT NULL,
    last_update INTEGER NOT NULL, PRIMARY KEY (scid, direction));
"""


@dataclass(frozen=True, slots=True)
class Gossip:
    """What is known of one direction of a public channel."""

    scid: str
    direction: int
    source: str
    destination: str
    capacity_msat: int
    fee_base_msat: int
    fee_ppm: int
    last_update: int


class GossipBoard:
    """The file, opened; other processes see at once what is written."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(_SCHEMA)

    def announce(self, gossip: Gossip) -> None:
        """Tell everybody of one direction of a channel."""
        self._connection.execute(
            "INSERT OR REPLACE INTO gossip VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                gossip.scid,
                gossip.direction,
                gossip.source,
                gossip.destination,
                gossip.capacity_msat,
                gossip.fee_base_msat,
                gossip.fee_ppm,
                gossip.last_update,
            ),
        )

    def all(self) -> list[Gossip]:
        """All public channels, by scid and direction."""
        return [Gossip(*row) for row in self._connection.execute("SELECT * FROM gossip ORDER BY scid, direction")]
