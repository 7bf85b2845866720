"""The journal's reader: lightningd's paid invoices become credits of sessions and rows of the ledger.

lightningd's own database is the journal; the ledger is a view of it with a cursor, booked in one unit of work. Whatever
was received while this plugin was not looking is found here. What lightningd has told of and the journal does not show
(somebody deleted the invoice: autoclean, ``delinvoice``) was received all the same: it is booked as it was told.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattline.core.clock import Clock
from wattline.core.errors import RetryError
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.payment import Booking, Cursor, Kind
from wattline.core.lightning.node import Journal, PaidInvoice
from wattline.core.record import Record, RecordError, parse_record
from wattline.plugin.hook import DESCRIPTION_PREFIX

log = logging.getLogger(__name__)

BATCH = 500
MISSING = "invoices_missing"
UNLISTED = "payments_unlisted"
LAG_S = 2.0
"""What lightningd told of so long before the journal was read to its end would have been in it."""
LABEL_PREFIX = "keysend-"
"""Core Lightning's keysend plugin labels the invoices that it makes so; nobody else's description is believed."""


@dataclass(frozen=True, slots=True)
class Told:
    """A payment that lightningd has told of (``invoice_payment``)."""

    session_id: str
    amount_msat: int
    at: float
    """Monotonic, in s."""


class JournalReader:
    """Reads the journal to its end, again and again."""

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        take: Callable[[str, str, int], bool],
        booked: Callable[[Sequence[str]], None],
        interval_s: float,
        clock: Clock,
    ) -> None:
        """``take`` credits a session (its id, payment_hash, msat), once; False when it cannot use the payment any more
        (or never existed). ``booked``: the ledger holds these payment_hashes now."""
        self._journal = journal
        self._ledger = ledger
        self._take = take
        self._booked = booked
        self._interval_s = interval_s
        self._now = clock.now_s
        self._clock = clock.monotonic
        self._told: dict[str, Told] = {}
        """By payment_hash, until the ledger holds it."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    @property
    def missing_invoices(self) -> int:
        """Deleted invoices noticed so far (holes in pay_index): the journal is not complete."""
        noticed = self._ledger.last_event(MISSING)
        return int(noticed.detail["total"]) if noticed is not None else 0

    @property
    def unlisted_payments(self) -> int:
        """Booked so far by what lightningd told, their invoices having been deleted at once."""
        noticed = self._ledger.last_event(UNLISTED)
        return int(noticed.detail["total"]) if noticed is not None else 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=5)

    def wake(self) -> None:
        """Book soon: something was paid."""
        self._wake.set()

    def told(self, session_id: str, payment_hash: str, amount_msat: int) -> None:
        """lightningd has told of a payment for this session: it is received, whether or not the journal will show it.
        At once; may be told again."""
        self._told.setdefault(payment_hash, Told(session_id, amount_msat, self._clock()))

    def read_to_end(self) -> int:
        """Book everything that is paid by now; the number of rows booked. Raises NodeUnavailable."""
        total = 0
        with self._lock:
            began = self._clock()
            while True:
                cursor = self._ledger.cursor()
                rows = self._journal.paid_since(cursor.updated_index, BATCH)
                if not rows:
                    return total + self._book_unlisted(began - LAG_S)
                total += self._book(rows, cursor)

    def _book(self, rows: Sequence[PaidInvoice], cursor: Cursor) -> int:
        bookings = []
        pay_index, missing = cursor.pay_index, 0
        for row in rows:
            if not row.is_paid:
                continue
            if row.pay_index is not None:
                missing += _hole(pay_index, row.pay_index)
                pay_index = max(pay_index, row.pay_index)
            record = record_of(row)
            if record is None or self._ledger.booked(row.payment_hash) is not None:
                continue
            taken = self._take(record.session_id, row.payment_hash, row.amount_received_msat)
            bookings.append(
                Booking(
                    payment_hash=row.payment_hash,
                    kind=Kind.CREDIT if taken else Kind.ORPHAN,
                    session_id=record.session_id,
                    sequence=record.sequence,
                    amount_msat=row.amount_received_msat,
                    pay_index=row.pay_index or 0,
                    updated_index=row.updated_index,
                    paid_at=row.paid_at,
                )
            )
            if not taken:
                log.warning(
                    "%d msat were paid for session %s, which cannot use them: to be refunded",
                    row.amount_received_msat,
                    record.session_id,
                )
        with self._ledger.unit():
            self._ledger.book(bookings, Cursor(updated_index=rows[-1].updated_index, pay_index=pay_index))
            if missing:
                total = self.missing_invoices + missing
                self._ledger.append_event(rows[-1].paid_at, None, MISSING, {"count": missing, "total": total})
        for row in rows:
            self._told.pop(row.payment_hash, None)
        self._booked([booking.payment_hash for booking in bookings])
        return len(bookings)

    def _book_unlisted(self, until: float) -> int:
        """What was told of by ``until`` and is not in the journal, which has been read to its end since."""
        due = {payment_hash: told for payment_hash, told in list(self._told.items()) if told.at <= until}
        bookings = [
            Booking(
                payment_hash=payment_hash,
                kind=Kind.CREDIT if self._take(told.session_id, payment_hash, told.amount_msat) else Kind.ORPHAN,
                session_id=told.session_id,
                sequence=0,
                amount_msat=told.amount_msat,
                pay_index=0,
                updated_index=0,
                paid_at=self._now(),
            )
            for payment_hash, told in due.items()
            if self._ledger.booked(payment_hash) is None
        ]
        if bookings:
            log.error(
                "the invoices of %d payment(s), %d msat, were deleted at once; they are booked as lightningd told of "
                "them: turn off autoclean of paid invoices, or let it wait longer",
                len(bookings),
                sum(booking.amount_msat for booking in bookings),
            )
            with self._ledger.unit():
                self._ledger.book(bookings, Cursor())
                total = self.unlisted_payments + len(bookings)
                self._ledger.append_event(self._now(), None, UNLISTED, {"count": len(bookings), "total": total})
        for payment_hash in due:
            self._told.pop(payment_hash, None)
        self._booked(list(due))
        return len(bookings)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.read_to_end()
            except RetryError as error:
                log.warning("the journal cannot be booked now: %s", error)
            except Exception:
                log.exception("the journal could not be booked")
            self._wake.clear()
            started = self._clock()
            self._wake.wait(self._interval_s * 5)
            if not self._stopping:
                # Woken by a payment: collect more of them, a write per payment would wear out an SD card.
                threading.Event().wait(max(0.0, self._interval_s - (self._clock() - started)))


def _hole(last: int, now: int) -> int:
    """``pay_index`` counts every payment; a hole means that so many invoices were deleted before they were read."""
    missing = now - last - 1 if last else 0
    if missing > 0:
        log.error(
            "%d paid invoice(s) were deleted before wattline read them (pay_index %d to %d): turn off autoclean of "
            "paid invoices, or let it wait longer",
            missing,
            last + 1,
            now - 1,
        )
    return max(0, missing)


def record_of(row: PaidInvoice) -> Record | None:
    """The session that a paid invoice was for; None when it is not one of ours."""
    if not row.label.startswith(LABEL_PREFIX) or not row.description.startswith(DESCRIPTION_PREFIX):
        return None
    try:
        return parse_record(row.description.removeprefix(DESCRIPTION_PREFIX))
    except RecordError:
        return None
