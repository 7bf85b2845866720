"""The payer's durable intents: a payment is written down before it is sent, and resolved when its fate is known.

Used in the socket's database (refunds) and in the cable's own (increments).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, case, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from wattline.core.checks import NODE_ID, check_hex32, check_whole
from wattline.core.clock import Moment
from wattline.core.errors import StopError
from wattline.core.ledger import boots
from wattline.core.ledger.database import Store
from wattline.core.ledger.schema import intents


class Purpose(StrEnum):
    """What a payment is for."""

    INCREMENT = "increment"  # the cable pays for its session
    REFUND = "refund"  # the socket gives unused credit back
    ORPHAN_REFUND = "orphan_refund"  # the socket gives an orphan back


class IntentStatus(StrEnum):
    """How far a payment is."""

    PENDING = "pending"  # written down; may have been sent, its fate is not known
    COMPLETE = "complete"  # arrived
    FAILED = "failed"  # failed for good, or never sent: the money is back


class AlreadyPaying(StopError):
    """There is an intent for this that has not failed. Code ``already_paying``; nobody pays one thing twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One payment that is to be made. (purpose, session_id, sequence) names it: whatever happens, it is paid at most
    once. Raises StopError ``intent_invalid``."""

    purpose: str
    """One of Purpose."""
    session_id: str
    sequence: int
    """With purpose and session: what is paid. A failed payment may be tried again under the same number."""
    destination: str
    """Node id, hex."""
    amount_msat: int
    """What the destination is to receive."""
    maxfee_msat: int
    """What may be paid on top for its way."""
    record: str
    """The text of TLV 1463899221."""
    label: str
    preimage: str = ""
    """Chosen by the payer when it writes the intent down; empty before."""
    payment_hash: str = ""
    """SHA-256 of the preimage; empty before."""
    status: IntentStatus = IntentStatus.PENDING
    amount_sent_msat: int = 0
    """What left the wallet, routing fee included; 0 unless COMPLETE."""
    failure: str | None = None
    """Why it failed, for people; None unless FAILED."""
    created_at: int = 0
    """Unix seconds of when it was written down."""
    created_boot_id: str = ""
    """In which boot of this machine; empty when that is not known."""
    created_boot_ms: int = 0
    """Since that boot."""
    resolved_at: int | None = None

    @property
    def created(self) -> Moment:
        """When it was written down."""
        return Moment(self.created_at, self.created_boot_id, self.created_boot_ms)

    def __post_init__(self) -> None:
        if self.preimage or self.payment_hash:
            for name in ("payment_hash", "preimage"):
                check_hex32("intent_invalid", name, getattr(self, name))
            if hashlib.sha256(bytes.fromhex(self.preimage)).hexdigest() != self.payment_hash:
                raise StopError(
                    "intent_invalid", f"payment_hash {self.payment_hash} is not the SHA-256 of the preimage"
                )
        if self.purpose not in set(Purpose):
            raise StopError("intent_invalid", f"purpose: one of {', '.join(Purpose)}, not {self.purpose!r}")
        if not NODE_ID.fullmatch(self.destination):
            raise StopError("intent_invalid", f"destination: a node id in lower-case hex, not {self.destination!r}")
        for name, lowest in (("amount_msat", 1), ("maxfee_msat", 0), ("sequence", 0), ("amount_sent_msat", 0)):
            check_whole("intent_invalid", name, getattr(self, name), lowest)
        if (self.resolved_at is None) is not (self.status is IntentStatus.PENDING):
            raise StopError("intent_invalid", f"status {self.status} with resolved_at {self.resolved_at}")


class Outgoing(Store):
    """The intents of one payer."""

    def add(self, intent: Intent) -> None:
        """Write a pending intent down. It is committed when this returns, so that it may then be sent.

        Raises AlreadyPaying when an intent that has not failed exists for the same (purpose, session_id, sequence),
        StopError ``intent_exists`` for a payment_hash that was used before, ``intent_invalid`` unless it is pending,
        ``in_unit_of_work`` inside a larger unit of work, which could still be undone after the money has left.
        """
        if intent.status is not IntentStatus.PENDING or not intent.payment_hash:
            raise StopError("intent_invalid", f"a new intent is pending and has its hash: {intent.status}")
        if self._database.in_unit:
            raise StopError("in_unit_of_work", "an intent must be committed on its own before it is sent")
        try:
            with self._database.unit() as connection:
                if _find(connection, intent.payment_hash) is not None:
                    raise StopError("intent_exists", f"payment_hash {intent.payment_hash} was used before")
                connection.execute(insert(intents).values(**asdict(intent)))
                boots.note(connection, intent.created)
        except IntegrityError as error:
            raise AlreadyPaying(
                "already_paying",
                f"{intent.purpose} {intent.sequence} of session {intent.session_id} is being paid or was paid already",
            ) from error

    def complete(self, payment_hash: str, amount_sent_msat: int, at: int) -> None:
        """It arrived, and ``amount_sent_msat`` left the wallet. Told twice, the first counts. Raises StopError
        ``unknown_intent``; ``intent_resolved`` when it was said to have failed."""
        self._resolve(payment_hash, IntentStatus.COMPLETE, amount_sent_msat, None, at)

    def fail(self, payment_hash: str, failure: str, at: int) -> None:
        """It failed for good: no part of it can arrive any more. Told twice, the first counts. Raises StopError
        ``unknown_intent``; ``intent_resolved`` when it was said to have arrived."""
        self._resolve(payment_hash, IntentStatus.FAILED, 0, failure, at)

    def intent(self, payment_hash: str) -> Intent | None:
        """The intent with this hash, or None."""
        with self._database.view() as connection:
            return _find(connection, payment_hash)

    def pending(self) -> Sequence[Intent]:
        """All intents whose fate is not known, oldest first."""
        query = select(intents).where(intents.c.status == IntentStatus.PENDING)
        with self._database.view() as connection:
            rows = connection.execute(query.order_by(intents.c.created_at, intents.c.sequence))
            return [_intent(row) for row in rows]

    def of(self, purpose: str, session_id: str, sequence: int) -> Intent | None:
        """The intent for this that has not failed; else the one that failed last; None when there is none."""
        query = (
            select(intents)
            .where(intents.c.purpose == purpose, intents.c.session_id == session_id, intents.c.sequence == sequence)
            .order_by(
                case((intents.c.status == IntentStatus.FAILED, 1), else_=0),
                intents.c.resolved_at.desc(),
                intents.c.created_at.desc(),
            )
        )
        with self._database.view() as connection:
            row = connection.execute(query.limit(1)).first()
            return _intent(row) if row is not None else None

    def of_session(self, purpose: str, session_id: str) -> Sequence[Intent]:
        """All intents of a session, whatever became of them, in the order of their numbers."""
        query = select(intents).where(intents.c.purpose == purpose, intents.c.session_id == session_id)
        with self._database.view() as connection:
            rows = connection.execute(query.order_by(intents.c.sequence, intents.c.created_at))
            return [_intent(row) for row in rows]

    def sent_msat(
        self, session_id: str | None = None, day_before: Moment | None = None, purpose: str | None = None
    ) -> int:
        """What left or may yet leave the wallet, fees included, for intents made within the 24 hours ``day_before``:
        what complete ones took, and amount with the highest fee for pending ones."""
        leaves = case(
            (intents.c.status == IntentStatus.COMPLETE, intents.c.amount_sent_msat),
            (intents.c.status == IntentStatus.PENDING, intents.c.amount_msat + intents.c.maxfee_msat),
            else_=0,
        )
        query = select(func.coalesce(func.sum(leaves), 0))
        if session_id is not None:
            query = query.where(intents.c.session_id == session_id)
        if purpose is not None:
            query = query.where(intents.c.purpose == purpose)
        with self._database.view() as connection:
            if day_before is not None:
                day, own = boots.last_day_of(connection, day_before), intents.c
                query = query.where(boots.within(day, own.created_boot_id, own.created_boot_ms, own.created_at))
            return int(connection.execute(query).scalar_one())

    def day_begins_s(self, now: Moment) -> int:
        """From which Unix second on what others have dated is of the 24 hours before ``now``."""
        with self._database.view() as connection:
            return boots.last_day_of(connection, now).begins_s

    def newest_at(self, purpose: str) -> int | None:
        """When the newest intent for this was made, Unix seconds; None when there is none."""
        query = select(func.max(intents.c.created_at)).where(intents.c.purpose == purpose)
        with self._database.view() as connection:
            found = connection.execute(query).scalar_one()
            return int(found) if found is not None else None

    def _resolve(
        self, payment_hash: str, status: IntentStatus, amount_sent_msat: int, failure: str | None, at: int
    ) -> None:
        with self._database.unit() as connection:
            intent = _find(connection, payment_hash)
            if intent is None:
                raise StopError("unknown_intent", f"payment_hash {payment_hash} is no intent of ours")
            if intent.status is status:
                return
            if intent.status is not IntentStatus.PENDING:
                raise StopError(
                    "intent_resolved", f"payment {payment_hash} was {intent.status} and cannot become {status}"
                )
            connection.execute(
                update(intents)
                .where(intents.c.payment_hash == payment_hash, intents.c.status == IntentStatus.PENDING)
                .values(status=status.value, amount_sent_msat=amount_sent_msat, failure=failure, resolved_at=at)
            )


def _find(connection: Connection, payment_hash: str) -> Intent | None:
    row = connection.execute(select(intents).where(intents.c.payment_hash == payment_hash)).first()
    return _intent(row) if row is not None else None


def _intent(row: Row[Any]) -> Intent:
    values = dict(row._mapping)
    return Intent(**{**values, "purpose": Purpose(values["purpose"]), "status": IntentStatus(values["status"])})
