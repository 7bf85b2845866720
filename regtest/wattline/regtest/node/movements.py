"""What lightningd's bookkeeper tells of the on-chain wallet (plugins/bkpr): deposits, withdrawals and fees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.rpc_server import Given
from wattline.regtest.node.store import Store

Json = dict[str, Any]
MSAT_PER_SAT = 1000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS movements (
    number INTEGER PRIMARY KEY, tag TEXT NOT NULL, txid TEXT NOT NULL, outpoint TEXT NOT NULL,
    credit_sat INTEGER NOT NULL, debit_sat INTEGER NOT NULL, is_income INTEGER NOT NULL,
    blockheight INTEGER NOT NULL, timestamp INTEGER NOT NULL,
    UNIQUE (tag, txid, outpoint));
CREATE TABLE IF NOT EXISTS movement_descriptions (outpoint TEXT PRIMARY KEY, description TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS external_outputs (
    txid TEXT NOT NULL, outpoint TEXT PRIMARY KEY, value_sat INTEGER NOT NULL, is_withdrawal INTEGER NOT NULL);
"""


class Movements:
    """Each is written once, when its transaction is first seen in a block; a reorganisation takes none back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.create(_SCHEMA)

    def sends(self, txid: str, vout: int, value_sat: int, is_withdrawal: bool) -> None:
        """An output goes elsewhere by the node's own will: so it is no fee. What goes into a channel is no withdrawal
        either."""
        self._store.execute(
            "INSERT OR IGNORE INTO external_outputs VALUES (?, ?, ?, ?)",
            txid,
            f"{txid}:{vout}",
            value_sat,
            is_withdrawal,
        )

    def confirmed(
        self, txid: str, spent_sat: Sequence[int], received: Sequence[tuple[str, int]], height: int, now: int
    ) -> None:
        """A transaction with own inputs of ``spent_sat`` and own outputs ``received`` (outpoint, sat) is in a block."""
        for outpoint, value_sat in received:
            self._write("deposit", txid, outpoint, value_sat, 0, not spent_sat, height, now)
        if not spent_sat:
            return
        sent = self._store.rows("SELECT * FROM external_outputs WHERE txid = ?", txid)
        for row in sent:
            if row["is_withdrawal"]:
                self._write("withdrawal", txid, row["outpoint"], 0, row["value_sat"], True, height, now)
        left = sum(spent_sat) - sum(value_sat for _, value_sat in received) - sum(row["value_sat"] for row in sent)
        # What another node broadcast of ours tells nothing of whom it pays: all that is gone is taken for a fee.
        self._write("onchain_fee", txid, "", 0, left, True, height, now)

    async def income(self, given: Given, _: str) -> Json:
        """``bkpr-listincome``."""
        Parameters(given, (), ("consolidate_fees", "start_time", "end_time"))
        rows = self._store.rows(f"{_MOVEMENTS} WHERE is_income ORDER BY number")
        return {"income_events": [_income(row) for row in rows]}

    async def describe(self, given: Given, _: str) -> Json:
        """``bkpr-editdescriptionbyoutpoint``; kept for what is yet to come, too."""
        params = Parameters(given, ("outpoint", "description"))
        outpoint = params.text("outpoint")
        if not re.fullmatch(r"[0-9a-f]{64}:[0-9]+", outpoint):
            raise params.invalid("outpoint", "should be a txid:outnum")
        self._store.execute(
            "INSERT OR REPLACE INTO movement_descriptions VALUES (?, ?)", outpoint, params.text("description")
        )
        rows = self._store.rows(f"{_MOVEMENTS} WHERE outpoint = ? ORDER BY number", outpoint)
        return {"updated": [_event(row) for row in rows]}

    def _write(
        self, tag: str, txid: str, outpoint: str, credit: int, debit: int, is_income: bool, height: int, now: int
    ) -> None:
        self._store.execute(
            "INSERT OR IGNORE INTO movements (tag, txid, outpoint, credit_sat, debit_sat, is_income, blockheight, "
            "timestamp) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            tag,
            txid,
            outpoint,
            credit,
            debit,
            is_income,
            height,
            now,
        )


_MOVEMENTS = "SELECT * FROM movements LEFT JOIN movement_descriptions USING (outpoint)"


def _money(row: Json) -> Json:
    return {
        "credit_msat": row["credit_sat"] * MSAT_PER_SAT,
        "debit_msat": row["debit_sat"] * MSAT_PER_SAT,
        "currency": "bcrt",
    }


def _income(row: Json) -> Json:
    shown = {"account": "wallet", "tag": row["tag"], **_money(row), "timestamp": row["timestamp"]}
    if row["description"] is not None:
        shown["description"] = row["description"]
    return {**shown, **({"outpoint": row["outpoint"]} if row["outpoint"] else {"txid": row["txid"]})}


def _event(row: Json) -> Json:
    return {
        "account": "wallet",
        "type": "chain",
        "tag": row["tag"],
        **_money(row),
        "outpoint": row["outpoint"],
        "timestamp": row["timestamp"],
        "blockheight": row["blockheight"],
        "description": row["description"],
    }
