"""Payments of the cable's node that its ledger does not know: it is an older copy of itself then.

lightningd's record is never put back, ours may be. What it has sent since the copy was made is read back before
anything is paid: numbers, sums and the budget of the day go on from what left the wallet. Whose a payment is, its label
says. One of a session that the ledger knows is ours. Of sessions begun after the copy it knows nothing: theirs count as
ours only when it was seen to be a copy, because other cables may pay from the same node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wattline.cable.memory import OutgoingRecord, SessionMemory
from wattline.cable.pay.keysend import PURPOSE
from wattline.core.errors import RetryError
from wattline.core.ledger.cable import CableSession
from wattline.core.ledger.outgoing import AlreadyPaying, Intent
from wattline.core.lightning.node import SendStatus
from wattline.core.lightning.notes import LabelledPayment
from wattline.core.record import Record, RecordError, parse_record

CLOCK_MARGIN_S = 600
"""So far the clock may have been set back between the ledger's row of a payment and the node's."""


class PaymentUnknown(RetryError):
    """The node is making a payment that the ledger does not know: what it takes is not known yet. Code
    ``payment_unknown``."""


class SentPayments(Protocol):
    """The node's record (:class:`wattline.core.lightning.notes.CoreLightningNotes`)."""

    def sent_since(self, created_at: int) -> Sequence[LabelledPayment]:
        """Raises NodeUnavailable, NodeRefused."""


def recollect(
    node: SentPayments,
    outgoing: OutgoingRecord,
    memory: SessionMemory,
    unfinished: CableSession | None,
    day_begins: int,
) -> int:
    """Write down what is missing; how many payments that were. ``day_begins``: Unix seconds; of what is older only the
    ``unfinished`` session's counts. May be done again. Raises PaymentUnknown, NodeUnavailable, NodeRefused, and the
    ledger's errors."""
    newest_at = outgoing.newest_at(PURPOSE)
    if newest_at is None:
        if unfinished is None:
            return 0  # it has never bought anything
        newest_at = unfinished.created_at
    since = newest_at - CLOCK_MARGIN_S
    rows = node.sent_since(since if unfinished is not None else max(since, day_begins))
    missing = [
        (row, record)
        for row in rows
        if row.sent.status is not SendStatus.FAILED  # that money is back
        and (record := _increment(row.label)) is not None
        and outgoing.intent(row.sent.payment_hash) is None
    ]
    sessions = {session_id: memory.of(session_id) for session_id in {record.session_id for _, record in missing}}
    if not any(sessions.values()):
        return 0
    # What is still under way comes last: all else is written down by then.
    missing.sort(key=lambda found: found[0].sent.status is SendStatus.PENDING)
    for row, record in missing:
        _adopt(row, record, outgoing, sessions[record.session_id])
    return len(missing)


def _increment(label: str) -> Record | None:
    """What a payment was for; None when it was for no session, or is a socket's refund."""
    try:
        record = parse_record(label)
    except RecordError:
        return None
    return record if record.sequence > 0 else None


def _adopt(row: LabelledPayment, record: Record, outgoing: OutgoingRecord, session: CableSession | None) -> None:
    sent = row.sent
    destination = row.destination or (session.node_id if session is not None else "")
    if sent.status is SendStatus.PENDING or sent.preimage is None or not destination:
        raise PaymentUnknown(
            "payment_unknown", f"payment {sent.payment_hash} ({row.label}) is {sent.status}, and not in the ledger"
        )
    amount_msat = sent.amount_msat if sent.amount_msat is not None else sent.amount_sent_msat
    intent = Intent(
        payment_hash=sent.payment_hash,
        preimage=sent.preimage,
        purpose=PURPOSE,
        session_id=record.session_id,
        sequence=record.sequence,
        destination=destination,
        amount_msat=amount_msat,
        maxfee_msat=max(0, sent.amount_sent_msat - amount_msat),
        record=row.label,
        label=row.label,
        created_at=row.created_at,
    )
    try:
        outgoing.add(intent)
    except AlreadyPaying as error:
        raise PaymentUnknown(
            "payment_unknown", f"{row.label} was paid by {sent.payment_hash}, and another one for it is in doubt"
        ) from error
    # Should the process die in between, it is one in doubt, and the payer asks the node for it.
    outgoing.complete(intent.payment_hash, sent.amount_sent_msat, row.created_at)
