"""Aggregates and versions that the tests of the ledger are made of."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.core.ledger.samples import NODE_ID, session_id
from wattline.core.aggregate import Aggregate, AggregateInput, OnchainRules, Version
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.ledger.cable import CableAggregate

RULES = OnchainRules(
    floor_sat=1000,
    credit_cap_sat=5000,
    exposure_cap_sat=50_000,
    min_feerate_per_kw=253,
    max_feerate_per_kw=25_000,
    max_age_s=3600,
    input_confirmations=1,
    max_inputs=5,
)


def outpoint(number: int) -> Outpoint:
    return Outpoint(hashlib.sha256(b"funding %d" % number).hexdigest(), number)


INPUTS = tuple(sorted(AggregateInput(outpoint(number), 100_000 + number) for number in (1, 2)))


def aggregate(session: int = 1, **changes: Any) -> Aggregate:
    values: dict[str, Any] = {
        "session_id": session_id(session),
        "cable_node_id": NODE_ID,
        "address": f"bcrt1p{session}",
        "script": f"5120{session:064x}",
        "rules": RULES,
        "invited_at": 2000 + session,
    }
    return Aggregate(**values | changes)


def txid_of(session: int, value_sat: int) -> str:
    """The same inputs and outputs are the same transaction, whatever number the version has."""
    return hashlib.sha256(b"session %d pays %d" % (session, value_sat)).hexdigest()


def version(number: int, session: int = 1, value_sat: int | None = None, **changes: Any) -> Version:
    value_sat = 1000 * number if value_sat is None else value_sat
    values: dict[str, Any] = {
        "session_id": session_id(session),
        "number": number,
        "value_sat": value_sat,
        "fee_sat": 154,
        "vsize": 154,
        "vout": 0,
        "txid": txid_of(session, value_sat),
        "psbt": f"cHNidP8{number}",
        "raw": f"02{number:08x}",
        "stored_at": 3000 + number,
    }
    return Version(**values | changes)


def cable_aggregate(session: int = 1, **changes: Any) -> CableAggregate:
    values: dict[str, Any] = {
        "session_id": session_id(session),
        "node_id": NODE_ID,
        "address": f"bcrt1p{session}",
        "script": f"5120{session:064x}",
        "change_address": "bcrt1pchange",
        "base_psbt": "cHNidP8B",
        "inputs_weight": 230,
        "inputs": INPUTS[::-1],
        "fee_sat": 154,
        "floor_sat": 1000,
        "created_at": 2000 + session,
    }
    return CableAggregate(**values | changes)
