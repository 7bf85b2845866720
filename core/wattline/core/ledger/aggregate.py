"""The on-chain payments of the socket's sessions: from the invitation to what the chain made of it.

Cables that cost the socket money on-chain, by their node and by the outputs that they offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import delete, exists, func, insert, select

from wattline.core.aggregate import Aggregate, AggregateStatus, OnchainRules
from wattline.core.aggregate_step import (
    AggregateClosed,
    AggregateEvent,
    ChildSent,
    CreditLost,
    Held,
    InputsMined,
    InputsUnmined,
    VersionChosen,
    Voided,
    step,
)
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.errors import StopError
from wattline.core.ledger.aggregate_version import (
    VersionStore,
    aggregate_values,
    find_aggregate,
    find_held,
    read_aggregate,
    write_aggregate,
)
from wattline.core.ledger.database import Store
from wattline.core.ledger.schema import aggregate_versions, aggregates, refused_cables, refused_inputs, sessions
from wattline.core.session.state import State


class RefusedCable(NamedTuple):
    """A node that is let in no more."""

    cable_node_id: str
    reason: str
    session_id: str
    """In which it happened."""
    at: int
    """Unix seconds."""


class RefusalStore(Store):
    """Whom the socket refuses until the operator forgives."""

    def refuse_cable(
        self, cable_node_id: str, inputs: Sequence[Outpoint], session_id: str, reason: str, at: int
    ) -> None:
        """Remember the node and the outputs that it offered. What was refused before stays as it was written then. Of
        a cable that named no node (empty) only the outputs are remembered: others that name none may be honest."""
        values = {"reason": reason, "session_id": session_id, "at": at}
        with self._database.unit() as connection:
            if cable_node_id and self.refused_cable(cable_node_id) is None:
                connection.execute(insert(refused_cables).values(cable_node_id=cable_node_id, **values))
            for outpoint in sorted(set(inputs)):
                if self.refused_input(outpoint) is None:
                    row = {"txid": outpoint.txid, "vout": outpoint.vout, "cable_node_id": cable_node_id}
                    connection.execute(insert(refused_inputs).values(**row, **values))

    def refused_cable(self, cable_node_id: str) -> str | None:
        """Why the node is refused; None when it is not."""
        query = select(refused_cables.c.reason).where(refused_cables.c.cable_node_id == cable_node_id)
        with self._database.view() as connection:
            return connection.execute(query).scalar()

    def refused_input(self, outpoint: Outpoint) -> str | None:
        """Why a transaction that spends this is refused; None when it is not."""
        query = select(refused_inputs.c.reason).where(
            refused_inputs.c.txid == outpoint.txid, refused_inputs.c.vout == outpoint.vout
        )
        with self._database.view() as connection:
            return connection.execute(query).scalar()

    def refused_cables(self) -> list[RefusedCable]:
        """All nodes that are refused, oldest first."""
        with self._database.view() as connection:
            rows = connection.execute(
                select(refused_cables).order_by(refused_cables.c.at, refused_cables.c.cable_node_id)
            )
            return [RefusedCable(**row._mapping) for row in rows]

    def forgive_cable(self, cable_node_id: str) -> bool:
        """Let the node in again, with the outputs that it offered; an empty one forgives the outputs of all that named
        none. False when there was nothing to forgive."""
        with self._database.unit() as connection:
            nodes = connection.execute(delete(refused_cables).where(refused_cables.c.cable_node_id == cable_node_id))
            outputs = connection.execute(delete(refused_inputs).where(refused_inputs.c.cable_node_id == cable_node_id))
            return nodes.rowcount + outputs.rowcount > 0


class AggregateStore(VersionStore, RefusalStore):
    """One aggregate per session. Every method is a unit of work, committed when it returns (inside a larger one, with
    that: commit before anything is sent). All that change an aggregate raise StopError ``unknown_aggregate``."""

    def invite(self, aggregate: Aggregate) -> None:
        """Write down under which rules, and where to, a session may pay on-chain. Raises StopError
        ``aggregate_exists`` when the session has an aggregate, ``unknown_session`` when it was never saved,
        ``aggregate_invalid`` unless the aggregate is OPEN and without inputs (the first version brings them)."""
        if aggregate.status is not AggregateStatus.OPEN or aggregate.inputs:
            raise StopError("aggregate_invalid", "a new aggregate is open and has no inputs yet")
        session_id = aggregate.session_id
        with self._database.unit() as connection:
            # Held, so that of two invitations of one session the second finds the first.
            known = select(sessions.c.session_id).where(sessions.c.session_id == session_id).with_for_update()
            if connection.execute(known).first() is None:
                raise StopError("unknown_session", f"session {session_id} was never saved")
            if find_aggregate(connection, session_id) is not None:
                raise StopError("aggregate_exists", f"session {session_id} was invited to pay on-chain before")
            connection.execute(insert(aggregates).values(aggregate_values(aggregate)))

    def invite_again(self, session_id: str, cable_node_id: str, rules: OnchainRules, at: int) -> Aggregate | None:
        """Invite a session to the address of an earlier one that is CLOSED and has stored no version there; the earlier
        invitation is forgotten. One of the same cable is preferred, then the oldest. None when there is none. Raises
        as :meth:`invite`."""
        is_free = (
            (aggregates.c.status == AggregateStatus.VOID)
            & (aggregates.c.first_height == 0)
            & ~exists().where(aggregate_versions.c.session_id == aggregates.c.session_id)
            & exists().where(sessions.c.session_id == aggregates.c.session_id, sessions.c.state == State.CLOSED)
        )
        first = (aggregates.c.cable_node_id != cable_node_id, aggregates.c.invited_at, aggregates.c.session_id)
        with self._database.unit() as connection:
            # Held, so that of two sessions that look for one the second finds another.
            row = connection.execute(select(aggregates).where(is_free).order_by(*first).limit(1).with_for_update())
            found = row.first()
            if found is None:
                return None
            connection.execute(delete(aggregates).where(aggregates.c.session_id == found.session_id))
            aggregate = Aggregate(
                session_id=session_id,
                cable_node_id=cable_node_id,
                address=found.address,
                script=found.script,
                rules=rules,
                invited_at=at,
            )
            self.invite(aggregate)
            return aggregate

    def aggregate(self, session_id: str) -> Aggregate | None:
        """The session's aggregate; None when it was never invited to pay on-chain."""
        with self._database.view() as connection:
            return find_aggregate(connection, session_id)

    def held(self, session_id: str) -> Held:
        """The session's aggregate with its newest versions. Raises StopError ``unknown_aggregate``."""
        with self._database.view() as connection:
            return find_held(connection, session_id)

    def unfinished_aggregates(self) -> Sequence[Aggregate]:
        """All that are OPEN or SENT, oldest first."""
        query = select(aggregates).where(aggregates.c.status.in_([AggregateStatus.OPEN, AggregateStatus.SENT]))
        with self._database.view() as connection:
            rows = connection.execute(query.order_by(aggregates.c.invited_at, aggregates.c.session_id)).all()
            return [read_aggregate(connection, row) for row in rows]

    def exposure_sat(self) -> int:
        """What was credited over all sessions and is in no block: of OPEN aggregates the newest version's value, of
        SENT ones the chosen version's, until something of theirs is mined."""
        newest = (
            select(func.max(aggregate_versions.c.value_sat))
            .where(aggregate_versions.c.session_id == aggregates.c.session_id, aggregate_versions.c.is_final.is_(False))
            .scalar_subquery()
        )
        still_open = select(func.coalesce(func.sum(newest), 0)).where(aggregates.c.status == AggregateStatus.OPEN)
        sent = (
            select(func.coalesce(func.sum(aggregate_versions.c.value_sat), 0))
            .join(aggregates, aggregates.c.session_id == aggregate_versions.c.session_id)
            .where(
                aggregate_versions.c.number == aggregates.c.chosen_number,
                aggregates.c.status == AggregateStatus.SENT,
                aggregates.c.mined_txid.is_(None),
            )
        )
        with self._database.view() as connection:
            return sum(int(connection.execute(query).scalar_one()) for query in (still_open, sent))

    def choose(self, session_id: str, number: int, reason: str, at: int) -> Aggregate:
        """Decide which version is broadcast, before it is: OPEN becomes SENT. The first decision stands: the aggregate
        as it is then, which is not this one's when it came later (also when that was ``void``).

        Raises StopError ``version_stale`` for a version that is neither the newest nor the final one.
        """
        return self._step(session_id, VersionChosen(number, str(reason), at)).aggregate

    def void(self, session_id: str, reason: str, at: int) -> Aggregate:
        """Decide that nothing is broadcast, because nothing is owed: OPEN becomes VOID, and all versions but the newest
        are forgotten, which cost nobody anything. The first decision stands: the aggregate as it is then."""
        with self._database.unit() as connection:
            after = self._step(session_id, Voided(str(reason), at))
            if after.aggregate.status is AggregateStatus.VOID:
                columns = aggregate_versions.c
                kept = [version.number for version in after.versions]
                others = (columns.session_id == session_id) & columns.number.not_in(kept)
                connection.execute(delete(aggregate_versions).where(others))
            return after.aggregate

    def mined(self, session_id: str, txid: str, value_sat: int, height: int, block: str) -> None:
        """What spends the inputs is in a block: ``txid`` pays ``value_sat`` to the session's address, 0 when it is none
        of ours. Replaces what an earlier block said (a reorg); another value resets ``lost_msat``, which was worked out
        from the earlier one. Raises StopError ``aggregate_not_sent``."""
        self._step(session_id, InputsMined(txid, value_sat, height, block))

    def unmined(self, session_id: str) -> None:
        """A reorg took it out of the chain: nothing is mined, and nothing is lost for good. Raises StopError
        ``aggregate_not_sent``."""
        self._step(session_id, InputsUnmined())

    def lose(self, session_id: str, lost_msat: int) -> None:
        """``lost_msat`` (0 or more) of what was credited and not given back is not in what was mined; replaces what was
        said before. It stays SENT until it is closed. Raises StopError ``aggregate_not_sent``."""
        self._step(session_id, CreditLost(lost_msat))

    def child(self, session_id: str, txid: str) -> None:
        """A transaction of ours pays for the way of the chosen version; replaces an earlier one. Raises StopError
        ``aggregate_not_sent``."""
        self._step(session_id, ChildSent(txid))

    def close_aggregate(self, session_id: str, status: AggregateStatus, at: int, *, is_resolved: bool = False) -> None:
        """What was mined is deep enough: SENT becomes SETTLED or LOST. The same again changes nothing. LOST may also be
        what can never be mined, once it was said how much is lost; ``is_resolved``: a person says how it ended. Raises
        StopError ``aggregate_not_sent`` from any other status, ``aggregate_not_mined`` when nothing was mined,
        ``aggregate_invalid`` for any other end."""
        self._step(session_id, AggregateClosed(status, at, is_resolved))

    def _step(self, session_id: str, event: AggregateEvent) -> Held:
        """The aggregate after this, as it is written."""
        with self._database.unit() as connection:
            held = find_held(connection, session_id)
            after = step(held, event)
            if after.aggregate != held.aggregate:
                write_aggregate(connection, after.aggregate)
            return after
