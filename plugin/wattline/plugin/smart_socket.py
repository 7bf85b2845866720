"""The smart socket: outlets, sessions and payments brought together. What cables, lightningd and the operator ask for
arrives here from their own threads."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from wattline.ledger import Ledger, Purpose, SessionRecord
from wattline.lightning.node import Signer
from wattline.lightning.signing import is_signed_by, sign
from wattline.offering import NODE_ID, SocketSettings
from wattline.payment.keysend import Htlc, Refuse, Reservations
from wattline.plugin.messages import METHODS, receipt_message, statement_message, tariff_message
from wattline.plugin.outlet import Condition, OutletLoop, OutletView
from wattline.plugin.service import Refused
from wattline.plugin.streams import Stream, Streams
from wattline.session import (
    CableClosed,
    CableLost,
    CableSeen,
    Event,
    Method,
    OperatorStopped,
    RefundKept,
    RefundSent,
    Session,
    State,
    WriteReceipt,
    encode_session_id,
    opened,
    restored,
    step,
)
from wattline.tariff import Tariff
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)


class SettlementDesk(Protocol):
    """Ends sessions (:class:`wattline.plugin.settlement.Settlement`); every call returns at once."""

    def settle(self, session: Session) -> None: ...

    def refund(self, session: Session, budget_msat: int) -> None: ...

    def receipt(self, session: Session) -> None: ...


ATTACH_TIMEOUT_S = 5.0
RATE_WINDOW_S = 5.0
REFUND_SEQUENCE = 0
"""A session has one refund; its record carries this number (a cable's own payments begin with 1)."""
REMEMBERED_SESSIONS = 1000
UNSAVED_STATEMENTS = 1000
"""More than a session can have sent between two saves."""


class SmartSocket:
    """The seller. Thread-safe: sessions change in their outlet's loop only, the rest is behind one lock."""

    def __init__(
        self,
        settings: SocketSettings,
        ledger: Ledger,
        signer: Signer,
        reservations: Reservations,
        node_id: str,
        network: str,
        certificate_sha256: bytes,
        tariff: Tariff,
        now: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._signer = signer
        self._reservations = reservations
        self._node_id = node_id
        self._network = network
        self._certificate_sha256 = certificate_sha256
        self._tariff = tariff
        self._now = now
        self._lock = threading.RLock()
        self._outlets: dict[str, OutletLoop] = {}
        self._records: dict[str, SessionRecord] = {}
        """Live sessions: what does not change, or changes with a save."""
        self._dirty: set[str] = set()
        self._sequences: dict[str, int] = {}
        self._last_statement: dict[str, float] = {}
        self._max_unpaid: dict[str, int] = {}
        self._paid_at: deque[float] = deque(maxlen=1000)
        self._settlement: SettlementDesk | None = None
        self._streams = Streams(self._stream_lost)
        self._ready = threading.Event()
        self._unsaved = False
        """The ledger could not be written the last time."""

    # Composition.

    def furnish(self, outlets: Sequence[OutletLoop], settlement: SettlementDesk) -> None:
        """Hand in the outlets and the settlement, which need this object themselves."""
        self._outlets = {outlet.outlet_id: outlet for outlet in outlets}
        self._settlement = settlement

    def set_ready(self) -> None:
        """The journal has been read to its end: sessions may be opened and paid."""
        self._ready.set()

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def tariff(self) -> Tariff:
        return self._tariff

    def views(self) -> list[OutletView]:
        return [outlet.view for outlet in self._outlets.values()]

    def restore(self, record: SessionRecord) -> None:
        """Go on with a session that was live when the plugin ended. Its relay is open and its stream gone."""
        session, effects = restored(record.session, _monotonic_ms())
        with self._lock:
            self._records[session.session_id] = replace(record, session=session)
            # Statements sent after the last save are not in the ledger; no number is used twice.
            self._sequences[session.session_id] = record.statement_sequence + UNSAVED_STATEMENTS
        outlet = self._outlets[session.outlet_id]
        outlet.go_on(session, effects, record.chip_uwh).result(ATTACH_TIMEOUT_S)

    # What cables ask for (wattline.plugin.service.Seller).

    def offer(self, nonce: bytes) -> pb.GetOfferResponse:
        if not 16 <= len(nonce) <= 32:
            raise Refused("bad_request", f"the nonce must be 16 to 32 bytes, not {len(nonce)}")
        rules = self._settings.session
        content = pb.Offer(
            node_id=self._node_id,
            certificate_sha256=self._certificate_sha256,
            network=self._network,
            tariff=tariff_message(self._tariff),
            outlets=[self._outlet_message(view) for view in self.views()],
            nonce=nonce,
            expires_at=self._now() + rules.offer_valid_s,
            methods=[METHODS["keysend"]],
            credit_cap_msat=rules.credit_cap_msat,
            min_increment_msat=self.wish_msat(),
            statement_interval_ms=rules.statement_interval_ms,
            pause_max_s=rules.pause_max_s,
            open_timeout_s=rules.open_timeout_s,
            cable_lost_s=rules.cable_lost_s,
            min_refund_msat=rules.min_refund_msat,
        ).SerializeToString(deterministic=True)
        return pb.GetOfferResponse(offer=content, signature=sign(self._signer, "offer", content))

    def open(self, request: pb.Open) -> Stream:
        if not self.ready:
            raise Refused("starting", "the socket is starting; try again in a moment")
        if len(request.token) != 32:
            raise Refused("bad_request", f"the token must be 32 bytes, not {len(request.token)}")
        token_sha256 = hashlib.sha256(request.token).hexdigest()
        known = self._ledger.session_by_token(token_sha256)
        if known is not None:
            return self._attend(known.session.session_id, token_sha256, resumed=True)
        self._check_open(request)
        outlet = self._outlets[request.outlet_id]
        record = self._new_record(request, token_sha256)
        session = record.session
        with self._lock:
            self._records[session.session_id] = record
        if not outlet.attach(session).result(ATTACH_TIMEOUT_S):
            with self._lock:
                del self._records[session.session_id]
            raise self._why_not(outlet.view)
        self.save(session.session_id)
        log.info("session %s opened on outlet %s by %s", session.session_id, outlet.outlet_id, request.cable_node_id)
        self._ledger.append_event(
            self._now(), session.session_id, "opened", {"outlet_id": outlet.outlet_id, "cable": request.cable_node_id}
        )
        return self._attend(session.session_id, token_sha256, resumed=False)

    def resume(self, request: pb.Resume) -> Stream:
        if not self.ready:
            raise Refused("starting", "the socket is starting; try again in a moment")
        return self._attend(request.session_id, hashlib.sha256(request.token).hexdigest(), resumed=True)

    def meter_value(self, session_id: str, value: pb.MeterValue) -> None:
        self.post(session_id, CableSeen())

    def close(self, session_id: str, reason: str) -> None:
        log.info("session %s: closed by the cable: %s", session_id, reason[:80] or "no reason given")
        self._ledger.append_event(self._now(), session_id, "cable_closed", {"reason": reason[:80]})
        self.post(session_id, CableClosed())

    def gone(self, stream: Stream) -> None:
        self._streams.detach(stream)

    def receipt(self, session_id: str, token: bytes) -> pb.SignedReceipt:
        record = self._ledger.session(session_id)
        if record is None or not secrets.compare_digest(record.token_sha256, hashlib.sha256(token).hexdigest()):
            raise Refused("unknown_session", "no session with that id and token")
        if record.session.state is not State.CLOSED:
            raise Refused("not_closed", "the session is not closed yet")
        saved = self._ledger.receipt(session_id)
        if saved is not None:
            return pb.SignedReceipt(receipt=saved.content, signature=saved.signature)
        return self._sign_receipt(record)

    # What lightningd and the journal tell.

    def refusal(self, session_id: str, amount_msat: int, in_flight_msat: int) -> tuple[str, str] | None:
        """Why a payment cannot be used now (wattline.payment.keysend.CreditDesk); None when it can."""
        if not self.ready:
            return "starting", "the socket is starting and does not take payments yet"
        if self._unsaved:
            return "ledger_failed", "the socket cannot keep its books and takes no payments"
        view = self._view_of(session_id)
        if view is None or view.session is None:
            return "unknown_session", "no such session is open here"
        session = view.session
        if not session.state.is_live:
            return "session_closed", f"the session is {session.state}"
        if view.fault:
            return "outlet_faulted", view.fault
        unused_msat = session.account.balance_msat
        cap_msat = session.terms.credit_cap_msat
        if unused_msat + in_flight_msat + amount_msat > cap_msat:
            return (
                "over_credit_cap",
                f"{amount_msat} msat, {unused_msat} unused and {in_flight_msat} in flight exceed the cap of {cap_msat}",
            )
        return None

    def payment_refused(self, htlc: Htlc, refused: Refuse) -> None:
        """Tell the cable why its payment failed."""
        log.info(
            "payment %s of %d msat refused: %s: %s", htlc.payment_hash, htlc.amount_msat, refused.code, refused.message
        )
        if refused.session_id is not None:
            message = pb.PaymentRefused(
                payment_hash=htlc.payment_hash,
                amount_msat=htlc.amount_msat,
                code=refused.code,
                message=refused.message,
            )
            self._streams.send(refused.session_id, pb.ChargeResponse(payment_refused=message))

    def paid(self, payment_hash: str, amount_msat: int) -> None:
        """The fast path: lightningd says that an invoice was paid."""
        session_id = self._reservations.session_of(payment_hash)
        outlet = self._outlet_of(session_id) if session_id is not None else None
        if session_id is not None and outlet is not None:
            self._paid_at.append(time.monotonic())
            outlet.credit_reserved(session_id, payment_hash, amount_msat)

    def take(self, session_id: str, payment_hash: str, amount_msat: int) -> bool:
        """The journal's path (wattline.plugin.bookkeeper.CreditTaker)."""
        outlet = self._outlet_of(session_id)
        if outlet is None:
            return False
        return outlet.credit(session_id, payment_hash, amount_msat).result(ATTACH_TIMEOUT_S)

    def booked(self, payment_hashes: Sequence[str]) -> None:
        for outlet in self._outlets.values():
            outlet.booked(payment_hashes)

    def wish_msat(self) -> int:
        """The smallest increment that the socket wishes: grows when more payments arrive than it likes to handle."""
        since = time.monotonic() - RATE_WINDOW_S
        rate = sum(1 for at in list(self._paid_at) if at >= since) / RATE_WINDOW_S
        crowding = max(1, -int(-rate // self._settings.payment.max_payments_per_s))
        return self._settings.payment.min_increment_msat * crowding

    # What the operator asks for.

    def change_tariff(self, tariff: Tariff) -> None:
        """For sessions opened from now on; the cables of running ones are told. Raises UsageError when no session could
        begin at these prices; then nothing changes."""
        for outlet in self._settings.outlet:
            self._settings.terms(outlet.outlet_id, tariff)
        effective_at = self._now()
        self._ledger.save_tariff(tariff, effective_at)
        with self._lock:
            self._tariff = tariff
        change = pb.TariffChange(tariff=tariff_message(tariff), effective_at=effective_at)
        self._streams.broadcast(pb.ChargeResponse(tariff_change=change))

    def stop_session(self, session_id: str) -> bool:
        """End a live session; False when there is none of that id."""
        return self.post(session_id, OperatorStopped())

    def live_record(self, session_id: str) -> SessionRecord | None:
        """A live session as it is at this moment."""
        view = self._view_of(session_id)
        with self._lock:
            record = self._records.get(session_id)
        if record is None or view is None or view.session is None:
            return record
        return replace(record, session=view.session, meter_base_uwh=view.meter_base_uwh, chip_uwh=view.chip_uwh)

    def max_unpaid_msat(self, session_id: str) -> int | None:
        """The worst (charged - credited) of a session that this process served lately; None when it did not."""
        view = self._view_of(session_id)
        return view.max_unpaid_msat if view is not None else self._max_unpaid.get(session_id)

    # What the outlets' loops tell (wattline.plugin.outlet.SessionSink).

    def changed(self, view: OutletView, *, important: bool) -> None:
        session = view.session
        if session is None:
            return
        session_id = session.session_id
        with self._lock:
            self._dirty.add(session_id)
            due = time.monotonic() - self._last_statement.get(session_id, 0.0)
            if not important and due * 1000 < self._settings.session.statement_interval_ms:
                return
            self._last_statement[session_id] = time.monotonic()
        self._streams.send(session_id, pb.ChargeResponse(statement=self._statement(view, session)))

    def settle(self, session: Session) -> None:
        self._desk.settle(session)

    def refund(self, session: Session, budget_msat: int) -> None:
        self._desk.refund(session, budget_msat)

    def receipt_due(self, session: Session) -> None:
        self._desk.receipt(session)

    # What the settlement asks for (wattline.plugin.settlement.Sessions).

    def close_books(self, session_id: str) -> bool:
        outlet = self._outlet_of(session_id)
        return outlet is None or outlet.close_books(session_id).result(ATTACH_TIMEOUT_S)

    def post(self, session_id: str, event: Event) -> bool:
        outlet = self._outlet_of(session_id)
        return outlet is not None and outlet.post(session_id, event).result(ATTACH_TIMEOUT_S)

    def record(self, session_id: str) -> SessionRecord | None:
        return self.live_record(session_id) or self._ledger.session(session_id)

    def settle_owed(self, session_id: str, event: RefundSent | RefundKept) -> None:
        with self._lock:
            record = self._ledger.session(session_id)
            if record is None:
                return
            session, effects = step(record.session, event, _monotonic_ms())
            record = replace(record, session=session)
            self._ledger.save_session(record)
        if any(isinstance(effect, WriteReceipt) for effect in effects):
            self._sign_receipt(record)

    def finish(self, session: Session) -> None:
        session_id = session.session_id
        record = self.live_record(session_id) or self._ledger.session(session_id)
        if record is None:
            return
        record = replace(record, session=session, closed_at=record.closed_at or self._now())
        self._ledger.save_session(record)
        signed = self._sign_receipt(record)
        self._ledger.append_event(
            self._now(),
            session_id,
            "closed",
            {"stop_reason": session.stop_reason, "balance_msat": session.account.balance_msat},
        )
        log.info("session %s closed: %s", session_id, session.stop_reason)
        outlet = self._outlet_of(session_id)
        if outlet is not None:
            self._remember_unpaid(session_id, outlet.view.max_unpaid_msat)
            outlet.detach(session_id).result(ATTACH_TIMEOUT_S)
        with self._lock:
            self._records.pop(session_id, None)
            self._dirty.discard(session_id)
            self._sequences.pop(session_id, None)
            self._last_statement.pop(session_id, None)
        self._streams.finish(session_id, pb.ChargeResponse(receipt=signed))

    # Housekeeping.

    def save_changed(self) -> None:
        """Write the sessions that moved on since the last time. When that fails no money is taken until it works."""
        with self._lock:
            dirty, self._dirty = self._dirty, set()
        try:
            for session_id in dirty:
                self.save(session_id)
        except BaseException:
            with self._lock:
                self._dirty |= dirty
            self._unsaved = True
            raise
        self._unsaved = False

    def shut_down(self) -> None:
        """Cables are told to come back; the sessions stay as they are, in the ledger."""
        self._ready.clear()
        self._streams.finish_all(
            pb.ChargeResponse(
                refusal=pb.Refusal(code="shutting_down", message="the socket is restarting; resume later")
            )
        )
        self.save_changed()

    # Private.

    @property
    def _desk(self) -> SettlementDesk:
        assert self._settlement is not None, "furnish() comes first"
        return self._settlement

    def _outlet_message(self, view: OutletView) -> pb.Outlet:
        rated_w = next(o.max_power_w for o in self._settings.outlet if o.outlet_id == view.outlet_id)
        available = self.ready and view.condition is Condition.AVAILABLE
        reason = "" if available else view.fault or _CONDITION_TEXT[view.condition]
        return pb.Outlet(
            outlet_id=view.outlet_id, max_power_mw=rated_w * 1000, available=available, unavailable_reason=reason
        )

    def _check_open(self, request: pb.Open) -> None:
        if self._unsaved:
            raise Refused("ledger_failed", "the socket cannot keep its books and sells nothing")
        if request.outlet_id not in self._outlets:
            known = ", ".join(sorted(self._outlets))
            raise Refused("unknown_outlet", f"there is no outlet {request.outlet_id!r} here; there are: {known}")
        if request.method != pb.METHOD_KEYSEND:
            raise Refused("method_not_supported", "this socket takes keysend payments only")
        if not NODE_ID.fullmatch(request.cable_node_id):
            raise Refused("bad_request", "cable_node_id must be a node id (66 hex digits): refunds go there")
        if request.tariff_id != self._tariff.tariff_id:
            raise Refused("tariff_changed", "the price has changed since the offer; ask for a new one")
        self._check_access(request)
        view = self._outlets[request.outlet_id].view
        if view.condition is not Condition.AVAILABLE:
            raise self._why_not(view)

    def _check_access(self, request: pb.Open) -> None:
        allowed = self._settings.access.allow_node_ids
        if not request.signature and not allowed:
            return
        unsigned = pb.Open()
        unsigned.CopyFrom(request)
        unsigned.signature = ""
        content = unsigned.SerializeToString(deterministic=True)
        if not request.signature or not is_signed_by(
            self._signer, "open", content, request.signature, request.cable_node_id
        ):
            raise Refused("not_allowed", "the open is not signed by cable_node_id")
        if allowed and request.cable_node_id not in allowed:
            raise Refused("not_allowed", "this socket sells only to the cables on its list")

    def _why_not(self, view: OutletView) -> Refused:
        if view.session is not None:
            return Refused("outlet_busy", f"outlet {view.outlet_id} serves another session")
        reason = view.fault or _CONDITION_TEXT[view.condition]
        return Refused("outlet_faulted", f"outlet {view.outlet_id} cannot deliver: {reason}")

    def _new_record(self, request: pb.Open, token_sha256: str) -> SessionRecord:
        terms = self._settings.terms(request.outlet_id, self._tariff)
        session = opened(
            encode_session_id(secrets.token_bytes(16)), request.outlet_id, Method.KEYSEND, terms, _monotonic_ms()
        )
        return SessionRecord(
            session=session,
            token_sha256=token_sha256,
            cable_node_id=request.cable_node_id,
            opened_at=self._now(),
        )

    def _attend(self, session_id: str, token_sha256: str, *, resumed: bool) -> Stream:
        """The stream of a session for whoever holds its token; begins with the session as it stands."""
        record = self.record(session_id)
        if record is None:
            raise Refused("unknown_session", "there is no session of that id")
        if not secrets.compare_digest(record.token_sha256, token_sha256):
            raise Refused("wrong_token", "the token does not belong to that session")
        stream = self._streams.attach(session_id)
        view = self._view_of(session_id)
        if view is None or view.session is None:
            stream.put(pb.ChargeResponse(receipt=self.receipt_of(record)))
            stream.end()
            return stream
        opened = pb.Opened(
            session_id=session_id,
            tariff=tariff_message(view.session.terms.tariff),
            statement=self._statement(view, view.session),
            resumed=resumed,
        )
        stream.put(pb.ChargeResponse(opened=opened))
        self.post(session_id, CableSeen())
        return stream

    def receipt_of(self, record: SessionRecord) -> pb.SignedReceipt:
        """The newest receipt of a closed session, signed now if the plugin died before it could."""
        saved = self._ledger.receipt(record.session.session_id)
        if saved is not None:
            return pb.SignedReceipt(receipt=saved.content, signature=saved.signature)
        return self._sign_receipt(record)

    def _sign_receipt(self, record: SessionRecord) -> pb.SignedReceipt:
        refund = self._ledger.outgoing.of(Purpose.REFUND, record.session.session_id, REFUND_SEQUENCE)
        content = receipt_message(record, self._node_id, refund.payment_hash if refund else "").SerializeToString(
            deterministic=True
        )
        signature = sign(self._signer, "receipt", content)
        self._ledger.save_receipt(record.session.session_id, content, signature, self._now())
        return pb.SignedReceipt(receipt=content, signature=signature)

    def _statement(self, view: OutletView, session: Session) -> pb.Statement:
        with self._lock:
            sequence = self._sequences.get(session.session_id, 0) + 1
            self._sequences[session.session_id] = sequence
        in_flight = self._reservations.in_flight_msat(session.session_id)
        return statement_message(view, session, sequence, in_flight, self.wish_msat())

    def save(self, session_id: str) -> None:
        record = self.live_record(session_id)
        if record is None:
            return
        with self._lock:
            sequence = self._sequences.get(session_id, 0)
        closed_at = record.closed_at
        if record.session.state is State.CLOSED:
            closed_at = closed_at or self._now()  # a session that is CLOSED in the ledger is not taken up again
        self._ledger.save_session(replace(record, statement_sequence=sequence, closed_at=closed_at))

    def _outlet_of(self, session_id: str) -> OutletLoop | None:
        with self._lock:
            record = self._records.get(session_id)
        return self._outlets.get(record.session.outlet_id) if record is not None else None

    def _view_of(self, session_id: str) -> OutletView | None:
        outlet = self._outlet_of(session_id)
        if outlet is None:
            return None
        view = outlet.view
        return view if view.session is not None and view.session.session_id == session_id else None

    def _remember_unpaid(self, session_id: str, max_unpaid_msat: int) -> None:
        with self._lock:
            while len(self._max_unpaid) >= REMEMBERED_SESSIONS:
                del self._max_unpaid[next(iter(self._max_unpaid))]
            self._max_unpaid[session_id] = max_unpaid_msat

    def _stream_lost(self, session_id: str) -> None:
        self.post(session_id, CableLost())


_CONDITION_TEXT = {
    Condition.STARTING: "it is starting",
    Condition.AVAILABLE: "it is free",
    Condition.IN_USE: "it serves another session",
    Condition.FAULTED: "its meter or relay does not work",
}


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
