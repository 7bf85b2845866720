"""Versions of aggregates: stored before they are credited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, delete, func, insert, select, update

from wattline.core.aggregate import MSAT_PER_SAT, Aggregate, AggregateInput, AggregateStatus, Version, VersionRefused
from wattline.core.aggregate_step import VersionDropped, VersionStored, step
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.ledger.aggregate_record import find_held, find_version, versions_of, write_aggregate
from wattline.core.ledger.schema import aggregate_inputs, aggregate_versions, aggregates, schema_version
from wattline.core.ledger.store import Store


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
