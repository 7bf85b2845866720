"""The end of a session: payments in flight come in, the journal is read, unused credit goes back, a receipt is signed.

Everything here may be repeated: after a crash the same steps are taken again, and the payer's durable intents see to it
that a refund is paid once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.errors import RetryError, StopError
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.outgoing import Intent, IntentStatus, Purpose
from wattline.core.ledger.payment import ORPHAN_REFUNDED, Booking
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.lightning.node import NodeRefused, NodeUnavailable, SendStatus
from wattline.core.payer import FeeTooHigh, Payer
from wattline.core.record import format_record
from wattline.core.session.event import CreditReturned, Event, RefundKept, RefundOwed, RefundSent
from wattline.core.session.session import Session
from wattline.core.session.state import State
from wattline.plugin.journal import JournalReader
from wattline.plugin.limits import CountedLog
from wattline.plugin.older_copy import OlderCopy
from wattline.plugin.receipts import REFUND_SEQUENCE
from wattline.plugin.reservations import Reservations

log = logging.getLogger(__name__)

RETRY_S = 1.0
LOOK_S = 0.02
"""So long one look at what is in flight for an unpaid session may take."""
REFUND_TIMEOUT_S = 10.0
"""How long a cable may take to accept its refund; then it is owed, and the outlet is free for others."""
MOST_RETRY_S = 3600.0
"""How long a refund that cannot be sent waits at the most until it is tried again."""


class Sessions(Protocol):
    """The sessions, as far as their end goes."""

    def close_books(self, session_id: str) -> bool:
        """Relay confirmed open and the last energy charged? Then BooksClosed happens; False: try again."""

    def post(self, session_id: str, event: Event) -> bool: ...

    def record(self, session_id: str) -> SessionRecord | None: ...

    def save(self, session_id: str) -> None:
        """Write a live session to the ledger now."""

    def settle_owed(self, session_id: str, event: RefundSent | RefundKept) -> None:
        """A refund that was owed has been sent after all, or turned out to be less than its way costs."""

    def finish(self, session: Session) -> None:
        """Write and sign the receipt, tell the cable, free the outlet."""


class OnchainDesk(Protocol):
    """What is taken on the chain (:class:`wattline.plugin.onchain.payments.Onchain`)."""

    def close(self, session_id: str) -> None:
        """Credit nothing any more. Raises RetryError while it is not known what there is to credit."""

    def give_back(self, session: Session) -> int:
        """How much of the credit is never taken, msat."""

    def is_owed(self, session: Session) -> bool:
        """Something is to be taken on the chain, and not final there."""

    def lost_msat(self, session_id: str) -> int:
        """Of what was credited, what will never come."""

    def conclude(self, session: Session) -> None:
        """Decide what is broadcast."""

    def forget(self, session_id: str) -> None: ...


class NothingOnchain:
    """The desk of a socket that takes nothing on the chain (any more): what the ledger knows of earlier sessions."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def close(self, session_id: str) -> None:
        pass

    def give_back(self, session: Session) -> int:
        return 0

    def is_owed(self, session: Session) -> bool:
        aggregate = self._ledger.aggregate(session.session_id)
        return aggregate is not None and aggregate.status.is_live

    def lost_msat(self, session_id: str) -> int:
        aggregate = self._ledger.aggregate(session_id)
        return aggregate.lost_msat if aggregate is not None else 0

    def conclude(self, session: Session) -> None:
        pass

    def forget(self, session_id: str) -> None:
        pass


class SessionCloser:
    """Ends sessions, a few at a time, and retries what could not be done."""

    def __init__(
        self,
        sessions: Sessions,
        payer: Payer,
        ledger: Ledger,
        reservations: Reservations,
        bookkeeper: JournalReader,
        drain_timeout_s: float,
        retry_s: float,
        copy: OlderCopy,
        onchain: OnchainDesk | None = None,
    ) -> None:
        self._sessions = sessions
        self._payer = payer
        self._ledger = ledger
        self._reservations = reservations
        self._bookkeeper = bookkeeper
        self._drain_timeout_s = drain_timeout_s
        self._retry_s = retry_s
        self._copy = copy
        self._onchain = onchain or NothingOnchain(ledger)
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="settlement")
        self._unpaid = ThreadPoolExecutor(1, thread_name_prefix="unpaid")
        """Sessions that were never paid for: however many end, they keep nobody waiting who has paid."""
        self._lines = CountedLog()
        self._stopping = threading.Event()
        self._refunding = threading.Condition()
        self._orders: set[tuple[Purpose, str, int]] = set()
        """Being paid back just now, each by one thread."""
        self._retries: dict[str, tuple[float, float]] = {}
        """When what is still to be paid back is tried next, and how long it waits then; monotonic, in s."""
        self._thread = threading.Thread(target=self._run, name="refunds owed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._unpaid.shutdown(wait=False, cancel_futures=True)

    def settle(self, session: Session) -> None:
        session_id = session.session_id
        if session.was_paid:
            self._submit(lambda: self._close_books(session_id))
        else:
            self._submit(
                partial(self._close_unpaid, session_id, time.monotonic() + self._drain_timeout_s), is_paid=False
            )

    def refund(self, session: Session) -> None:
        self._submit(lambda: self._refund(session.session_id))

    def receipt(self, session: Session) -> None:
        self._submit(lambda: self._finish(session), is_paid=session.was_paid)

    def _submit(self, work: Callable[[], None], *, is_paid: bool = True) -> None:
        def job() -> None:
            while not self._stopping.is_set():
                try:
                    work()
                except RetryError as error:
                    log.warning("a settlement waits: %s", error)
                    self._stopping.wait(RETRY_S)
                except Exception:
                    log.exception("a settlement failed; it is taken up again")
                    self._stopping.wait(RETRY_S * 5)
                else:
                    return

        if not self._stopping.is_set():
            (self._pool if is_paid else self._unpaid).submit(job)

    def _close_unpaid(self, session_id: str, until_s: float) -> None:
        """The same for one that was not paid for when it ended: a first payment may be on its way until ``until_s``,
        monotonic, and meanwhile it is the others' turn."""
        if not self._reservations.wait_drained(session_id, LOOK_S):
            if time.monotonic() < until_s:
                self._submit(partial(self._close_unpaid, session_id, until_s), is_paid=False)
                return
            self._reservations.forget(session_id)
        self._close_books(session_id)

    def _close_books(self, session_id: str) -> None:
        """Everything that was paid for the session is in, and its last energy is charged."""
        # That it ends is known before anything is decided about it: no restart lets it deliver again.
        self._sessions.save(session_id)
        self._onchain.close(session_id)
        if not self._reservations.wait_drained(session_id, self._drain_timeout_s):
            self._lines.info("drain", "session %s: payments in flight did not come in; the journal decides", session_id)
        self._bookkeeper.read_to_end()
        self._reservations.forget(session_id)
        while not self._stopping.is_set() and not self._sessions.close_books(session_id):
            self._stopping.wait(0.1)
            self._bookkeeper.read_to_end()

    def _finish(self, session: Session) -> None:
        # Which transaction is broadcast is written down before the receipt says so.
        self._onchain.conclude(session)
        self._sessions.finish(session)
        self._onchain.forget(session.session_id)

    def _refund(self, session_id: str) -> None:
        """What was never taken on the chain first; the rest by Lightning."""
        record = self._sessions.record(session_id)
        if record is None:
            return
        self._sessions.save(session_id)
        returned_msat = self._onchain.give_back(record.session)
        if returned_msat:
            self._sessions.post(session_id, CreditReturned(returned_msat))
            self._sessions.save(session_id)
            record = self._sessions.record(session_id)
            if record is None or record.session.state is State.CLOSED:
                return
        unused_msat = record.session.account.balance_msat
        if unused_msat < record.session.terms.min_refund_msat:
            self._sessions.post(session_id, RefundKept())
            return
        if self._onchain.is_owed(record.session):
            # Lightning money must not go out for what the chain may yet take away; less than a sat is its rounding.
            self._sessions.post(session_id, RefundOwed() if unused_msat >= MSAT_PER_SAT else RefundKept())
            return
        self._sessions.post(session_id, self._refund_unused(record) or RefundOwed())

    def _refund_unused(self, record: SessionRecord) -> RefundSent | RefundKept | None:
        """What was not used, without what was lost: the chain has spoken its last word. None when it cannot be sent
        now."""
        session = record.session
        left_msat = session.account.balance_msat - self._onchain.lost_msat(session.session_id)
        if left_msat < session.terms.min_refund_msat:
            return RefundKept()
        return self._pay_back(Purpose.REFUND, record, REFUND_SEQUENCE, left_msat)

    def _pay_back(
        self, purpose: Purpose, record: SessionRecord, sequence: int, budget_msat: int
    ) -> RefundSent | RefundKept | None:
        """Amount and fee within ``budget_msat``; RefundKept when the fee alone would take all of it; None when it
        cannot be sent now (or is in doubt, or held). Paid once, ever: also where the ledger is an older copy, which
        knows nothing of it."""
        session_id, destination = record.session.session_id, record.cable_node_id
        with self._alone(purpose, session_id, sequence):
            earlier = self._ledger.outgoing.of(purpose, session_id, sequence)
            if earlier is not None and earlier.status is IntentStatus.PENDING:
                self._payer.resolve(resend=False)
                earlier = self._ledger.outgoing.of(purpose, session_id, sequence)
            if earlier is not None and earlier.status is IntentStatus.COMPLETE:
                return RefundSent(earlier.amount_msat, earlier.amount_sent_msat - earlier.amount_msat)
            if earlier is not None and earlier.status is IntentStatus.PENDING:
                return None
            try:
                sent = self._copy.sent_before(purpose, record, sequence, budget_msat)
            except NodeRefused as error:
                log.error("session %s: the node does not say what it has sent: %s", session_id, error.message)
                return None
            if sent is not None:
                return sent if not isinstance(sent, RefundOwed) else None
            if self._copy.holds(purpose, record):
                self._lines.info(
                    f"held {session_id}",
                    "session %s: %s of up to %d msat is held until wattline-resolve says what becomes of it",
                    session_id,
                    purpose,
                    budget_msat,
                )
                return None
            fee_msat = 0
            for _ in range(3):
                amount_msat = budget_msat - fee_msat
                if not destination:
                    return None
                if amount_msat <= 0:
                    return RefundKept()
                intent = Intent(
                    purpose=purpose,
                    session_id=session_id,
                    sequence=sequence,
                    destination=destination,
                    amount_msat=amount_msat,
                    maxfee_msat=fee_msat,
                    record=format_record(session_id, sequence),
                    label=format_record(session_id, sequence),
                )
                try:
                    outcome = self._payer.pay(intent, REFUND_TIMEOUT_S)
                except FeeTooHigh as error:
                    fee_msat = error.fee_msat + error.fee_msat // 10 + 1
                    continue
                except NodeUnavailable:
                    raise
                except (RetryError, NodeRefused) as error:
                    log.info(
                        "session %s: %s of %d msat cannot be sent now: %s", session_id, purpose, amount_msat, error
                    )
                    return None
                if outcome.status is SendStatus.COMPLETE:
                    return RefundSent(outcome.amount_msat, outcome.amount_sent_msat - outcome.amount_msat)
                log.info(
                    "session %s: %s of %d msat did not arrive: %s", session_id, purpose, amount_msat, outcome.failure
                )
                return None
            return None

    @contextmanager
    def _alone(self, purpose: Purpose, session_id: str, sequence: int) -> Iterator[None]:
        """One thread at a time for one order; nobody waits for a refund that another cable does not take."""
        order = (purpose, session_id, sequence)
        with self._refunding:
            self._refunding.wait_for(lambda: order not in self._orders)
            self._orders.add(order)
        try:
            yield
        finally:
            with self._refunding:
                self._orders.discard(order)
                self._refunding.notify_all()

    def _run(self) -> None:
        """Refunds owed and payments for sessions that were over, until all are sent; each that cannot be sent waits
        twice as long as before, up to MOST_RETRY_S: it may be less than any channel carries."""
        while not self._stopping.is_set():
            try:
                self.retry(self._is_due)
            except RetryError as error:
                log.warning("refunds wait: %s", error)
            except Exception:
                log.exception("refunds could not be tried")
            self._stopping.wait(self._retry_s)

    def _is_due(self, key: str) -> bool:
        now = time.monotonic()
        due, wait_s = self._retries.get(key, (now, self._retry_s))
        if now < due:
            return False
        self._retries[key] = (now + wait_s, min(wait_s * 2, max(MOST_RETRY_S, self._retry_s)))
        return True

    def hurry(self, key: str) -> None:
        """Try to pay that back at the next turn, however long it was to wait: by session or payment_hash."""
        self._retries.pop(key, None)

    def retry(self, is_due: Callable[[str], bool] = lambda _: True) -> None:
        """Try once whatever is still to be paid back and ``is_due``, by session or payment_hash."""
        owed, orphans = self._ledger.owed_refunds(), self._ledger.orphans_to_return()
        waiting = {*(record.session.session_id for record in owed), *(orphan.payment_hash for orphan in orphans)}
        self._retries = {key: due for key, due in self._retries.items() if key in waiting}
        for record in owed:
            if is_due(record.session.session_id):
                self._on_its_own(partial(self._refund_owed, record))
        for orphan in orphans:
            if is_due(orphan.payment_hash):
                self._on_its_own(partial(self._refund_orphan, orphan))

    @staticmethod
    def _on_its_own(work: Callable[[], None]) -> None:
        """What is wrong with one refund must not keep the others."""
        try:
            work()
        except StopError as error:
            log.error("a refund cannot be made: %s: %s", error.code, error.message)

    def _refund_owed(self, record: SessionRecord) -> None:
        session = record.session
        if self._onchain.is_owed(session):
            return  # not before the chain has paid for it
        sent = self._refund_unused(record)
        if sent is not None:
            self._sessions.settle_owed(session.session_id, sent)

    def _refund_orphan(self, orphan: Booking) -> None:
        record = self._sessions.record(orphan.session_id)
        if record is None:
            return  # nobody to give it back to
        # What has no index in the journal is told from others by its hash.
        sequence = orphan.pay_index or int(orphan.payment_hash[:15], 16)
        sent = self._pay_back(Purpose.ORPHAN_REFUND, record, sequence, orphan.amount_msat)
        if isinstance(sent, RefundSent):
            self._ledger.append_event(
                int(time.time()),
                orphan.session_id,
                ORPHAN_REFUNDED,
                {"payment_hash": orphan.payment_hash, "amount_msat": sent.amount_msat, "fee_msat": sent.fee_msat},
            )
