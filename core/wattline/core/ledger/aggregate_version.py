"""The versions of aggregates, stored before they are credited, and how rows become values again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from wattline.core.aggregate import (
    MSAT_PER_SAT,
    Aggregate,
    AggregateInput,
    AggregateStatus,
    OnchainRules,
    Version,
    VersionRefused,
)
from wattline.core.aggregate_step import Held, VersionDropped, VersionStored, step
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.checks import is_whole
from wattline.core.errors import StopError
from wattline.core.ledger.database import LedgerError, Store
from wattline.core.ledger.schema import aggregate_inputs, aggregate_versions, aggregates, schema_version

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


class VersionStore(Store):
    """What each session holds of its aggregate. The value of the newest version that is not final is the session's
    on-chain credit, and nothing else is."""

    def store_version(self, version: Version, inputs: Sequence[AggregateInput] = (), first_height: int = 0) -> bool:
        """Keep a version that was checked: from then on it counts as credit, unless it is final. True when it is new;
        the same again (number, txid and whether it is final) changes nothing, whatever the status is by now.

        The first version of a session brings the ``inputs`` and the chain's tip; later ones may leave them out. The
        transactions of all but the newest two versions are let go (the one before is there for ``drop_version``).

        Raises as :func:`wattline.core.aggregate_step.step` does of VersionStored, VersionRefused ``input_refused`` when
        another live aggregate spends one of the inputs, StopError ``unknown_aggregate``.
        """
        with self._database.unit() as connection:
            held = find_held(connection, version.session_id)
            if _is_known(connection, version):
                return False
            after = step(held, VersionStored(version, tuple(inputs), first_height))
            if held.newest is None:
                _store_inputs(connection, after.aggregate)
            connection.execute(insert(aggregate_versions).values(**asdict(version)))
            if held.newest is not None and not version.is_final:
                columns = aggregate_versions.c
                older = (
                    (columns.session_id == version.session_id)
                    & (columns.number < held.newest.number)
                    & (columns.raw != "")
                )
                connection.execute(update(aggregate_versions).where(older).values(psbt="", raw=""))
            return True

    def drop_version(self, session_id: str, number: int) -> None:
        """Forget the version stored last, which could not be credited after all; nothing when there is none of that
        number. With the first version its inputs go too.

        Raises StopError ``version_in_use`` when it is not the last one, when the aggregate is not OPEN any more, or
        when the version before it could no longer be broadcast; ``unknown_aggregate``.
        """
        with self._database.unit() as connection:
            held = find_held(connection, session_id)
            if self.version(session_id, number) is None:
                return
            after = step(held, VersionDropped(number))
            where = (aggregate_versions.c.session_id == session_id) & (aggregate_versions.c.number == number)
            connection.execute(delete(aggregate_versions).where(where))
            if not after.versions:
                connection.execute(delete(aggregate_inputs).where(aggregate_inputs.c.session_id == session_id))
                write_aggregate(connection, after.aggregate)

    def newest_version(self, session_id: str) -> Version | None:
        """The largest version that is not final, or None."""
        with self._database.view() as connection:
            return find_version(connection, versions_of(session_id, is_final=False))

    def final_version(self, session_id: str) -> Version | None:
        """The version that pays exactly what is owed, or None."""
        with self._database.view() as connection:
            return find_version(connection, versions_of(session_id, is_final=True))

    def version(self, session_id: str, number: int) -> Version | None:
        """The version of that number, or None."""
        with self._database.view() as connection:
            return find_version(connection, versions_of(session_id).where(aggregate_versions.c.number == number))

    def version_value_sat(self, session_id: str, txid: str) -> int | None:
        """What the version with this txid pays to the session's address; None when none has it."""
        with self._database.view() as connection:
            found = find_version(connection, versions_of(session_id).where(aggregate_versions.c.txid == txid))
            return found.value_sat if found is not None else None

    def increments(self, session_id: str) -> int:
        """How many versions were credited: all but the final one."""
        query = select(func.count()).where(
            aggregate_versions.c.session_id == session_id, aggregate_versions.c.is_final.is_(False)
        )
        with self._database.view() as connection:
            return int(connection.execute(query).scalar_one())

    def onchain_credited_msat(self, session_id: str) -> int:
        """The value of the newest version that is not final, whatever is broadcast in the end; 0 without one."""
        newest = self.newest_version(session_id)
        return newest.value_sat * MSAT_PER_SAT if newest is not None else 0

    def input_in_use(self, outpoint: Outpoint, but_not: str) -> str | None:
        """The session whose live (OPEN or SENT) aggregate spends this, other than ``but_not``; None when none does."""
        with self._database.view() as connection:
            return _spending_session(connection, outpoint, but_not)

    def given_back(self, outpoint: Outpoint, since: int) -> int:
        """How many sessions that ended since then (Unix seconds) were handed this and took nothing of it."""
        is_its = (aggregate_inputs.c.txid == outpoint.txid) & (aggregate_inputs.c.vout == outpoint.vout)
        is_void = (aggregates.c.status == AggregateStatus.VOID) & (aggregates.c.closed_at >= since)
        query = (
            select(func.count())
            .select_from(aggregate_inputs)
            .join(aggregates, aggregates.c.session_id == aggregate_inputs.c.session_id)
            .where(is_its, is_void)
        )
        with self._database.view() as connection:
            return int(connection.execute(query).scalar_one())


def _is_known(connection: Connection, version: Version) -> bool:
    query = versions_of(version.session_id).where(aggregate_versions.c.number == version.number)
    known = find_version(connection, query)
    return known is not None and version.is_same(known)


def _store_inputs(connection: Connection, aggregate: Aggregate) -> None:
    # One first version after the other, or two sessions could each take the same input for free (SQLite has one writer
    # at a time anyway). The row is there in every ledger.
    connection.execute(select(schema_version).with_for_update())
    for item in aggregate.inputs:
        holder = _spending_session(connection, item.outpoint, aggregate.session_id)
        if holder is not None:
            raise VersionRefused("input_refused", f"input {item.outpoint} pays for session {holder} already")
    rows = [
        {"session_id": aggregate.session_id, **asdict(item.outpoint), "value_sat": item.value_sat}
        for item in aggregate.inputs
    ]
    connection.execute(insert(aggregate_inputs), rows)
    write_aggregate(connection, aggregate)


def _spending_session(connection: Connection, outpoint: Outpoint, but_not: str) -> str | None:
    query = (
        select(aggregates.c.session_id)
        .join(aggregate_inputs, aggregate_inputs.c.session_id == aggregates.c.session_id)
        .where(
            aggregate_inputs.c.txid == outpoint.txid,
            aggregate_inputs.c.vout == outpoint.vout,
            aggregates.c.session_id != but_not,
            aggregates.c.status.in_([AggregateStatus.OPEN, AggregateStatus.SENT]),
        )
    )
    return connection.execute(query.limit(1)).scalar()
