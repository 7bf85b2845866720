"""The end of a session: payments in flight come in, the journal is read, unused credit goes back, a receipt is signed.

Everything here may be repeated: after a crash the same steps are taken again, and the payer's durable intents see to it
that a refund is paid once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.clock import Clock
from wattline.core.errors import RetryError
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.session.event import CreditReturned, Effect, Refund, RefundKept, RefundOwed, Settle, WriteReceipt
from wattline.core.session.session import Session
from wattline.core.session.state import State, StopReason
from wattline.plugin.crediting import OUTLET_BUSY
from wattline.plugin.journal import JournalReader
from wattline.plugin.limits import CountedLog
from wattline.plugin.onchain.input_watch import InputWatch
from wattline.plugin.refunds import Receipts, Refunds
from wattline.plugin.reservations import Reservations
from wattline.plugin.sessions import Sessions
from wattline.plugin.statements import Statements
from wattline.plugin.streams import refusal
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)

RETRY_S = 1.0
LOOK_S = 0.02
"""So long one look at what is in flight for an unpaid session may take."""
_DISPLACED = {
    StopReason.OUTLET_TAKEN: (OUTLET_BUSY, "another cable has paid for the outlet first"),
    StopReason.CROWDED_OUT: ("too_many_opens", "too many sessions that have paid nothing are open; try again"),
}
"""What a cable is told whose session ended for no fault of its own; nothing was paid."""


class SessionCloser:
    """Ends sessions, a few at a time, and retries what could not be done."""

    def __init__(
        self,
        sessions: Sessions,
        reservations: Reservations,
        journal: JournalReader,
        refunds: Refunds,
        receipts: Receipts,
        statements: Statements,
        onchain: InputWatch | None,
        drain_timeout_s: float,
        clock: Clock,
    ) -> None:
        """``onchain``: None where nothing is taken on the chain."""
        self._sessions = sessions
        self._reservations = reservations
        self._journal = journal
        self._refunds = refunds
        self._receipts = receipts
        self._statements = statements
        self._onchain = onchain
        self._drain_timeout_s = drain_timeout_s
        self._clock = clock
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="closing")
        self._unpaid = ThreadPoolExecutor(1, thread_name_prefix="unpaid")
        """Sessions that were never paid for: however many end, they keep nobody waiting who has paid."""
        self._lines = CountedLog(clock.monotonic)
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._unpaid.shutdown(wait=False, cancel_futures=True)

    def carry_out(self, session: Session, effect: Effect) -> None:
        """What a step of the session asks for, soon; returns at once."""
        session_id = session.session_id
        match effect:
            case Settle() if session.was_paid:
                self._submit(lambda: self._close_books(session_id))
            case Settle():
                until_s = self._clock.monotonic() + self._drain_timeout_s
                self._submit(partial(self._close_unpaid, session_id, until_s), is_paid=False)
            case Refund():
                self._submit(lambda: self._refund(session_id))
            case WriteReceipt():
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
            if self._clock.monotonic() < until_s:
                self._submit(partial(self._close_unpaid, session_id, until_s), is_paid=False)
                return
            self._reservations.forget(session_id)
        self._close_books(session_id)

    def _close_books(self, session_id: str) -> None:
        """Everything that was paid for the session is in, and its last energy is charged."""
        # That it ends is known before anything is decided about it: no restart lets it deliver again.
        self._sessions.save(session_id)
        if self._onchain is not None:
            self._onchain.decision.is_put_off(session_id)  # for a while it is waited for
            self._onchain.intake.close(session_id)
        if not self._reservations.wait_drained(session_id, self._drain_timeout_s):
            self._lines.info("drain", "session %s: payments in flight did not come in; the journal decides", session_id)
        self._journal.read_to_end()
        self._reservations.forget(session_id)
        while not self._stopping.is_set() and not self._sessions.close_books(session_id):
            self._stopping.wait(0.1)
            self._journal.read_to_end()

    def _refund(self, session_id: str) -> None:
        """What was never taken on the chain first; the rest by Lightning."""
        record = self._sessions.record(session_id)
        if record is None:
            return
        self._sessions.save(session_id)
        returned_msat = self._onchain.decision.give_back(record.session) if self._onchain is not None else 0
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
        if self._refunds.waits_for_chain(session_id):
            # Lightning money must not go out for what the chain may yet take away; less than a sat is its rounding.
            self._sessions.post(session_id, RefundOwed() if unused_msat >= MSAT_PER_SAT else RefundKept())
            return
        self._sessions.post(session_id, self._refunds.send_unused(record) or RefundOwed())

    def _finish(self, session: Session) -> None:
        session_id = session.session_id
        if self._onchain is not None:
            # Which transaction is broadcast is written down before the receipt says so.
            self._onchain.decision.conclude(session)
            self._onchain.wake()
        record = self._sessions.write_over(session)
        if record is not None:
            last = self._last_message(record)
            if session.was_paid:
                log.info("session %s closed: %s", session_id, session.stop_reason)
            self._sessions.release(record)
            self._statements.finish(session_id, last)
        if self._onchain is not None:
            self._onchain.intake.forget(session_id)

    def _last_message(self, record: SessionRecord) -> pb.ChargeResponse | None:
        """The receipt, as a rule. None when nobody is there to hear of a session that was never paid for: who asks for
        that receipt later gets it."""
        session = record.session
        if not session.was_paid and session.stop_reason in _DISPLACED:
            return refusal(*_DISPLACED[session.stop_reason])
        if not session.was_paid and not self._statements.has_reader(session.session_id):
            return None
        return pb.ChargeResponse(receipt=self._receipts.issue(record))
