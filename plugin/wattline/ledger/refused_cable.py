"""Cables that cost the socket money on-chain, by their node and by the outputs that they offered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import delete, insert, select

from wattline.bitcoin.chain import Outpoint
from wattline.ledger.schema import refused_cables, refused_inputs
from wattline.ledger.store import Store


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
