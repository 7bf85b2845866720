"""The smart socket: what lightningd, the outlets' loops, the settlement and the operator say, each from its own thread,
and what follows from it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from wattline.core.increments import BELOW_MIN_INCREMENT
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.session.event import DeliveryFault, Event, OperatorStopped, RefundKept, RefundSent, WriteReceipt
from wattline.core.session.machine import restored, step
from wattline.core.session.occupancy import Occupancy
from wattline.core.session.session import Session
from wattline.core.session.state import State, StopReason
from wattline.core.tariff import Tariff
from wattline.plugin.hook import Htlc, Refuse
from wattline.plugin.limits import CountedLog
from wattline.plugin.messages import tariff_message
from wattline.plugin.older_copy import OlderCopy
from wattline.plugin.outlet import OutletLoop
from wattline.plugin.outlet_state import OutletView
from wattline.plugin.receipts import Receipts
from wattline.plugin.reservations import Reservations
from wattline.plugin.sessions import CALL_TIMEOUT_S, Sessions
from wattline.plugin.statements import Statements
from wattline.plugin.streams import Streams, refusal
from wattline.plugin.tariffs import PriceList
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)

OUTLET_BUSY = "outlet_busy"
_DISPLACED = {
    StopReason.OUTLET_TAKEN: (OUTLET_BUSY, "another cable has paid for the outlet first"),
    StopReason.CROWDED_OUT: ("too_many_opens", "too many sessions that have paid nothing are open; try again"),
}
"""What a cable is told whose session ended for no fault of its own; nothing was paid."""


class SettlementDesk(Protocol):
    """Ends sessions (:class:`wattline.plugin.closing.SessionCloser`); every call returns at once."""

    def settle(self, session: Session) -> None: ...

    def refund(self, session: Session) -> None: ...

    def receipt(self, session: Session) -> None: ...


class SmartSocket:
    """The seller, behind the reception. Thread-safe: sessions change in their outlet's loop only."""

    def __init__(
        self,
        ledger: Ledger,
        live: Sessions,
        prices: PriceList,
        statements: Statements,
        receipts: Receipts,
        streams: Streams,
        reservations: Reservations,
        ready: threading.Event,
        copy: OlderCopy,
        now: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self._ledger = ledger
        self._live = live
        self._prices = prices
        self._statements = statements
        self._receipts = receipts
        self._streams = streams
        self._reservations = reservations
        self._ready = ready
        self._copy = copy
        self._now = now
        self._outlets: dict[str, OutletLoop] = {}
        self._settlement: SettlementDesk | None = None
        self._settling_owed = threading.Lock()
        self._lines = CountedLog()

    # Composition.

    def furnish(self, outlets: Sequence[OutletLoop], settlement: SettlementDesk) -> None:
        """Hand in the outlets and the settlement, which need this object themselves."""
        self._outlets = {outlet.outlet_id: outlet for outlet in outlets}
        self._settlement = settlement

    @property
    def is_ready(self) -> bool:
        """The journal has been read to its end: sessions may be opened and paid."""
        return self._ready.is_set()

    def views(self) -> list[OutletView]:
        return [outlet.view for outlet in self._outlets.values()]

    def restore(self, record: SessionRecord) -> None:
        """Go on with a session that was live when the plugin ended. Its relay is open and its stream gone. What it was
        credited on the chain is not used before the chain was looked at. One that may be over by now, because the
        ledger is an older copy, ends: the meter has counted for others since, and who paid for what is not known."""
        session_id, now_ms = record.session.session_id, _monotonic_ms()
        is_withheld = self._ledger.onchain_credited_msat(session_id) > 0
        session, effects = restored(record.session, now_ms, is_withheld=is_withheld)
        is_doubtful = session.state is not State.CLOSED and self._copy.concerns(session_id)
        if is_doubtful and session.state.is_live:
            session, ending = step(session, DeliveryFault(StopReason.LEDGER_RESTORED), now_ms)
            effects += ending
        outlet = self._outlets[session.outlet_id]
        self._live.add(replace(record, session=session), outlet, restored=True)
        self._statements.restored(session.session_id)
        outlet.go_on(session, effects, None if is_doubtful else record.chip_uwh).result(CALL_TIMEOUT_S)

    def shut_down(self) -> None:
        """Cables are told to come back; the sessions stay as they are, in the ledger."""
        self._ready.clear()
        self._streams.finish_all(refusal("shutting_down", "the socket is restarting; resume later"))
        self._live.save_changed()

    # What lightningd and the journal tell.

    def refusal(self, session_id: str, amount_msat: int, in_flight_msat: int) -> tuple[str, str] | None:
        """Why a payment cannot be used now (wattline.plugin.hook.CreditDesk); None when it can."""
        if not self.is_ready:
            return "starting", "the socket is starting and does not take payments yet"
        if self._live.unsaved:
            return "ledger_failed", "the socket cannot keep its books and takes no payments"
        outlet = self._live.outlet_of(session_id)
        whole = outlet.view if outlet is not None else None
        view = whole.of(session_id) if whole is not None else None
        if whole is None or view is None or view.session is None:
            return "unknown_session", "no such session is open here"
        session = view.session
        if session.stop_reason is StopReason.OUTLET_TAKEN:
            return OUTLET_BUSY, f"another cable has paid for outlet {view.outlet_id} first"
        if not session.state.is_live:
            return "session_closed", f"the session is {session.state}"
        if view.fault:
            return "outlet_faulted", view.fault
        if not whole.occupancy.may_pay(session_id, self._reservations.is_claiming):
            return OUTLET_BUSY, f"another cable's first payment for outlet {view.outlet_id} is on its way"
        least_msat = self._statements.least_msat(session_id)
        if amount_msat < least_msat:
            return (
                BELOW_MIN_INCREMENT,
                f"{amount_msat} msat are less than the {least_msat} msat that this session was asked for",
            )
        unused_msat = session.account.balance_msat
        cap_msat = session.terms.credit_cap_msat
        if unused_msat + in_flight_msat + amount_msat > cap_msat:
            return (
                "over_credit_cap",
                f"{amount_msat} msat, {unused_msat} unused and {in_flight_msat} in flight exceed the cap of {cap_msat}",
            )
        return None

    def outlet_id_of(self, session_id: str) -> str:
        """See wattline.plugin.hook.CreditDesk."""
        outlet = self._live.outlet_of(session_id)
        return outlet.outlet_id if outlet is not None else ""

    def was_received(self, payment_hash: str) -> bool:
        """See wattline.plugin.hook.CreditDesk."""
        return self._ledger.booked(payment_hash) is not None

    def payment_refused(self, htlc: Htlc, refused: Refuse) -> None:
        """Tell the cable why its payment failed."""
        known = refused.session_id if refused.session_id and self._live.outlet_of(refused.session_id) else ""
        self._lines.info(
            f"payment {refused.code} {known}",
            "payment %s of %d msat refused: %s: %s",
            htlc.payment_hash,
            htlc.amount_msat,
            refused.code,
            refused.message,
        )
        if refused.session_id is not None:
            message = pb.PaymentRefused(
                payment_hash=htlc.payment_hash,
                amount_msat=htlc.amount_msat,
                code=refused.code,
                message=refused.message,
                min_increment_msat=self._statements.least_msat(refused.session_id),
            )
            self._streams.send(refused.session_id, pb.ChargeResponse(payment_refused=message))

    def paid(self, payment_hash: str, amount_msat: int) -> str | None:
        """The fast path: lightningd says that an invoice was paid. The session that it was for, as far as the hook let
        it pass for one."""
        session_id = self._reservations.session_of(payment_hash)
        outlet = self._live.outlet_of(session_id) if session_id is not None else None
        if session_id is not None and outlet is not None:
            self._statements.note_payment(session_id)
            outlet.credit_reserved(session_id, payment_hash, amount_msat)
        return session_id

    def take(self, session_id: str, payment_hash: str, amount_msat: int) -> bool:
        """The journal's path (wattline.plugin.journal.CreditTaker)."""
        outlet = self._live.outlet_of(session_id)
        return outlet is not None and outlet.credit(session_id, payment_hash, amount_msat).result(CALL_TIMEOUT_S)

    def booked(self, payment_hashes: Sequence[str]) -> None:
        for outlet in self._outlets.values():
            outlet.booked(payment_hashes)

    # What the desk for aggregates and the watch on the chain ask for.

    def live_view(self, session_id: str) -> OutletView | None:
        return self._live.view_of(session_id)

    def is_served(self, session_id: str) -> bool:
        return self._live.outlet_of(session_id) is not None

    def session_now(self, session_id: str) -> Session | None:
        record = self._live.record(session_id)
        return record.session if record is not None else None

    def cable_of(self, session_id: str) -> str:
        record = self._live.record(session_id)
        return record.cable_node_id if record is not None else ""

    def reserve_version(self, session_id: str, txid: str, amount_msat: int) -> str:
        """Before a version is stored: from now on its session's outlet is nobody else's. Why it cannot be, or empty.
        Released by its credit, or by :meth:`release_version`."""
        refusals: list[str] = []

        def is_free(_: int) -> bool:
            outlet = self._live.outlet_of(session_id)
            occupancy = outlet.view.occupancy if outlet is not None else Occupancy()
            if not occupancy.may_pay(session_id, self._reservations.is_claiming):
                refusals.append("another cable has paid for the outlet first, or is about to")
            return not refusals

        outlet_id = self.outlet_id_of(session_id)
        if self._reservations.reserve(txid, session_id, amount_msat, is_free, outlet_id, is_proven=True):
            return ""
        return refusals[0] if refusals else "this transaction pays another session"

    def release_version(self, txid: str) -> None:
        """It was not stored, or not credited."""
        self._reservations.release(txid)

    def least_msat(self, session_id: str) -> int:
        return self._statements.least_msat(session_id)

    def credit_stored(self, session_id: str, txid: str, total_msat: int) -> bool:
        """Version ``txid`` is in the ledger: credit what the session lacks of ``total_msat`` from the chain; False when
        it can no longer use it. May be told again."""
        outlet = self._live.outlet_of(session_id)
        if outlet is None:
            return False
        amount_msat = total_msat - self._live.onchain_credited_msat(session_id)
        if amount_msat <= 0:
            return True
        # Counted first: when the outlet does not answer in time, it credits later all the same, and nobody may do so
        # twice.
        self._live.credited_onchain(session_id, amount_msat)
        # (The outlet releases what :meth:`reserve_version` has reserved.)
        credited = outlet.credit(session_id, txid, amount_msat)
        credited.add_done_callback(lambda _: outlet.booked([txid]))
        if credited.result(CALL_TIMEOUT_S):
            return True
        self._live.credited_onchain(session_id, -amount_msat)
        return False

    def tell(self, session_id: str, message: pb.ChargeResponse) -> None:
        self._streams.send(session_id, message)

    # What the operator asks for.

    @property
    def tariff(self) -> Tariff:
        return self._prices.current

    def change_tariff(self, tariff: Tariff) -> None:
        """For sessions opened from now on; the cables of running ones are told. Raises UsageError when no session could
        begin at these prices; then nothing changes."""
        effective_at = self._prices.change(tariff)
        change = pb.TariffChange(tariff=tariff_message(tariff), effective_at=effective_at)
        self._streams.broadcast(pb.ChargeResponse(tariff_change=change))

    def stop_session(self, session_id: str) -> Session | None:
        """End a session that is not over; how it stands then: one that was ending already goes on doing so. None when
        it is over, or there never was one of that id."""
        record = self._live.live(session_id)
        if record is None or record.session.state is State.CLOSED:
            return None
        if record.session.state.is_live:
            self.post(session_id, OperatorStopped())
        record = self._live.record(session_id)
        return record.session if record is not None else None

    # What the outlets' loops tell (wattline.plugin.outlet.SessionSink).

    def changed(self, view: OutletView, *, important: bool) -> None:
        session = view.session
        if session is None:
            return
        # Nothing of a session that has paid nothing moves on, but its end; that is written when it is over.
        if session.was_paid:
            self._live.mark_changed(session.session_id)
        self._statements.send_if_due(view, session, important=important)

    def settle(self, session: Session) -> None:
        self._desk.settle(session)

    def refund(self, session: Session, budget_msat: int) -> None:
        self._desk.refund(session)

    def receipt_due(self, session: Session) -> None:
        self._desk.receipt(session)

    # What the settlement asks for (wattline.plugin.closing.Sessions).

    def close_books(self, session_id: str) -> bool:
        outlet = self._live.outlet_of(session_id)
        return outlet is None or outlet.close_books(session_id).result(CALL_TIMEOUT_S)

    def post(self, session_id: str, event: Event) -> bool:
        return self._live.post(session_id, event)

    def record(self, session_id: str) -> SessionRecord | None:
        return self._live.record(session_id)

    def save(self, session_id: str) -> None:
        self._live.save(session_id)

    def settle_owed(self, session_id: str, event: RefundSent | RefundKept) -> None:
        with self._settling_owed:
            record = self._ledger.session(session_id)
            if record is None:
                return
            session, effects = step(record.session, event, _monotonic_ms())
            record = replace(record, session=session)
            self._ledger.save_session(record)
        if any(isinstance(effect, WriteReceipt) for effect in effects):
            self._receipts.issue(record)

    def finish(self, session: Session) -> None:
        session_id = session.session_id
        record = self._live.record(session_id)
        if record is None:
            return
        record = replace(record, session=session, closed_at=record.closed_at or self._now())
        self._live.save_over(record)
        last = self._last_message(record)
        if session.was_paid:
            detail = {"stop_reason": session.stop_reason, "balance_msat": session.account.balance_msat}
            self._ledger.append_event(self._now(), session_id, "closed", detail)
            log.info("session %s closed: %s", session_id, session.stop_reason)
        outlet = self._live.outlet_of(session_id)
        self._live.drop(session_id)
        if outlet is not None:
            outlet.detach(session_id).result(CALL_TIMEOUT_S)
        self._statements.forget(session_id)
        if last is not None:
            self._streams.finish(session_id, last)

    def _last_message(self, record: SessionRecord) -> pb.ChargeResponse | None:
        """The receipt, as a rule. None when nobody is there to hear of a session that was never paid for: who asks for
        that receipt later gets it."""
        session = record.session
        if not session.was_paid and session.stop_reason in _DISPLACED:
            return refusal(*_DISPLACED[session.stop_reason])
        if not session.was_paid and not self._streams.is_attached(session.session_id):
            return None
        return pb.ChargeResponse(receipt=self._receipts.issue(record))

    @property
    def _desk(self) -> SettlementDesk:
        assert self._settlement is not None, "furnish() comes first"
        return self._settlement


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
