"""One session, run to its end: the thread that decides, and the threads it listens to.

Meter, stream and payers each put what happened into one mailbox; this thread takes it out, lets the :class:`Buyer`
decide and carries that out. Nothing else changes the session's state.
"""

from __future__ import annotations

from dataclasses import replace

from wattline.cable import restoring
from wattline.cable.closing import Closing, StopWish, Summary
from wattline.cable.link.stream import Cut, Happening, Lost, Mailbox, SocketStream, StreamTiming, Unbelievable
from wattline.cable.onchain_side import OnchainSide, make_onchain_side
from wattline.cable.opening import Agreement, Equipment, LineLimit, Listener, Progress
from wattline.cable.pay.keysend import Doubts, KeysendPayments
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.events import (
    DoubtsChecked,
    Failed,
    InDoubt,
    OnchainEvent,
    OnchainMessage,
    Opened,
    PaymentEvent,
    PaymentRefused,
    Refusal,
    SignedReceipt,
    SocketState,
    Statement,
    Stop,
    TariffChange,
)
from wattline.cable.policy.offer import OfferError
from wattline.cable.policy.reconciliation import lost_s
from wattline.cable.settings import CableSettings
from wattline.core.clock import told
from wattline.core.errors import RetryError, WattlineError
from wattline.core.ledger.cable import CableAggregate, CableSession
from wattline.device.meters.meter_thread import MeterThread
from wattline.device.meters.reading import MeterError, Reading

TICK_S = 0.05
SHOW_MS = 250
SAVE_MS = 5_000
METER_VALUE_MS = 1_000
OPEN_TIMEOUT_MS = 20_000
FIRST_READING_MS = 5_000
DROP_MS = 5_000
"""A stream that is taken up anew has so long to say something."""


class SessionRun:
    """See the module. ``run`` is called once."""

    def __init__(
        self,
        settings: CableSettings,
        equipment: Equipment,
        agreement: Agreement,
        listener: Listener,
        stop_wanted: StopWish,
    ) -> None:
        self._settings = settings
        self._equipment = equipment
        self._agreement = agreement
        self._listener = listener
        self._stop_wanted = stop_wanted
        self._remembered = agreement.remembered
        self._mailbox = Mailbox(equipment.clock_ms)
        self._heard = LineLimit(listener.event, equipment.clock_ms)
        """For what the socket causes, which may be without end."""
        self._meter: MeterThread | None = None
        self._stream: SocketStream | None = None
        self._keysend: KeysendPayments | None = None
        self._onchain: OnchainSide | None = None
        self.buyer: Buyer | None = None
        """None until the socket has opened the session."""
        self._reading: Reading | None = None
        self._opened_ms = 0
        self._connected = False
        self._stream_over = False
        self._closing = Closing(equipment.node, settings.limits.tolerance, listener.event)
        self._doubts = Doubts()
        self._due: dict[str, int] = {}

    @property
    def aggregate(self) -> CableAggregate | None:
        """How the session's on-chain payment ended; None where there is none."""
        return self._onchain.row if self._onchain is not None else None

    def run(self) -> Summary:
        """From the open to the receipt. Raises WattlineError when the session does not come about, SessionOver when
        the remembered one is gone."""
        try:
            self._start_meter()
            self._start_stream()
            while not self._is_over():
                self._take(TICK_S)
                self._tick(self._equipment.clock_ms())
            return self._finish()
        finally:
            self._shut_down()

    # Beginning.

    def _start_meter(self) -> None:
        meter = self._equipment.open_meter(self._remembered.rated_power_mw or None)
        self._meter = MeterThread(meter, self._mailbox.put)
        self._meter.start()
        deadline = self._equipment.clock_ms() + FIRST_READING_MS
        while self._reading is None:
            self._take(TICK_S)
            if self._equipment.clock_ms() > deadline:
                raise MeterError("meter_bus_error", "the cable's own meter gives no reading")

    def _start_stream(self) -> None:
        offer = self._agreement.opened.offer
        self._stream = SocketStream(
            self._agreement.opened.channel,
            self._agreement.opening,
            self._remembered.session_id,
            self._mailbox.put,
            StreamTiming(lost_after_s=lost_s(offer.cable_lost_s)),
        )
        self._stream.start()
        deadline = self._equipment.clock_ms() + OPEN_TIMEOUT_MS
        cut = ""
        while self.buyer is None:
            happening = self._take(TICK_S)
            refused = restoring.refusal_of_open(happening, self._remembered)
            if refused is not None:
                raise refused
            if isinstance(happening, Cut | Lost):
                cut = f": {happening.detail}"
            if self._equipment.clock_ms() > deadline:
                raise restoring.NotOpened("socket_lost", f"the socket made an offer but does not open a session{cut}")
            if self._stop_wanted.reason:
                raise OfferError(self._stop_wanted.reason, "stopped before the socket opened the session")

    def _on_opened(self, opened: Opened, at_ms: int) -> None:
        if self.buyer is not None:
            if opened.session_id != self.buyer.terms.session_id:
                self.buyer.end("socket_closed", "the socket answers with another session", distrust=True)
                return
            self._closing.on_stream_renewed()
            if self._onchain is not None:
                self._onchain.on_stream_renewed()
            self.buyer.on_statement(opened.statement, at_ms)
            return
        assert self._reading is not None
        equipment, settings = self._equipment, self._settings
        is_new = self._remembered.session_id is None
        placed = restoring.place(self._remembered, opened, self._reading, settings.limits.prices, equipment)
        if placed.gap_uwh:
            self._listener.event(
                f"own meter was reset meanwhile: {placed.gap_uwh} uWh are taken from the socket's count"
            )
        self._save(placed.session)
        self._opened_ms = at_ms - placed.age_ms
        opened_ms = at_ms - placed.most_ms
        buyer = restoring.make_buyer(settings, equipment, self._agreement, placed.session, self._reading, opened_ms)
        self._keysend = KeysendPayments(
            equipment.payer,
            equipment.ledger.outgoing,
            opened.session_id,
            placed.session.node_id,
            self._mailbox.put,
            settings.payment.timeout_s,
        )
        assert self._stream is not None
        self._onchain = make_onchain_side(
            settings,
            equipment,
            self._agreement,
            self._heard,
            buyer,
            self._stream,
            self._mailbox.put,
            lambda: self._stop_wanted.left_ms(equipment.clock_ms()),
        )
        self.buyer = buyer
        self._listener.event(f"session {opened.session_id} {'opened' if is_new else 'resumed'}")
        if buyer.in_doubt:
            self._listener.event(f"{len(buyer.in_doubt)} payments of the last run are in doubt")
        buyer.on_statement(opened.statement, at_ms)

    # What happens.

    def _take(self, timeout_s: float) -> Happening | None:
        """Handle the next happening, waiting for at most ``timeout_s``; it is returned, too."""
        taken = self._mailbox.take(timeout_s)
        if taken is None:
            return None
        at_ms, happening = taken
        self._handle(at_ms, happening)
        return happening

    def _handle(self, at_ms: int, happening: Happening) -> None:
        buyer = self.buyer
        match happening:
            case Reading():
                self._reading = happening
                if buyer is not None:
                    buyer.on_reading(happening.at_ms, happening.energy_uwh, happening.power_mw, happening.voltage_mv)
            case MeterError():
                if buyer is None:
                    raise happening
                buyer.end(happening.code, f"own meter: {happening.message}")
            case Opened():
                self._connected = True
                self._on_opened(happening, at_ms)
            case Cut(detail):
                if self._connected:
                    self._heard(f"stream cut: {detail}")
                self._connected = False
                if buyer is not None:
                    buyer.on_cut(at_ms)
            case Lost(detail):
                self._connected, self._stream_over = False, True
                if buyer is not None:
                    buyer.end("socket_lost", f"the socket has gone: {detail}")
            case Unbelievable(detail):
                if buyer is not None:
                    buyer.end(restoring.UNBELIEVABLE, f"what the socket sends cannot be: {detail}", distrust=True)
            case Refusal():
                self._connected, self._stream_over = False, True
                if buyer is not None:
                    buyer.end("socket_closed", f"the socket refuses to go on: {happening.code}: {happening.message}")
            case TariffChange():
                self._heard(
                    f"new price for later sessions: {happening.tariff.energy_msat_per_kwh} msat/kWh (not for this one)"
                )
            case _ if buyer is None:
                pass
            case Statement():
                if happening.session_id == buyer.terms.session_id:
                    self._on_statement(buyer, happening, at_ms)
            case PaymentRefused():
                buyer.on_refused(happening)
                more = f" (and {happening.more} others)" if happening.more else ""
                self._heard(f"payment refused: {happening.code}: {happening.message}{more}")
            case SignedReceipt():
                self._connected, self._stream_over = False, True
                if self._closing.on_receipt(buyer, happening, at_ms):
                    self._save(restoring.with_receipt(self._remembered, happening))
            case _ if isinstance(happening, PaymentEvent):
                self._on_payment(buyer, happening, at_ms)
            case _ if self._onchain is None:
                pass
            case _ if isinstance(happening, OnchainMessage):
                self._onchain.on_message(happening, at_ms)
            case _ if isinstance(happening, OnchainEvent):
                self._onchain.on_event(happening, at_ms)

    def _on_statement(self, buyer: Buyer, statement: Statement, at_ms: int) -> None:
        before = buyer.statement
        buyer.on_statement(statement, at_ms)
        if before is None or before.state is not statement.state:
            self._heard(f"socket: {statement.state}" + (f" ({statement.stop_reason})" if statement.stop_reason else ""))
        if statement.state in (SocketState.SETTLING, SocketState.CLOSED):
            # After our own close this changes nothing: the first reason stands.
            buyer.end("socket_closed", f"the socket ended the session: {statement.stop_reason or 'no reason given'}")

    def _on_payment(self, buyer: Buyer, event: PaymentEvent, at_ms: int) -> None:
        match event:
            case Failed():
                self._listener.event(f"payment {event.sequence} failed: {event.code}: {event.message}")
            case InDoubt():
                self._listener.event(f"payment {event.sequence} is in doubt: {event.message}")
            case DoubtsChecked(method=method):
                self._doubts.checked(method, at_ms)
        buyer.on_payment(event, at_ms)

    # What is done.

    def _tick(self, now_ms: int) -> None:
        buyer, keysend = self.buyer, self._keysend
        if buyer is None or keysend is None:
            return
        if self._stop_wanted.reason:
            buyer.end(self._stop_wanted.reason, self._stop_wanted.message)
            self._closing.hurry(now_ms)
        elif self._stop_wanted.is_time_up(now_ms):
            buyer.end("done", "the time is up")
        try:
            for payment in buyer.decide(now_ms):
                if self._onchain is not None and payment.version is not None:
                    self._onchain.payments.pay(payment.sequence, payment.amount_msat, payment.version)
                else:
                    keysend.pay(payment.sequence, payment.amount_msat, payment.maxfee_msat)
        except RetryError as error:
            self._listener.event(f"no payment just now: {error.message}")
        except WattlineError as error:
            buyer.end(error.code, error.message)
        if self._onchain is not None:
            self._onchain.tick(now_ms)
        self._resolve_doubts(buyer, keysend, now_ms)
        self._watch_silence(buyer, now_ms)
        reading = self._reading
        if reading is not None and self._stream is not None and self._is_due("meter", METER_VALUE_MS, now_ms):
            self._stream.tell_meter_value(buyer.track.energy_uwh, reading)
        if self._is_due("save", SAVE_MS, now_ms):
            self._save(self._remembered)
            if jump_s := self._equipment.wall.look():
                self._listener.event(told(jump_s))
        if self._is_due("show", SHOW_MS, now_ms):
            self._show(buyer, now_ms)
        if buyer.stop is not None:
            self._stop(buyer, buyer.stop, now_ms)

    def _is_due(self, what: str, interval_ms: int, now_ms: int) -> bool:
        if now_ms < self._due.get(what, 0):
            return False
        self._due[what] = now_ms + interval_ms
        return True

    def _resolve_doubts(self, buyer: Buyer, keysend: KeysendPayments, now_ms: int) -> None:
        statement, stop = buyer.statement, buyer.stop
        onchain = {number for number in buyer.in_doubt if buyer.account.method_of(number) == "onchain"}
        if self._onchain is not None and self._doubts.may_resolve("onchain", onchain, now_ms):
            # Handing the same version over again tells what became of it, in a session that settles, too.
            self._onchain.payments.resolve(onchain, resend=self._connected and (stop is None or not stop.distrust))
        if self._doubts.may_resolve("keysend", buyer.in_doubt - onchain, now_ms):
            # What never left leaves now only when the session can still use it.
            is_live = statement is not None and statement.state.is_live
            keysend.resolve(buyer.in_doubt - onchain, resend=stop is None and is_live)

    def _watch_silence(self, buyer: Buyer, now_ms: int) -> None:
        statement = buyer.statement
        if not self._connected or statement is None or statement.state is not SocketState.DELIVERING:
            return
        if buyer.charge.is_silent(now_ms) and self._is_due("drop", DROP_MS, now_ms):
            self._heard("the socket is silent; connecting anew")
            assert self._stream is not None
            self._stream.drop_stream()

    # Ending.

    def _stop(self, buyer: Buyer, stop: Stop, now_ms: int) -> None:
        if self._closing.begin(now_ms):
            self._listener.event(f"stopping: {stop.reason}: {stop.message}")
            self._save(replace(self._remembered, stop_reason=stop.reason))
        if self._stream is not None:
            self._closing.ask(buyer, self._stream, now_ms)

    def _is_over(self) -> bool:
        return self.buyer is not None and self._closing.is_over(
            self.buyer, self._connected, self._stream_over, self._equipment.clock_ms()
        )

    def _finish(self) -> Summary:
        buyer, stream = self.buyer, self._stream
        assert buyer is not None
        assert stream is not None
        now_ms = self._equipment.clock_ms()
        had_receipt = self._closing.receipt is not None
        self._closing.fetch_receipt(buyer, stream, now_ms)
        receipt, onchain = self._closing.receipt, self._onchain
        self._closing.finish(buyer, onchain.known() if onchain is not None else None, now_ms)
        aggregate = onchain.finish(receipt) if onchain is not None else None
        remembered = replace(
            self._remembered,
            stop_reason=buyer.stop.reason if buyer.stop is not None else "",
            closed_at=int(self._equipment.now()),
            is_end_seen=True,
        )
        if receipt is not None and not had_receipt:
            remembered = restoring.with_receipt(remembered, receipt.signed)
        self._save(remembered)
        self._show(buyer, now_ms)
        objections = onchain.objections if onchain is not None else []
        summary = self._closing.summary(buyer, objections, now_ms - self._opened_ms, aggregate)
        return summary.achieved(buyer.why_nothing)

    def _shut_down(self) -> None:
        for part in (self._stream, self._keysend, self._onchain, self._meter):
            if part is not None:
                part.stop()
        self._agreement.opened.channel.close()

    def _save(self, remembered: CableSession) -> None:
        if self.buyer is not None:
            remembered = restoring.as_it_stands(remembered, self.buyer, self._equipment, self._opened_ms)
        self._remembered = remembered
        try:
            restoring.save(remembered, self._reading, self._equipment)
        except RetryError as error:
            if self.buyer is None:
                raise
            self._listener.event(f"the ledger is busy: {error.message}")
            self._due["save"] = 0
        except WattlineError as error:
            if self.buyer is None:
                raise
            self.buyer.end(error.code, error.message)

    def _show(self, buyer: Buyer, now_ms: int) -> None:
        self._listener.show(Progress(buyer, self._settings, self._reading, self._connected, now_ms - self._opened_ms))
