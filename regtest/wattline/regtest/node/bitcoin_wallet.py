"""The node's wallet on a bitcoind: which outputs are its own, which of them are reserved, and what it has seen of them
in blocks (lightningd's wallet/wallet.c). bitcoind keeps the keys and signs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from wattline.core.bitcoin.address import AddressError, script_of
from wattline.core.errors import RetryError
from wattline.regtest.bitcoind_rpc import SAT_PER_BTC, BitcoindRefusedError, BitcoindRpc
from wattline.regtest.node.movements import Movements
from wattline.regtest.node.psbt import Psbt, PsbtInput, spending
from wattline.regtest.node.store import Store

Json = dict[str, Any]
AVAILABLE, RESERVED, SPENT = "available", "reserved", "spent"
ADDRESS_KINDS = {"p2tr": "bech32m", "bech32": "bech32"}
"""lightningd's names and bitcoind's."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS wallet (name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS wallet_addresses (script TEXT PRIMARY KEY, address TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS wallet_outputs (
    number INTEGER PRIMARY KEY, txid TEXT NOT NULL, vout INTEGER NOT NULL, value_sat INTEGER NOT NULL,
    script TEXT NOT NULL, status TEXT NOT NULL, reserved_til INTEGER NOT NULL DEFAULT 0, blockheight INTEGER,
    spendheight INTEGER, UNIQUE (txid, vout));
CREATE TABLE IF NOT EXISTS wallet_txs (
    txid TEXT PRIMARY KEY, rawtx TEXT NOT NULL, blockheight INTEGER, txindex INTEGER NOT NULL DEFAULT 0);
"""

_OUTPUTS = (
    "SELECT txid, vout, value_sat, script, address, status, reserved_til, blockheight, spendheight "
    "FROM wallet_outputs JOIN wallet_addresses USING (script)"
)


class BroadcastError(Exception):
    """bitcoind did not take the transaction; the text is what lightningd says of it."""


@dataclass(frozen=True, slots=True)
class Utxo:
    """An output of the wallet."""

    txid: str
    vout: int
    value_sat: int
    script: str
    address: str
    status: str
    reserved_til: int
    blockheight: int | None
    spendheight: int | None

    def __str__(self) -> str:
        return f"{self.txid}:{self.vout}"

    def is_reserved(self, height: int) -> bool:
        return self.status == RESERVED and self.reserved_til > height


class BitcoinWallet:
    """``follower`` of the blocks; every change is a unit of work of the store."""

    def __init__(self, rpc: BitcoindRpc, store: Store, movements: Movements) -> None:
        self._node = rpc
        self._rpc = rpc
        self._store = store
        self._movements = movements
        store.create(_SCHEMA)

    async def open(self, name: str) -> None:
        """Load the wallet in bitcoind, or make it. Raises RetryError, BitcoindRefusedError."""
        row = self._store.row("SELECT name FROM wallet")
        if row is None:
            # Nodes of one name in several networks share a bitcoind.
            made = f"practice-{name}-{os.urandom(6).hex()}"
            await self._ask(self._node, "createwallet", made, False, False, "", False, True, True)
            self._store.insert("wallet", name=made)
        else:
            made = row["name"]
            if made not in await self._ask(self._node, "listwallets"):
                await self._ask(self._node, "loadwallet", made, True)
        self._rpc = BitcoindRpc(self._node.port, self._node.directory, made)

    async def close(self) -> None:
        """Let go of it in bitcoind, which goes on without this node."""
        await self._ask(self._node, "unloadwallet", self._rpc.wallet, False)

    # What it has.

    def outputs(self) -> list[Utxo]:
        """All that it ever had, oldest first."""
        return [Utxo(**row) for row in self._store.rows(f"{_OUTPUTS} ORDER BY number")]

    def output(self, txid: str, vout: int) -> Utxo | None:
        row = self._store.row(f"{_OUTPUTS} WHERE txid = ? AND vout = ?", txid, vout)
        return Utxo(**row) if row is not None else None

    def owned(self, psbt: Psbt) -> list[Utxo]:
        """Its own among the inputs, in their order."""
        return [utxo for utxo in (self.output(*outpoint) for outpoint in psbt.outpoints) if utxo is not None]

    def transactions(self) -> list[Json]:
        """txid, rawtx, blockheight and txindex of all that it has seen of its own; those in no block come first."""
        rows = self._store.rows("SELECT * FROM wallet_txs")
        return sorted(rows, key=lambda row: (row["blockheight"] or 0, row["txindex"], bytes.fromhex(row["txid"])[::-1]))

    async def new_address(self, kind: str = "p2tr") -> str:
        address = str(await self._ask(self._rpc, "getnewaddress", "", ADDRESS_KINDS[kind]))
        script = await self.script_of(address)
        assert script is not None
        self._store.insert("wallet_addresses", script=script, address=address)
        return address

    async def script_of(self, address: str) -> str | None:
        """The scriptPubKey in hex; None for what is no address of this chain. As lightningd does, it reads the usual
        kinds itself, also while bitcoind is away."""
        try:
            return script_of(address, "regtest")
        except AddressError:
            pass  # another kind, or none
        told = await self._ask(self._rpc, "validateaddress", address)
        return str(told["scriptPubKey"]) if told["isvalid"] else None

    def is_foreign(self, script: bytes) -> bool:
        """Not one of its own addresses'."""
        return self._store.row("SELECT 1 FROM wallet_addresses WHERE script = ?", script.hex()) is None

    # Reservations (wallet_reserve_utxo, wallet_unreserve_utxo).

    def reserve(self, utxo: Utxo, height: int, blocks: int) -> Utxo:
        """For so many blocks more; the output as it is then."""
        until = utxo.reserved_til + blocks if utxo.reserved_til >= height else height + blocks
        return self._set(utxo, RESERVED, until)

    def unreserve(self, utxo: Utxo, height: int, blocks: int) -> Utxo:
        """For so many blocks less; free when none is left."""
        if utxo.reserved_til <= height + blocks:
            return self._set(utxo, AVAILABLE, 0)
        return self._set(utxo, RESERVED, utxo.reserved_til - blocks)

    def _set(self, utxo: Utxo, status: str, until: int) -> Utxo:
        self._store.execute(
            "UPDATE wallet_outputs SET status = ?, reserved_til = ? WHERE txid = ? AND vout = ?",
            status,
            until,
            utxo.txid,
            utxo.vout,
        )
        changed = self.output(utxo.txid, utxo.vout)
        assert changed is not None
        return changed

    # Signing and sending.

    def input(self, utxo: Utxo) -> PsbtInput:
        """What signs and checks it must know."""
        row = self._store.row("SELECT rawtx FROM wallet_txs WHERE txid = ?", utxo.txid)
        assert row is not None
        return spending(utxo.txid, utxo.vout, utxo.value_sat, bytes.fromhex(utxo.script), bytes.fromhex(row["rawtx"]))

    async def sign(self, psbt: Psbt) -> Psbt:
        """With its own signatures, not finalized."""
        answer = await self._ask(self._rpc, "walletprocesspsbt", str(psbt), True, "DEFAULT", False, False)
        return Psbt.parse(answer["psbt"])

    async def final(self, psbt: Psbt) -> str | None:
        """The transaction in hex; None while a signature is missing."""
        answer = await self._ask(self._rpc, "finalizepsbt", str(psbt))
        return str(answer["hex"]) if answer["complete"] else None

    async def broadcast(self, rawtx: str) -> str:
        """Its txid; from now on the wallet knows of it. Raises BroadcastError."""
        try:
            txid = str(await self._ask(self._rpc, "sendrawtransaction", rawtx))
            tx = await self._ask(self._rpc, "decoderawtransaction", rawtx)
        except BitcoindRefusedError as error:
            # As bitcoin-cli prints it, its line breaks escaped by lightningd.
            raise BroadcastError(f"error code: {error.rpc_code}\\nerror message:\\n{error.reason}\\n") from error
        except RetryError as error:
            raise BroadcastError(f"error: {error.message}\\n") from error
        with self._store.unit():
            self._remember(tx, rawtx, None, 0)
            for output in tx["vout"]:
                self._receive(tx, output, None)
        return txid

    async def ask(self, method: str, *parameters: object) -> Any:
        """bitcoind's answer."""
        return await self._ask(self._rpc, method, *parameters)

    # Blocks.

    def connected(self, height: int, txs: Sequence[Json]) -> None:
        now = int(time.time())
        for index, tx in enumerate(txs):
            spent = [utxo for utxo in (self._spend(one, height) for one in tx["vin"]) if utxo is not None]
            received = [utxo for utxo in (self._receive(tx, one, height) for one in tx["vout"]) if utxo is not None]
            known = self._store.row("SELECT 1 FROM wallet_txs WHERE txid = ?", tx["txid"])
            if spent or received or known:
                self._remember(tx, tx["hex"], height, index)
            if spent or received:
                self._movements.confirmed(
                    str(tx["txid"]),
                    [utxo.value_sat for utxo in spent],
                    [(str(utxo), utxo.value_sat) for utxo in received],
                    height,
                    now,
                )

    def rolled_back(self, height: int) -> None:
        # As lightningd: what was spent in such a block is not free again, its status tells of the block no more.
        self._store.execute("UPDATE wallet_outputs SET blockheight = NULL WHERE blockheight > ?", height)
        self._store.execute("UPDATE wallet_outputs SET spendheight = NULL WHERE spendheight > ?", height)
        self._store.execute("UPDATE wallet_txs SET blockheight = NULL, txindex = 0 WHERE blockheight > ?", height)

    def _remember(self, tx: Json, rawtx: str, height: int | None, index: int) -> None:
        self._store.execute(
            "INSERT INTO wallet_txs VALUES (?, ?, ?, ?) ON CONFLICT (txid) DO UPDATE SET "
            "blockheight = coalesce(excluded.blockheight, blockheight), "
            "txindex = CASE WHEN excluded.blockheight IS NULL THEN txindex ELSE excluded.txindex END",
            str(tx["txid"]),
            rawtx,
            height,
            index,
        )

    def _spend(self, spender: Json, height: int) -> Utxo | None:
        if "txid" not in spender:
            return None  # a coinbase
        self._store.execute(
            "UPDATE wallet_outputs SET status = ?, reserved_til = 0, spendheight = ? WHERE txid = ? AND vout = ?",
            SPENT,
            height,
            spender["txid"],
            spender["vout"],
        )
        return self.output(spender["txid"], spender["vout"])

    def _receive(self, tx: Json, output: Json, height: int | None) -> Utxo | None:
        script = output["scriptPubKey"]["hex"]
        if self._store.row("SELECT 1 FROM wallet_addresses WHERE script = ?", script) is None:
            return None
        self._store.execute(
            "INSERT INTO wallet_outputs (txid, vout, value_sat, script, status, blockheight) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (txid, vout) DO UPDATE SET blockheight = coalesce(excluded.blockheight, blockheight)",
            tx["txid"],
            output["n"],
            int(Decimal(output["value"]) * SAT_PER_BTC),
            script,
            AVAILABLE,
            height,
        )
        return self.output(tx["txid"], output["n"])

    @staticmethod
    async def _ask(rpc: BitcoindRpc, method: str, *parameters: object) -> Any:
        return await asyncio.to_thread(rpc.call, method, *parameters)
