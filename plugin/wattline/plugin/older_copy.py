"""Whether the ledger is an older copy of itself, and what is done differently then.

lightningd's database is never put back, ours may be. So it is noted there how far the ledger has come: before a cable
is told of a receipt, its number; before a refund is handed to the node, its payment_hash. A ledger that has signed
fewer, or does not know that refund, is an older copy: what was signed, paid back and delivered since is not in it. From
then on it is another branch, with a name of its own, so one that is put back after it is noticed, too. Sessions that it
takes for unfinished may be over, with a receipt that the cable holds. So nothing is delivered for them, their new
receipt says what it was made from, and what the node does not call sent is not sent before somebody has looked.

What is not noticed lacks no refund, so nothing is held there. Where the node takes no note, refunds go out only while
it never forgets what it has sent (autoclean): it is asked before each new one.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from wattline.core.clock import Clock
from wattline.core.errors import WattlineError
from wattline.core.ledger.history import LoggedEvent
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.outgoing import Intent, Outgoing, Purpose
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.lightning.node import NodeRefused, SendStatus
from wattline.core.lightning.notes import LabelledPayment, NodeNotes
from wattline.core.record import format_record
from wattline.core.session.event import RefundKept, RefundOwed, RefundSent

log = logging.getLogger(__name__)

NOTE = "ledger"
NOTE_BEFORE = "receipts"
"""Of an earlier wattline, which noted the number of the receipt alone."""
RESTORED = "ledger_restored"
"""The event of a ledger that was found to be an older copy, and of each session that it concerns."""
RESOLVED = "refund_resolved"
"""The event with which the operator has said what becomes of the refunds of a session that were held."""
KEPT = "keep"
"""With this outcome nothing of them is sent."""
CLOCK_MARGIN_S = 3600
_NOTED = re.compile(r"([0-9]{1,18})(?::([0-9a-f]{0,32}):([0-9a-f]{64})?)?")


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a ledger has come."""

    receipts: int
    """The number of the receipt signed last; 0: none."""
    branch: str
    """Named anew whenever a copy was noticed; empty for a ledger that never was one."""
    refund: str
    """payment_hash of the refund that was handed to the node last; empty: none on this branch."""

    def __str__(self) -> str:
        return f"{self.receipts}:{self.branch}:{self.refund}"

    @classmethod
    def of(cls, text: str) -> Mark | None:
        """As it was noted; None when that is none."""
        match = _NOTED.fullmatch(text)
        return cls(int(match[1]), match[2] or "", match[3] or "") if match is not None else None


class OlderCopy:
    """Thread-safe."""

    def __init__(
        self,
        ledger: Ledger,
        notes: NodeNotes,
        forgets_sent_after_s: Callable[[], int | None],
        clock: Clock,
    ) -> None:
        """``forgets_sent_after_s``: see :meth:`wattline.core.lightning.node.Wallet.forgets_sent_after_s`."""
        self._ledger = ledger
        self._notes = notes
        self._forgets_sent_after_s = forgets_sent_after_s
        self._now = clock.now_s
        self._lock = threading.Lock()
        self._mark: Mark | None = None
        """As it is noted; None while it is not known what is: it is left alone then."""
        self._restored: LoggedEvent | None = None
        """When it was noticed last."""
        self._listing = threading.Lock()
        self._sent: dict[str, LabelledPayment] | None = None
        """What the node has sent since the oldest session that was asked for, by label; read once."""
        self._sent_since = 0

    def look(self) -> None:
        """At a start, before a session is taken up: notice it. Raises NodeUnavailable and the ledger's errors."""
        self._restored = self._ledger.last_event(RESTORED)
        try:
            text = self._notes.note(NOTE) or self._notes.note(NOTE_BEFORE) or ""
            noted = Mark.of(text)
            own = self._own(noted)
            if noted is not None and self._lacks(own, noted) and not self._was_dealt_with(text):
                self._write_down(text, noted, own)
                own = self._own(noted)
            if own != noted:
                self._notes.write_note(NOTE, str(own))
        except NodeRefused as error:
            log.error("an older copy of the ledger would not be noticed: %s: %s", error.code, error.message)
            return
        self._mark = own

    def _own(self, noted: Mark | None) -> Mark:
        branch = str(self._restored.detail.get("branch", "")) if self._restored is not None else ""
        is_known = noted is not None and noted.branch == branch and self._knows(noted.refund)
        return Mark(self._ledger.last_receipt_number(), branch, noted.refund if noted is not None and is_known else "")

    def _knows(self, refund: str) -> bool:
        return not refund or self._ledger.outgoing.intent(refund) is not None

    def _lacks(self, own: Mark, noted: Mark) -> bool:
        return noted.branch != own.branch or noted.receipts > own.receipts or not self._knows(noted.refund)

    def _was_dealt_with(self, noted: str) -> bool:
        """This ledger was noticed with this very note: the process died before it could write its own."""
        return self._restored is not None and self._restored.detail.get("noted") == noted

    def _write_down(self, text: str, noted: Mark, own: Mark) -> None:
        without_receipt = [record for record in self._ledger.without_receipt() if record.session.was_paid]
        concerned = [*self._ledger.live_sessions(), *without_receipt, *self._ledger.owed_refunds()]
        session_ids = sorted({record.session.session_id for record in concerned})
        newest = self._ledger.sessions(1)
        detail = {
            "receipts": own.receipts,
            "receipts_noted": noted.receipts,
            "sessions": len(session_ids),
            "branch": secrets.token_hex(8),
            "noted": text,
            "newest_opened_at": newest[0].opened_at if newest else 0,
        }
        with self._ledger.unit():
            for session_id in session_ids:
                self._ledger.append_event(self._now(), session_id, RESTORED, detail)
            self._ledger.append_event(self._now(), None, RESTORED, detail)
        self._restored = self._ledger.last_event(RESTORED)
        if noted.branch != own.branch:
            why = "another copy ran after it was made"
        elif noted.receipts > own.receipts:
            why = f"{noted.receipts - own.receipts} receipt(s) were signed after it was made"
        else:
            why = "a refund was sent after it was made"
        log.error(
            "the ledger is an older copy: %s; %d session(s) that it takes for unfinished are ended, and refunds of "
            "sessions that it knows wait for wattline-resolve",
            why,
            len(session_ids),
        )

    def note(self, number: int) -> None:
        """The receipt of this number is in the ledger, and nobody has been told of it yet. Raises NodeUnavailable."""
        with self._lock:
            if self._mark is None or number <= self._mark.receipts:
                return
            mark = replace(self._mark, receipts=number)
            try:
                self._notes.write_note(NOTE, str(mark))
            except NodeRefused as error:
                log.error("receipt %d is not noted by the node: %s: %s", number, error.code, error.message)
            self._mark = mark

    def add_refund(self, intent: Intent) -> None:
        """Write the intent down and note it, in this order: a note that the ledger does not know means that it is an
        older copy. Then, and only then, it may be handed to the node. Raises NodeUnavailable, NodeRefused and the
        ledger's errors; then it has failed in the ledger, or is never sent."""
        with self._lock:  # one after the other: a copy that has the refund noted last has all before it
            self._ledger.outgoing.add(intent)
            try:
                self._note_refund(intent.payment_hash)
            except WattlineError as error:
                self._ledger.outgoing.fail(intent.payment_hash, f"{error.code}: it could not be noted", self._now())
                raise

    def _note_refund(self, payment_hash: str) -> None:
        try:
            if self._mark is None:
                raise NodeRefused("note_unknown", "what was noted could not be read when wattline started")
            mark = replace(self._mark, refund=payment_hash)
            self._notes.write_note(NOTE, str(mark))
        except NodeRefused as error:
            if self._forgets_sent_after_s() is not None:
                raise
            log.error("refund %s is not noted by the node: %s: %s", payment_hash, error.code, error.message)
        else:
            self._mark = mark

    @property
    def noticed_at(self) -> int | None:
        """When it was noticed last, Unix seconds; None when it never was."""
        return self._restored.at if self._restored is not None else None

    def concerns(self, session_id: str) -> bool:
        """Whether the session may have ended, and have a receipt, of which this ledger knows nothing."""
        return self._restored is not None and self._ledger.last_event(RESTORED, session_id) is not None

    def holds(self, purpose: Purpose, record: SessionRecord) -> bool:
        """Whether nothing is sent back for this purpose until the operator has said so: for what the copy took for
        unfinished; and what has come too late for any session that it knew, since the journal tells of that again."""
        if self._restored is None:
            return False
        session_id = record.session.session_id
        noticed = [self._ledger.last_event(RESTORED, session_id)]
        if purpose is Purpose.ORPHAN_REFUND and record.opened_at <= self._known_until:
            noticed.append(self._restored)
        number = max((event.number for event in noticed if event is not None), default=None)
        if number is None:
            return False
        resolved = self._ledger.last_event(RESOLVED, session_id)
        return resolved is None or resolved.number < number or resolved.detail.get("outcome") == KEPT

    def held(self) -> Sequence[str]:
        """The session of each refund that is held, one for each."""
        if self._restored is None:
            return []
        held = [
            record.session.session_id for record in self._ledger.owed_refunds() if self.holds(Purpose.REFUND, record)
        ]
        for orphan in self._ledger.orphans_to_return():
            record = self._ledger.session(orphan.session_id)
            if record is not None and self.holds(Purpose.ORPHAN_REFUND, record):
                held.append(orphan.session_id)
        return held

    @property
    def _known_until(self) -> int:
        """No session of the copy was opened later. By its own dates: the clock may have been set back since."""
        assert self._restored is not None, "there is a copy"
        return int(self._restored.detail.get("newest_opened_at", self._restored.at))

    def sent_before(
        self, purpose: Purpose, record: SessionRecord, sequence: int, budget_msat: int
    ) -> RefundSent | RefundKept | RefundOwed | None:
        """What the node has sent back of this, though the ledger knows nothing of it: written down now, so that it is
        not sent again. None when it sent nothing; RefundOwed while it is under way; RefundKept when it was sent, but
        ``budget_msat`` has no room for it. Raises NodeUnavailable, NodeRefused and the ledger's errors."""
        label = format_record(record.session.session_id, sequence)
        found = self._by_label(record.opened_at - CLOCK_MARGIN_S).get(label)
        if found is None:
            return None
        sent = found.sent
        if sent.status is SendStatus.PENDING:
            with self._listing:
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
        with self._listing:
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


class NotedRefunds:
    """The intents of the socket's payer (:class:`wattline.core.payer.IntentStore`): each is noted before its payment
    is handed to the node."""

    def __init__(self, outgoing: Outgoing, copy: OlderCopy) -> None:
        self._outgoing = outgoing
        self._copy = copy

    def add(self, intent: Intent) -> None:
        self._copy.add_refund(intent)

    def complete(self, payment_hash: str, amount_sent_msat: int, at: int) -> None:
        self._outgoing.complete(payment_hash, amount_sent_msat, at)

    def fail(self, payment_hash: str, failure: str, at: int) -> None:
        self._outgoing.fail(payment_hash, failure, at)

    def pending(self) -> Sequence[Intent]:
        return self._outgoing.pending()
