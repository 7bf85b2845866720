"""Whether the ledger is an older copy of itself, and what is done differently then.

lightningd's database is never put back, ours may be. So the number of every receipt is noted there before a cable is
told of it, and a ledger that has signed fewer is an older copy: what was signed, paid back and delivered since is not
in it. Sessions that it takes for unfinished may be over, with a receipt that the cable holds. So nothing is delivered
for them, their new receipt says what it was made from, and what it calls owed by Lightning is not sent before somebody
has looked. Whether or not it was noticed, the node is asked before a new refund what it has sent already; what it has
deleted since (autoclean) it cannot tell.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from wattline.ledger import Intent, Ledger, Purpose, SessionRecord
from wattline.lightning.node import NodeRefused, SendStatus
from wattline.lightning.notes import LabelledPayment, NodeNotes
from wattline.lightning.record import format_record
from wattline.session import RefundKept, RefundOwed, RefundSent

log = logging.getLogger(__name__)

NOTE = "receipts"
RESTORED = "ledger_restored"
"""The event of a ledger that was found to be an older copy, and of each session that it concerns."""
RESOLVED = "refund_resolved"
"""The event with which the operator has said what becomes of a refund that was held."""
CLOCK_MARGIN_S = 3600


class OlderCopy:
    """Thread-safe."""

    def __init__(self, ledger: Ledger, notes: NodeNotes, now: Callable[[], int] = lambda: int(time.time())) -> None:
        self._ledger = ledger
        self._notes = notes
        self._now = now
        self._lock = threading.Lock()
        self._noted = 0
        self._sent: dict[str, LabelledPayment] | None = None
        """What the node has sent since the oldest session that was asked for, by label; read once."""
        self._sent_since = 0

    def look(self) -> None:
        """At a start, before a session is taken up: notice it. Raises NodeUnavailable and the ledger's errors."""
        last = self._ledger.last_receipt_number()
        try:
            note = self._notes.note(NOTE) or ""
            noted = int(note) if note.isascii() and note.isdigit() else 0
            if noted > last:
                self._write_down(noted, last)
            if noted != last:
                self._notes.write_note(NOTE, str(last))
        except NodeRefused as error:
            log.error("an older copy of the ledger would not be noticed: %s: %s", error.code, error.message)
        self._noted = last

    def _write_down(self, noted: int, last: int) -> None:
        concerned = [*self._ledger.live_sessions(), *self._ledger.without_receipt(), *self._ledger.owed_refunds()]
        session_ids = sorted({record.session.session_id for record in concerned})
        detail = {"receipts": last, "receipts_noted": noted, "sessions": len(session_ids)}
        with self._ledger.unit():
            for session_id in session_ids:
                self._ledger.append_event(self._now(), session_id, RESTORED, detail)
            self._ledger.append_event(self._now(), None, RESTORED, detail)
        log.error(
            "the ledger is an older copy: %d receipt(s) were signed after it was made; %d session(s) that it takes for "
            "unfinished are ended, and their refunds wait for wattline-resolve",
            noted - last,
            len(session_ids),
        )

    def note(self, number: int) -> None:
        """The receipt of this number is in the ledger, and nobody has been told of it yet. Raises NodeUnavailable."""
        with self._lock:
            if number <= self._noted:
                return
            try:
                self._notes.write_note(NOTE, str(number))
            except NodeRefused as error:
                log.error("receipt %d is not noted by the node: %s: %s", number, error.code, error.message)
            self._noted = number

    @property
    def noticed_at(self) -> int | None:
        """When it was noticed last, Unix seconds; None when it never was."""
        event = self._ledger.last_event(RESTORED)
        return event.at if event is not None else None

    def concerns(self, session_id: str) -> bool:
        """Whether the session may have ended, and have a receipt, of which this ledger knows nothing."""
        return self._ledger.last_event(RESTORED, session_id) is not None

    def holds(self, session_id: str) -> bool:
        """Whether nothing is sent back for the session until the operator has said so."""
        restored = self._ledger.last_event(RESTORED, session_id)
        if restored is None:
            return False
        resolved = self._ledger.last_event(RESOLVED, session_id)
        return resolved is None or resolved.number < restored.number

    def sent_before(
        self, purpose: Purpose, record: SessionRecord, sequence: int, budget_msat: int
    ) -> RefundSent | RefundKept | RefundOwed | None:
        """What the node has sent back of this, though the ledger knows nothing of it: written down now, so that it is
        not sent again. None when it sent nothing; RefundOwed while it is under way; RefundKept when it was sent, but
        ``budget_msat`` has no room for it. Raises NodeUnavailable, NodeRefused and the ledger's errors."""
        # Asked of every new refund: a copy from which no receipt is missing is not noticed.
        label = format_record(record.session.session_id, sequence)
        found = self._by_label(record.opened_at - CLOCK_MARGIN_S).get(label)
        if found is None:
            return None
        sent = found.sent
        if sent.status is SendStatus.PENDING:
            with self._lock:
                self._sent = None  # to be read again
            return RefundOwed()
        amount_msat = sent.amount_msat if sent.amount_msat is not None else sent.amount_sent_msat
        if sent.preimage is not None and found.destination:
            self._adopt(purpose, record.session.session_id, sequence, found, sent.preimage)
        log.warning("session %s: the node has sent %d msat back already", record.session.session_id, amount_msat)
        fee_msat = max(0, sent.amount_sent_msat - amount_msat)
        in_books_msat = min(amount_msat, budget_msat - fee_msat)
        return RefundSent(in_books_msat, fee_msat) if in_books_msat > 0 else RefundKept()

    def _by_label(self, since: int) -> dict[str, LabelledPayment]:
        with self._lock:
            if self._sent is None or since < self._sent_since:
                # A failed one gave the money back.
                rows = [row for row in self._notes.sent_since(since) if row.sent.status is not SendStatus.FAILED]
                rows.sort(key=lambda row: row.sent.status is SendStatus.COMPLETE)
                self._sent, self._sent_since = {row.label: row for row in rows}, since
            return self._sent

    def _adopt(self, purpose: Purpose, session_id: str, sequence: int, found: LabelledPayment, preimage: str) -> None:
        if self._ledger.outgoing.intent(found.sent.payment_hash) is not None:
            return
        amount_sent_msat = found.sent.amount_sent_msat
        amount_msat = found.sent.amount_msat if found.sent.amount_msat is not None else amount_sent_msat
        intent = Intent(
            payment_hash=found.sent.payment_hash,
            preimage=preimage,
            purpose=purpose,
            session_id=session_id,
            sequence=sequence,
            destination=found.destination,
            amount_msat=amount_msat,
            maxfee_msat=max(0, amount_sent_msat - amount_msat),
            record=found.label,
            label=found.label,
            created_at=found.created_at,
        )
        # Should the process die in between, it is one in doubt, and the payer asks the node for it.
        self._ledger.outgoing.add(intent)
        self._ledger.outgoing.complete(intent.payment_hash, amount_sent_msat, self._now())
