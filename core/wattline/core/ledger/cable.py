"""The cable's side of its sessions, so that a restarted cable resumes instead of paying for another one.

The cable's side of its on-chain payments: what it signed, and so what may leave its wallet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, Select, case, func, insert, select, update

from wattline.core.aggregate import MSAT_PER_SAT, AggregateInput
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.checks import check_whole
from wattline.core.clock import Moment
from wattline.core.errors import StopError
from wattline.core.ledger import boots
from wattline.core.ledger.database import LedgerError, Store
from wattline.core.ledger.schema import cable_aggregates, cable_sessions
from wattline.core.tariff import Tariff

_TOKEN = re.compile(r"[0-9a-f]{64}")
_TARIFF = [field.name for field in fields(Tariff)]


@dataclass(frozen=True, slots=True)
class CableSession:
    """One session as its buyer knows it. To be saved before the socket is asked to open it, and again when the socket
    has named it. Raises StopError ``record_invalid``."""

    token: str
    """32 secret bytes, hex: who holds them owns the session."""
    address: str
    """``host:port`` of the socket."""
    node_id: str
    """The socket's node, which signed the offer."""
    outlet_id: str
    tariff: Tariff
    rated_power_mw: int
    created_at: int
    """Unix seconds."""
    session_id: str | None = None
    """None until the socket has named it."""
    opened_at: int | None = None
    """Unix seconds."""
    base_uwh: int = 0
    """Count of the own meter's chip at the open."""
    extra_uwh: int = 0
    """Own energy of the session that is no longer in the chip."""
    energy_uwh: int = 0
    """Own energy at ``saved_at``."""
    saved_at: int = 0
    """Unix seconds of the last write."""
    stop_reason: str = ""
    """Empty while the session may go on."""
    closed_at: int | None = None
    receipt: bytes = b""
    """Serialized, as the socket signed it; empty before."""
    receipt_signature: str = ""
    delivered_ms: int = 0
    """The longest that delivery can have lasted by ``saved_at``."""
    lasted_ms: int = 0
    """How long it had been open then, as far as the clocks tell; for people."""
    is_end_seen: bool = False
    """A run, or the look that found it over, has written its end: nothing was delivered after ``saved_at``."""
    min_refund_msat: int = 0
    """Unused credit below this the socket keeps, by its offer."""
    saved_boot_id: str = ""
    """Which boot of the machine ``saved_at`` was in; empty when that is not known."""
    saved_boot_ms: int = 0
    """Since that boot."""
    cable_lost_s: int = 60
    """So long the socket goes on without a word of its cable, by its offer as far as that is believed."""

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.token):
            raise StopError("record_invalid", "token: 64 lower-case hex digits")  # a secret: not shown
        if bool(self.receipt) is not bool(self.receipt_signature):
            raise StopError("record_invalid", "a receipt comes with its signature")

    @property
    def saved(self) -> Moment:
        """When it was written last."""
        return Moment(self.saved_at, self.saved_boot_id, self.saved_boot_ms)

    def saved_now(self, now: Moment) -> CableSession:
        """The same, to be written ``now``."""
        return replace(self, saved_at=now.wall_s, saved_boot_id=now.boot_id, saved_boot_ms=now.boot_ms)


_OWN = [field.name for field in fields(CableSession) if field.name != "tariff"]


class CableSessionStore(Store):
    """All sessions of a cable, by token."""

    def save(self, session: CableSession) -> None:
        """Insert or replace by token; committed when it returns, unless inside a larger unit of work."""
        values = {name: getattr(session, name) for name in _OWN}
        values |= {name: getattr(session.tariff, name) for name in _TARIFF}
        with self._database.unit() as connection:
            boots.note(connection, session.saved)
            known = cable_sessions.c.token == session.token
            if connection.execute(update(cable_sessions).where(known).values(values)).rowcount == 0:
                connection.execute(insert(cable_sessions).values(values))

    def unfinished(self) -> CableSession | None:
        """The newest session without ``closed_at``; None when all are over."""
        found = self._records(select(cable_sessions).where(cable_sessions.c.closed_at.is_(None)), 1)
        return found[0] if found else None

    def without_receipt(self, node_id: str, limit: int) -> Sequence[CableSession]:
        """Sessions at this socket that are over, and for which it gave no receipt; newest first."""
        is_over = (cable_sessions.c.node_id == node_id) & cable_sessions.c.closed_at.is_not(None)
        named = cable_sessions.c.session_id.is_not(None) & (cable_sessions.c.receipt == b"")
        return self._records(select(cable_sessions).where(is_over & named), limit)

    def of(self, session_id: str) -> CableSession | None:
        """The newest session of that id, or None."""
        found = self._records(select(cable_sessions).where(cable_sessions.c.session_id == session_id), 1)
        return found[0] if found else None

    def latest(self, limit: int) -> Sequence[CableSession]:
        """The ``limit`` sessions made last, newest first."""
        return self._records(select(cable_sessions), limit)

    def _records(self, query: Select[Any], limit: int) -> list[CableSession]:
        # Of the same second the one written last: it is the one that is alive.
        newest_first = query.order_by(cable_sessions.c.created_at.desc(), cable_sessions.c.saved_at.desc())
        with self._database.view() as connection:
            return [_cable_session(row) for row in connection.execute(newest_first.limit(limit))]


def _cable_session(row: Row[Any]) -> CableSession:
    values = row._mapping
    tariff = Tariff(**{name: values[name] for name in _TARIFF})
    return CableSession(tariff=tariff, **{name: values[name] for name in _OWN})


class CableAggregateStatus(StrEnum):
    """How far the cable's payment is."""

    OPEN = "open"  # versions are made and handed over
    ENDED = "ended"  # the session is over; waiting to see what is mined
    SETTLED = "settled"  # mined as agreed
    UNANSWERED = "unanswered"  # mined is more than is due; the socket never took less, and the rest has not come back
    CHEATED = "cheated"  # a version was mined that pays more than the socket itself had agreed to
    VOID = "void"  # nothing was owed, or nothing was handed over: the inputs are free again

    @property
    def is_live(self) -> bool:
        """OPEN or ENDED: the inputs may yet be spent."""
        return self in (CableAggregateStatus.OPEN, CableAggregateStatus.ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class CableAggregate:
    """One aggregate as its payer knows it. Raises StopError ``record_invalid``."""

    session_id: str
    node_id: str
    """The socket's, hex."""
    address: str
    """Where every version pays to."""
    script: str
    """Its scriptPubKey, hex."""
    change_address: str
    """The same in every version."""
    base_psbt: str
    """The reserved inputs without any output, base64: what every version is made from."""
    inputs_weight: int
    """What lightningd expects the inputs and the fixed parts to weigh (``estimated_final_weight``)."""
    inputs: tuple[AggregateInput, ...]
    fee_sat: int
    """The miner's, the same in every version."""
    floor_sat: int
    """The smallest value of any version."""
    number: int = 0
    """Of the version signed last; 0 before the first."""
    signed_sat: int = 0
    """The largest value of any version; written before it is handed over, and never less again: so much the socket
    could have mined, whatever was agreed."""
    accepted_sat: int = 0
    """The largest value that the socket has credited."""
    final_sat: int | None = None
    """The value of the one final version that was signed, whatever became of it; None when none was."""
    agreed_sat: int | None = None
    """The most that may rightly be mined by the socket's own word; None before the end."""
    due_sat: int | None = None
    """The most that is due by the cable's own account; what is mined beyond it is owed back. None before the end, and
    where it is not known."""
    status: CableAggregateStatus = CableAggregateStatus.OPEN
    mined_txid: str | None = None
    mined_sat: int = 0
    """What the mined version pays to the socket."""
    created_at: int
    """Unix seconds."""
    closed_at: int | None = None
    """Unix seconds; set exactly when it is neither OPEN nor ENDED."""
    is_final_taken: bool = False
    """The socket has said that it has the final version."""
    kept_from_height: int = 0
    """Of the chain when the inputs were reserved; 0 when that is not known."""
    signed_at: int = 0
    """When the newest version was signed, or the inputs were reserved; Unix seconds."""
    signed_boot_id: str = ""
    """In which boot of this machine; empty when that is not known."""
    signed_boot_ms: int = 0
    """Since that boot."""

    def signed_now(self, now: Moment) -> CableAggregate:
        """The same, signed ``now``."""
        return replace(self, signed_at=now.wall_s, signed_boot_id=now.boot_id, signed_boot_ms=now.boot_ms)

    @property
    def owed_sat(self) -> int:
        """What was mined beyond what is due."""
        return 0 if self.due_sat is None else max(0, self.mined_sat - self.due_sat)

    def __post_init__(self) -> None:
        names = ("inputs_weight", "fee_sat", "floor_sat", "number", "signed_sat", "accepted_sat", "mined_sat")
        for name in (*names, "kept_from_height"):
            check_whole("record_invalid", name, getattr(self, name), 0)
        if not self.inputs:
            raise StopError("record_invalid", "an aggregate has inputs")
        if (self.closed_at is None) is not self.status.is_live:
            raise StopError("record_invalid", f"status {self.status} with closed_at {self.closed_at}")


_COLUMNS = [field.name for field in fields(CableAggregate)]


class CableAggregateStore(Store):
    """All aggregates of a cable, by session."""

    def save(self, row: CableAggregate) -> None:
        """Insert or replace by session; committed when it returns, unless inside a larger unit of work. Raises
        StopError ``signed_fell`` when more was signed before: what was handed over cannot be taken back."""
        values = {name: getattr(row, name) for name in _COLUMNS}
        values |= {"status": row.status.value, "inputs": _written(row.inputs)}
        own = cable_aggregates.c.session_id == row.session_id
        with self._database.unit() as connection:
            boots.note(connection, Moment(row.signed_at, row.signed_boot_id, row.signed_boot_ms))
            before = connection.execute(select(cable_aggregates.c.signed_sat).where(own).with_for_update()).scalar()
            if before is None:
                connection.execute(insert(cable_aggregates).values(values))
                return
            if row.signed_sat < before:
                raise StopError("signed_fell", f"{before} sat were signed, they cannot become {row.signed_sat} sat")
            connection.execute(update(cable_aggregates).where(own).values(values))

    def of(self, session_id: str) -> CableAggregate | None:
        """The aggregate of the session, or None."""
        found = self._records(select(cable_aggregates).where(cable_aggregates.c.session_id == session_id))
        return found[0] if found else None

    def unfinished(self) -> Sequence[CableAggregate]:
        """All that are OPEN or ENDED, oldest first."""
        live = [CableAggregateStatus.OPEN, CableAggregateStatus.ENDED]
        return self._records(select(cable_aggregates).where(cable_aggregates.c.status.in_(live)))

    def cheating_socket(self, node_id: str) -> CableAggregate | None:
        """The first aggregate of which this node had more mined than agreed; None when it never did."""
        cheated = cable_aggregates.c.status == CableAggregateStatus.CHEATED
        found = self._records(select(cable_aggregates).where(cable_aggregates.c.node_id == node_id, cheated))
        return found[0] if found else None

    def unanswered(self, node_id: str | None = None) -> Sequence[CableAggregate]:
        """All that are UNANSWERED, of this node or of any, oldest first."""
        query = select(cable_aggregates).where(cable_aggregates.c.status == CableAggregateStatus.UNANSWERED)
        return self._records(query if node_id is None else query.where(cable_aggregates.c.node_id == node_id))

    def sent_msat(self, session_id: str | None = None, day_before: Moment | None = None) -> int:
        """What left or may yet leave the wallet, the miner's fee included, for aggregates that were signed for within
        the 24 hours ``day_before``: the largest version signed while the end is open, then what was mined (or agreed,
        where that is not known); nothing when VOID. It leaves in one transaction, so all of it counts."""
        columns = cable_aggregates.c
        mined = case((columns.mined_txid.is_not(None), columns.mined_sat), else_=columns.final_sat)
        ended = columns.status.in_(
            [CableAggregateStatus.SETTLED, CableAggregateStatus.UNANSWERED, CableAggregateStatus.CHEATED]
        )
        leaves = case(
            (columns.status == CableAggregateStatus.VOID, 0),
            (ended, func.coalesce(mined, columns.signed_sat) + columns.fee_sat),
            else_=columns.signed_sat + columns.fee_sat,
        )
        query = select(func.coalesce(func.sum(leaves), 0))
        if session_id is not None:
            query = query.where(columns.session_id == session_id)
        with self._database.view() as connection:
            if day_before is not None:
                day = boots.last_day_of(connection, day_before)
                query = query.where(
                    boots.within(day, columns.signed_boot_id, columns.signed_boot_ms, columns.signed_at)
                )
            return int(connection.execute(query).scalar_one()) * MSAT_PER_SAT

    def _records(self, query: Select[Any]) -> list[CableAggregate]:
        oldest_first = query.order_by(cable_aggregates.c.created_at, cable_aggregates.c.session_id)
        with self._database.view() as connection:
            return [_cable_aggregate(row) for row in connection.execute(oldest_first)]


def _cable_aggregate(row: Row[Any]) -> CableAggregate:
    values = dict(row._mapping)
    values |= {
        "status": CableAggregateStatus(values["status"]),
        "inputs": _read_inputs(values["session_id"], values["inputs"]),
    }
    return CableAggregate(**values)


def _written(inputs: Sequence[AggregateInput]) -> str:
    return json.dumps([[str(item.outpoint), item.value_sat] for item in inputs])


def _read_inputs(session_id: str, text: str) -> tuple[AggregateInput, ...]:
    try:
        return tuple(AggregateInput(Outpoint.parse(outpoint), value_sat) for outpoint, value_sat in json.loads(text))
    except (ValueError, TypeError, AttributeError, StopError) as error:
        raise LedgerError("ledger_damaged", f"the inputs of session {session_id} cannot be read") from error
