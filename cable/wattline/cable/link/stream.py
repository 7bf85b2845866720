"""One session's stream to the socket: kept up over cuts, until the socket ends it or has been gone for too long.

A thread reads the stream, turns each message into a value within its bounds and hands it on; writing never blocks. A
cut stream is taken up again with a ``resume`` (or, before the socket has named the session, with the same ``open``: its
token makes that harmless).

The mailbox holds what happened, on its way from the threads that hear of it to the one that decides. Of what the socket
says, only the newest of each kind waits: however much it sends, this never holds more than a message of every kind.
Nothing is lost by that: statements are cumulative, one version at a time is under way, a request that comes again
replaces the one before, and refused payments are counted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

import grpc

from wattline.cable.link.transport import LARGEST_MESSAGE, details_of, is_too_large, rules_from, tariff_from
from wattline.cable.policy.events import (
    FinalDue,
    Message,
    OnchainEvent,
    OnchainInvitation,
    OnchainMessage,
    Opened,
    PaymentEvent,
    PaymentRefused,
    Refusal,
    RefusedVersion,
    SignedReceipt,
    SocketState,
    Statement,
    TariffChange,
    VersionAccepted,
)
from wattline.core.wire.reading import OutOfRange, admitted
from wattline.device.meters.reading import MeterError, Reading
from wattline.v1 import charging_pb2 as pb
from wattline.v1 import charging_pb2_grpc as pb_grpc

FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 2.0
PASSING_REFUSALS = frozenset({"shutting_down", "starting", "too_many_opens"})
"""The socket is restarting, or takes no more opens for a moment: as good as a cut."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The stream broke; it is being taken up again."""

    detail: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream stayed cut for longer than a session lives without it."""

    detail: str


@dataclass(frozen=True, slots=True)
class Unbelievable:
    """The socket has sent what cannot be; the stream goes on without it."""

    detail: str


StreamEvent = Message | Cut | Lost | Unbelievable


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """``lost_after_s``: so long a cut stream is tried to be taken up again."""

    lost_after_s: float
    first_backoff_s: float = FIRST_BACKOFF_S
    max_backoff_s: float = MAX_BACKOFF_S


class SocketStream:
    """See the module. ``emit`` is called from the reading thread, in order; the last event is a receipt, a refusal or
    :class:`Lost`, after which nothing more comes."""

    def __init__(
        self,
        channel: grpc.Channel,
        opening: pb.Open,
        session_id: str | None,
        emit: Callable[[StreamEvent], None],
        timing: StreamTiming,
    ) -> None:
        self._stub = pb_grpc.ChargingServiceStub(channel)
        self._opening = opening
        self._session_id = session_id
        self._emit = emit
        self._timing = timing
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._outgoing: queue.SimpleQueue[pb.ChargeRequest | None] | None = None
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, name="cable-stream", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def tell_meter_value(self, energy_uwh: int, reading: Reading) -> bool:
        """What the own meter sees; ``energy_uwh`` since the open. False when the stream is cut just now."""
        value = pb.MeterValue(
            energy_uwh=energy_uwh,
            power_mw=reading.power_mw,
            voltage_mv=max(0, reading.voltage_mv),
            current_ma=reading.current_ma,
        )
        return self._send(pb.ChargeRequest(meter_value=value))

    def onchain_request(self, signature: str) -> bool:
        """Ask for the address of the session's aggregate. False when the stream is cut just now."""
        return self._send(pb.ChargeRequest(onchain_request=pb.OnchainRequest(signature=signature)))

    def aggregate_version(self, number: int, psbt: bytes, is_final: bool) -> bool:
        """Hand over a version of it. False when the stream is cut just now: then it has not left."""
        version = pb.AggregateVersion(number=number, psbt=psbt, is_final=is_final)
        return self._send(pb.ChargeRequest(aggregate_version=version))

    def close(self, reason: str) -> bool:
        """Ask the socket to end the session. False when the stream is cut just now."""
        return self._send(pb.ChargeRequest(close=pb.Close(reason=reason)))

    def _send(self, request: pb.ChargeRequest) -> bool:
        """Put a message into the stream; False when it is cut just now (the message is dropped)."""
        with self._lock:
            if self._outgoing is None:
                return False
            self._outgoing.put(request)
            return True

    def drop_stream(self) -> None:
        """Cut a stream that has gone silent, so that it is taken up again."""
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End for good; nothing is emitted any more once this has returned."""
        self._stopping.set()
        self.drop_stream()
        self._thread.join(timeout_s)

    def newest_receipt(self, session_id: str, timeout_s: float = 5.0) -> SignedReceipt | None:
        """What GetReceipt answers; None when the socket has none (yet) or does not answer."""
        request = pb.GetReceiptRequest(session_id=session_id, token=self._opening.token)
        try:
            response = self._stub.GetReceipt(request, timeout=timeout_s)
            admitted(response)
        except (grpc.RpcError, OutOfRange):
            return None
        if not response.receipt.receipt:
            return None
        return SignedReceipt(response.receipt.receipt, response.receipt.signature)

    def _run(self) -> None:
        backoff_s = self._timing.first_backoff_s
        last_alive = time.monotonic()
        while not self._stopping.is_set():
            heard, detail = self._one_stream()
            if detail is None:
                return
            if self._stopping.is_set():
                return
            if heard:
                backoff_s = self._timing.first_backoff_s
                last_alive = time.monotonic()
            if time.monotonic() - last_alive > self._timing.lost_after_s:
                self._emit(Lost(detail))
                return
            self._emit(Cut(detail))
            self._stopping.wait(backoff_s)
            backoff_s = min(backoff_s * 2, self._timing.max_backoff_s)

    def _one_stream(self) -> tuple[bool, str | None]:
        """Run one stream to its end. Whether anything came, and how it was cut (None: the session is over)."""
        outgoing: queue.SimpleQueue[pb.ChargeRequest | None] = queue.SimpleQueue()
        outgoing.put(self._first_message())
        heard = False
        try:
            call = self._stub.Charge(_until_none(outgoing))
            with self._lock:
                self._call, self._outgoing = call, outgoing
            if self._stopping.is_set():
                call.cancel()
            for response in call:
                message = self._believable(response)
                if message is None:
                    continue
                if isinstance(message, Refusal) and message.code in PASSING_REFUSALS:
                    return heard, f"{message.code}: {message.message}"
                heard = True
                if isinstance(message, Opened):
                    self._session_id = message.session_id
                if not self._stopping.is_set():
                    self._emit(message)
                if isinstance(message, Refusal | SignedReceipt):
                    return True, None
            return heard, "the socket ended the stream"
        except grpc.RpcError as error:
            if is_too_large(error):
                self._emit(Unbelievable(f"a message is larger than {LARGEST_MESSAGE} bytes"))
            return heard, details_of(error)
        finally:
            with self._lock:
                ended, self._call, self._outgoing = self._call, None, None
            outgoing.put(None)
            if ended is not None:
                ended.cancel()

    def _believable(self, response: pb.ChargeResponse) -> Message | None:
        """None for what says nothing, or cannot be; that is told."""
        try:
            return message_from(response)
        except OutOfRange as error:
            if not self._stopping.is_set():
                self._emit(Unbelievable(error.message))
            return None

    def _first_message(self) -> pb.ChargeRequest:
        if self._session_id is None:
            return pb.ChargeRequest(open=self._opening)
        return pb.ChargeRequest(resume=pb.Resume(session_id=self._session_id, token=self._opening.token))


def _until_none(outgoing: queue.SimpleQueue[pb.ChargeRequest | None]) -> Iterator[pb.ChargeRequest]:
    while (request := outgoing.get()) is not None:
        yield request


Happening = Reading | MeterError | StreamEvent | PaymentEvent | OnchainEvent


class Mailbox:
    """In the order in which things happened; what replaces something older stands where the newer one would. ``put``
    may be called from any thread."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._waiting: dict[Hashable, tuple[int, Happening]] = {}
        self._count = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, happening: Happening) -> None:
        """It has happened now."""
        with self._changed:
            self._count += 1
            slot = _slot(happening)
            if slot is None:
                slot = self._count  # of our own: each of them counts
            before = self._waiting.pop(slot, None)
            if isinstance(happening, PaymentRefused) and before is not None:
                older = before[1]
                assert isinstance(older, PaymentRefused)
                happening = replace(happening, more=older.more + 1)
            self._waiting[slot] = (self._clock_ms(), happening)
            self._changed.notify()

    def take(self, timeout_s: float) -> tuple[int, Happening] | None:
        """The oldest one and when it happened; None when there is none for ``timeout_s``."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout_s)
            if not self._waiting:
                return None
            return self._waiting.pop(next(iter(self._waiting)))


def _slot(happening: Happening) -> Hashable | None:
    """Which of the socket's kinds it is; None for what is our own."""
    match happening:
        case RefusedVersion(number=number):
            return RefusedVersion, number == 0
        case VersionAccepted(is_final=is_final):
            return VersionAccepted, is_final
        case (
            Opened()
            | Statement()
            | TariffChange()
            | PaymentRefused()
            | Refusal()
            | SignedReceipt()
            | OnchainInvitation()
            | FinalDue()
            | Cut()
            | Lost()
            | Unbelievable()
        ):
            return type(happening).__name__
        case _:
            return None


_STATES = {
    pb.SESSION_STATE_OPEN: SocketState.OPEN,
    pb.SESSION_STATE_DELIVERING: SocketState.DELIVERING,
    pb.SESSION_STATE_PAUSED: SocketState.PAUSED,
    pb.SESSION_STATE_SETTLING: SocketState.SETTLING,
    pb.SESSION_STATE_CLOSED: SocketState.CLOSED,
}


def message_from(response: pb.ChargeResponse) -> Message | None:
    """The message in ``response``; None for a kind that this version does not know. Raises OutOfRange."""
    admitted(response)
    match response.WhichOneof("message"):
        case "opened":
            opened = response.opened
            return Opened(
                opened.session_id, tariff_from(opened.tariff), statement_from(opened.statement), opened.resumed
            )
        case "statement":
            return statement_from(response.statement)
        case "tariff_change":
            return TariffChange(tariff_from(response.tariff_change.tariff), response.tariff_change.effective_at)
        case "payment_refused":
            refused = response.payment_refused
            return PaymentRefused(
                refused.payment_hash, refused.amount_msat, refused.code, refused.message, refused.min_increment_msat
            )
        case "refusal":
            return Refusal(response.refusal.code, response.refusal.message)
        case "receipt":
            return SignedReceipt(response.receipt.receipt, response.receipt.signature)
        case _:
            return _onchain_message_from(response)


def _onchain_message_from(response: pb.ChargeResponse) -> OnchainMessage | None:
    match response.WhichOneof("message"):
        case "onchain_invitation":
            invitation = response.onchain_invitation
            return OnchainInvitation(
                invitation.address,
                invitation.script,
                rules_from(invitation.rules),
                invitation.newest_number,
                invitation.newest_value_sat,
            )
        case "version_accepted":
            accepted = response.version_accepted
            return VersionAccepted(accepted.number, accepted.value_sat, accepted.is_final)
        case "version_refused":
            refused = response.version_refused
            return RefusedVersion(refused.number, refused.code, refused.message)
        case "final_due":
            due = response.final_due
            return FinalDue(due.value_sat, due.charged_msat, due.keysend_msat)
        case _:
            return None


def statement_from(message: pb.Statement) -> Statement:
    """The values of a statement off the wire."""
    return Statement(
        session_id=message.session_id,
        sequence=message.sequence,
        state=_STATES.get(message.state, SocketState.UNKNOWN),
        relay_closed=message.relay_closed,
        energy_uwh=message.energy_uwh,
        delivered_ms=message.delivered_ms,
        power_mw=message.power_mw,
        voltage_mv=message.voltage_mv,
        current_ma=message.current_ma,
        credited_msat=message.credited_msat,
        charged_msat=message.charged_msat,
        refunded_msat=message.refunded_msat,
        balance_msat=message.balance_msat,
        in_flight_msat=message.in_flight_msat,
        payments=message.payments,
        min_increment_msat=message.min_increment_msat,
        stop_reason=message.stop_reason,
        onchain_credited_msat=message.onchain_credited_msat,
    )
