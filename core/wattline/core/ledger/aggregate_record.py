"""The aggregate of a session and its versions, as the socket keeps them."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, Row, Select, select, update

from wattline.core.aggregate import Aggregate, AggregateInput, AggregateStatus, OnchainRules, Version
from wattline.core.aggregate_step import Held
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.checks import is_whole
from wattline.core.errors import StopError
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.schema import aggregate_inputs, aggregate_versions, aggregates

_RULES = [field.name for field in fields(OnchainRules)]


def versions_of(session_id: str, *, is_final: bool | None = None) -> Select[Any]:
    """The versions of a session, the highest number first; all, or those that are (not) final."""
    query = select(aggregate_versions).where(aggregate_versions.c.session_id == session_id)
    if is_final is not None:
        query = query.where(aggregate_versions.c.is_final.is_(is_final))
    return query.order_by(aggregate_versions.c.number.desc())


def find_version(connection: Connection, query: Select[Any]) -> Version | None:
    """The first that ``query`` finds."""
    row = connection.execute(query.limit(1)).first()
    return Version(**row._mapping) if row is not None else None


def find_aggregate(connection: Connection, session_id: str) -> Aggregate | None:
    row = connection.execute(select(aggregates).where(aggregates.c.session_id == session_id)).first()
    return read_aggregate(connection, row) if row is not None else None


def held_aggregate(connection: Connection, session_id: str) -> Aggregate:
    """The session's aggregate, which nobody else changes before this unit of work ends. Raises StopError
    ``unknown_aggregate``."""
    # SQLite has one writer at a time anyway, and leaves FOR UPDATE out.
    query = select(aggregates).where(aggregates.c.session_id == session_id).with_for_update()
    row = connection.execute(query).first()
    if row is None:
        raise StopError("unknown_aggregate", f"session {session_id} was never invited to pay on-chain")
    return read_aggregate(connection, row)


def find_held(connection: Connection, session_id: str) -> Held:
    """The session's aggregate with its newest versions, which nobody else changes before this unit of work ends. Raises
    StopError ``unknown_aggregate``."""
    aggregate = held_aggregate(connection, session_id)
    rows = connection.execute(versions_of(session_id).limit(3))
    return Held(aggregate, tuple(Version(**row._mapping) for row in rows))


def read_aggregate(connection: Connection, row: Row[Any]) -> Aggregate:
    """The aggregate of a row, with its inputs."""
    values = dict(row._mapping)
    spent = select(aggregate_inputs).where(aggregate_inputs.c.session_id == values["session_id"])
    inputs = [AggregateInput(Outpoint(item.txid, item.vout), item.value_sat) for item in connection.execute(spent)]
    values |= {
        "status": AggregateStatus(values["status"]),
        "rules": _read_rules(values["session_id"], values["rules"]),
        "inputs": tuple(sorted(inputs)),
    }
    return Aggregate(**values)


def write_aggregate(connection: Connection, aggregate: Aggregate) -> None:
    """In place of what was written of it before; its inputs have rows of their own."""
    where = aggregates.c.session_id == aggregate.session_id
    connection.execute(update(aggregates).where(where).values(aggregate_values(aggregate)))


def aggregate_values(aggregate: Aggregate) -> dict[str, Any]:
    """The row of an aggregate; its inputs have rows of their own."""
    names = [field.name for field in fields(Aggregate) if field.name != "inputs"]
    values = {name: getattr(aggregate, name) for name in names}
    return values | {"status": aggregate.status.value, "rules": json.dumps(asdict(aggregate.rules), sort_keys=True)}


def _read_rules(session_id: str, text: str) -> OnchainRules:
    try:
        values = json.loads(text)
        rules = {name: values[name] for name in _RULES}
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError("ledger_damaged", f"the on-chain rules of session {session_id} cannot be read") from error
    for name, value in rules.items():
        if not is_whole(value, 0):
            raise LedgerError("ledger_damaged", f"the on-chain rules of session {session_id} have {name} = {value!r}")
    return OnchainRules(**rules)
