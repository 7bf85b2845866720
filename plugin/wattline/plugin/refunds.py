"""What goes back to cables by Lightning: unused credit, refunds that are owed, payments that came too late. Each once,
ever: the payer's durable intents see to that.

The final statements, signed by the node key and kept.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from wattline.core.aggregate import AggregateStatus
from wattline.core.clock import Clock
from wattline.core.errors import RetryError, StopError
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.outgoing import Intent, IntentStatus, Purpose
from wattline.core.ledger.payment import ORPHAN_REFUNDED, Booking
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.lightning.node import NodeRefused, NodeUnavailable, SendStatus, Signer, sign
from wattline.core.payer import FeeTooHigh, Payer
from wattline.core.record import format_record
from wattline.core.session.event import RefundKept, RefundOwed, RefundSent, WriteReceipt
from wattline.core.session.machine import step
from wattline.plugin.limits import CountedLog
from wattline.plugin.messages import receipt_message
from wattline.plugin.older_copy import OlderCopy
from wattline.plugin.sessions import UNPAID_KEPT
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)

REFUND_TIMEOUT_S = 10.0
"""How long a cable may take to accept its refund; then it is owed, and the outlet is free for others."""
MOST_RETRY_S = 3600.0
"""How long a refund that cannot be sent waits at the most until it is tried again."""


class Refunds:
    """Thread-safe; what could not be sent is tried again by a thread of its own."""

    def __init__(
        self,
        payer: Payer,
        ledger: Ledger,
        receipts: Receipts,
        copy: OlderCopy,
        retry_s: float,
        clock: Clock,
        lines: CountedLog,
    ) -> None:
        self._payer = payer
        self._ledger = ledger
        self._receipts = receipts
        self._copy = copy
        self._retry_s = retry_s
        self._clock = clock
        self._lines = lines
        self._settling = threading.Lock()
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

    def waits_for_chain(self, session_id: str) -> bool:
        """Something of the session is to be taken on the chain, and is not final there."""
        aggregate = self._ledger.aggregate(session_id)
        return (
            aggregate is not None and aggregate.status.is_live and self._ledger.newest_version(session_id) is not None
        )

    def send_unused(self, record: SessionRecord) -> RefundSent | RefundKept | None:
        """What was not used, without what was lost: the chain has spoken its last word. None when it cannot be sent
        now."""
        session = record.session
        aggregate = self._ledger.aggregate(session.session_id)
        left_msat = session.account.balance_msat - (aggregate.lost_msat if aggregate is not None else 0)
        if left_msat < session.terms.min_refund_msat:
            return RefundKept()
        return self._pay_back(Purpose.REFUND, record, REFUND_SEQUENCE, left_msat)

    def settle(self, session_id: str, event: RefundSent | RefundKept) -> None:
        """A refund that was owed has been sent after all, or turned out to be less than its way costs."""
        with self._settling:
            record = self._ledger.session(session_id)
            if record is None:
                return
            session, effects = step(record.session, event, self._clock.monotonic_ms())
            record = replace(record, session=session)
            self._ledger.save_session(record)
        if any(isinstance(effect, WriteReceipt) for effect in effects):
            self._receipts.issue(record)

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
        now = self._clock.monotonic()
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
        if self.waits_for_chain(session.session_id):
            return  # not before the chain has paid for it
        sent = self.send_unused(record)
        if sent is not None:
            self.settle(session.session_id, sent)

    def _refund_orphan(self, orphan: Booking) -> None:
        record = self._ledger.session(orphan.session_id)
        if record is None:
            return  # nobody to give it back to
        # What has no index in the journal is told from others by its hash.
        sequence = orphan.pay_index or int(orphan.payment_hash[:15], 16)
        sent = self._pay_back(Purpose.ORPHAN_REFUND, record, sequence, orphan.amount_msat)
        if isinstance(sent, RefundSent):
            self._ledger.append_event(
                self._clock.now_s(),
                orphan.session_id,
                ORPHAN_REFUNDED,
                {"payment_hash": orphan.payment_hash, "amount_msat": sent.amount_msat, "fee_msat": sent.fee_msat},
            )


REFUND_SEQUENCE = 0
"""A session has one refund; its record carries this number (a cable's own payments begin with 1)."""


class Receipts:
    """Issues receipts of CLOSED sessions; the newest one stands."""

    def __init__(
        self,
        ledger: Ledger,
        signer: Signer,
        node_id: str,
        copy: OlderCopy,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._copy = copy
        self._signer = signer
        self._node_id = node_id
        self._now = clock.now_s
        self._lock = threading.Lock()
        self._unpaid: OrderedDict[str, pb.SignedReceipt] = OrderedDict()
        """Of sessions that were never paid for, by id: the ledger keeps none of them, and each is signed once."""

    def issue(self, record: SessionRecord) -> pb.SignedReceipt:
        """A receipt of the session as it stands in ``record``. Raises NodeUnavailable; then it is issued when somebody
        asks for it."""
        session_id = record.session.session_id
        content = self._message(record).SerializeToString(deterministic=True)
        if record.session.was_paid:
            signature = sign(self._signer, "receipt", content)
            self._copy.note(self._ledger.save_receipt(session_id, content, signature, self._now()))
            return pb.SignedReceipt(receipt=content, signature=signature)
        with self._lock:
            kept = self._unpaid.get(session_id)
        if kept is not None and kept.receipt == content:
            return kept
        # What is signed just now for two who ask at once is the same; the node is asked while nobody waits for a lock.
        signed = pb.SignedReceipt(receipt=content, signature=sign(self._signer, "receipt", content))
        with self._lock:
            self._unpaid[session_id] = signed
            while len(self._unpaid) > UNPAID_KEPT:
                self._unpaid.popitem(last=False)
        return signed

    def newest(self, record: SessionRecord) -> pb.SignedReceipt:
        """The one issued last; issued now when the plugin died before it could, or before it could say what became of
        a refund that was owed. Raises NodeUnavailable."""
        saved = self._ledger.receipt(record.session.session_id)
        if saved is None:
            return self.issue(record)
        # As it stands now: ``record`` may have been read before an owed refund was sent.
        now = self._ledger.session(record.session.session_id) or record
        self._copy.note(self._ledger.last_receipt_number())  # lightningd may have been away when it was issued
        if pb.Receipt.FromString(saved.content).refund_status != self._message(now).refund_status:
            return self.issue(now)
        return pb.SignedReceipt(receipt=saved.content, signature=saved.signature)

    def _message(self, record: SessionRecord) -> pb.Receipt:
        session_id = record.session.session_id
        refund = self._ledger.outgoing.of(Purpose.REFUND, session_id, REFUND_SEQUENCE)
        aggregate = self._ledger.aggregate(session_id)
        number = aggregate.chosen_number if aggregate is not None else None
        if aggregate is not None and aggregate.status is AggregateStatus.OPEN:
            # Not decided yet, for want of the chain: so much it may be.
            newest = self._ledger.newest_version(session_id)
            number = newest.number if newest is not None else None
        return receipt_message(
            record,
            self._node_id,
            refund.payment_hash if refund else "",
            self._ledger.onchain_credited_msat(session_id),
            self._ledger.version(session_id, number) if number is not None else None,
            is_from_older_copy=self._copy.concerns(session_id),
        )
