"""bitcoind's chain, followed block by block and back over a reorganisation, as lightningd does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from wattline.regtest.bitcoind_rpc import BitcoindRefusedError, BitcoindRpc
from wattline.regtest.node.chain_view import NewBlock
from wattline.regtest.node.log import Log
from wattline.regtest.node.store import Store

Json = dict[str, Any]
RESCAN = 30
"""So many blocks before its first start does a node look back (lightningd's ``rescan`` on regtest)."""
_OUT_OF_RANGE = -8

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chain_blocks (height INTEGER PRIMARY KEY, hash TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chain_txs (txid TEXT PRIMARY KEY, height INTEGER NOT NULL, position INTEGER NOT NULL);
"""


class Follower(Protocol):
    """Who wants to know what blocks hold. Both are called inside of a unit of work."""

    def connected(self, height: int, txs: Sequence[Json]) -> None:
        """A block with these transactions (``getblock`` verbosity 2)."""

    def rolled_back(self, height: int) -> None:
        """All blocks above ``height`` are no longer in the chain."""


class BitcoinBlocks:
    """What the node has seen of the chain is in its store, so it goes on where it was after a restart."""

    def __init__(self, rpc: BitcoindRpc, store: Store, follower: Follower, log: Log) -> None:
        self._rpc = rpc
        self._store = store
        self._follower = follower
        self._log = log
        store.create(_SCHEMA)

    @property
    def height(self) -> int:
        row = self._store.row("SELECT max(height) AS height FROM chain_blocks")
        return int(row["height"] or 0) if row is not None else 0

    async def open(self) -> None:
        if self.height == 0:
            start = max(0, await self._ask("getblockcount") - RESCAN)
            block_hash = await self._ask("getblockhash", start)
            self._store.insert("chain_blocks", height=start, hash=block_hash)
        await self.news()

    async def news(self) -> Sequence[NewBlock]:
        tip = self._store.row("SELECT * FROM chain_blocks ORDER BY height DESC LIMIT 1")
        if tip is None or await self._ask("getbestblockhash") == tip["hash"]:
            return []
        await self._roll_back()
        new = []
        while (block := await self._next()) is not None:
            new.append(block)
        return new

    def confirmed_at(self, txid: str) -> tuple[int, int] | None:
        row = self._store.row("SELECT height, position FROM chain_txs WHERE txid = ?", txid)
        return (row["height"], row["position"]) if row is not None else None

    async def _roll_back(self) -> None:
        """To the newest block that is still in the chain, at the furthest to the first that was ever seen."""
        rows = self._store.rows("SELECT * FROM chain_blocks ORDER BY height DESC")
        common = rows[-1]["height"]
        for row in rows:
            if await self._block_hash(row["height"]) == row["hash"]:
                common = row["height"]
                break
        if common == rows[0]["height"]:
            return
        self._log.unusual(f"the chain was reorganised: blocks above {common} are gone")
        with self._store.unit():
            self._store.execute("DELETE FROM chain_blocks WHERE height > ?", common)
            self._store.execute("DELETE FROM chain_txs WHERE height > ?", common)
            self._follower.rolled_back(common)

    async def _next(self) -> NewBlock | None:
        """The block above the newest that was seen, processed; None when there is none, or another chain by now."""
        tip = self._store.row("SELECT * FROM chain_blocks ORDER BY height DESC LIMIT 1")
        assert tip is not None
        height = tip["height"] + 1
        block_hash = await self._block_hash(height)
        if block_hash is None:
            return None
        block = await self._ask("getblock", block_hash, 2)
        if block["previousblockhash"] != tip["hash"]:
            return None
        with self._store.unit():
            self._store.insert("chain_blocks", height=height, hash=block_hash)
            for position, tx in enumerate(block["tx"]):
                self._store.execute(
                    "INSERT OR REPLACE INTO chain_txs VALUES (?, ?, ?)", str(tx["txid"]), height, position
                )
            self._follower.connected(height, block["tx"])
        return NewBlock(height, block_hash)

    async def _block_hash(self, height: int) -> str | None:
        try:
            return str(await self._ask("getblockhash", height))
        except BitcoindRefusedError as error:
            if error.rpc_code == _OUT_OF_RANGE:
                return None
            raise

    async def _ask(self, method: str, *parameters: object) -> Any:
        return await asyncio.to_thread(self._rpc.call, method, *parameters)
