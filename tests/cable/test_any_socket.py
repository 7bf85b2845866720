"""A socket that says whatever the wire can carry, in any order: the real session on a stream that needs no network.

Nothing of it makes an internal error, reaches a person as it came, or gets more in advance than the cap.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cable.conftest import Bench
from tests.cable.fakes import CABLE_NODE, SOCKET_NODE, FakeSigner, TlsPair
from tests.core.wire.messages import EVIL, either, fit, wild
from wattline.cable.closing import StopWish, Summary
from wattline.cable.link.stream import Mailbox, SocketStream, StreamTiming
from wattline.cable.link.transport import OpenedSocket, PresentedCertificate, verify_offer, verify_receipt
from wattline.cable.opening import Agreement, LineLimit
from wattline.cable.policy.events import Receipt, SignedReceipt
from wattline.cable.policy.offer import Offer
from wattline.cable.session_run import SessionRun
from wattline.cable.settings import SocketAddress
from wattline.cli.cable_view import ending
from wattline.core.errors import WattlineError
from wattline.core.ids import encode_session_id
from wattline.core.ledger.cable import CableSession
from wattline.core.lightning.node import NodeInfo, SendFailure, signed_text
from wattline.core.tariff import Tariff, cost_msat
from wattline.v1 import charging_pb2 as pb

TARIFF = Tariff.of(300_000)
CAP_MSAT = 5_000
NUMBERS = itertools.count(1)
CERTIFICATE = PresentedCertificate(b"", "wattline", "ipv4:127.0.0.1:9750")
Say = pb.ChargeResponse | bytes | None
"""A message, raw bytes, or (None) a cut."""


class StreamError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@dataclass
class Channel:
    """Of gRPC, as far as the cable uses it: bytes are read and written as there."""

    said: Sequence[Say]
    pause: Callable[[], object] = lambda: None
    """Between two messages."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when all was said."""
    opened: pb.ChargeResponse | None = None

    def stream_stream(self, path: str, **codecs: Any) -> Callable[..., Call]:
        del path
        return lambda requests: Call(self, codecs["response_deserializer"])

    def unary_unary(self, path: str, **codecs: Any) -> Callable[..., Any]:
        del path, codecs

        def refuse(request: object, timeout: float) -> None:
            raise StreamError(grpc.StatusCode.UNAVAILABLE, EVIL)

        return refuse

    def close(self) -> None: ...


class Call:
    """One stream; the first one says all, later ones only that the session goes on."""

    def __init__(self, channel: Channel, read: Callable[[bytes], pb.ChargeResponse]) -> None:
        self._channel, self._read = channel, read
        self._cancelled = threading.Event()
        self._said, channel.said = channel.said, ()

    def cancel(self) -> None:
        self._cancelled.set()

    def __iter__(self) -> Iterator[pb.ChargeResponse]:
        if self._channel.opened is not None:
            yield self._channel.opened
        rest = list(self._said)
        while rest and not self._cancelled.is_set():
            message = rest.pop(0)
            self._channel.pause()
            if message is None:
                self._channel.said = rest
                raise StreamError(grpc.StatusCode.UNAVAILABLE, EVIL)
            raw = message if isinstance(message, bytes) else message.SerializeToString()
            try:
                yield self._read(raw)
            except DecodeError as error:
                self._channel.said = rest
                raise StreamError(grpc.StatusCode.INTERNAL, "Exception deserializing response!") from error
        self._channel.over.set()
        self._cancelled.wait(20)
        raise StreamError(grpc.StatusCode.CANCELLED, "")


SAYINGS: st.SearchStrategy[list[Say]] = st.lists(
    st.one_of(either(pb.ChargeResponse), either(pb.ChargeResponse), st.binary(max_size=30), st.none()), max_size=8
)


@dataclass
class Purchase:
    """One session of a real cable at such a socket."""

    bench: Bench
    says: Sequence[Say]
    is_to_pay: bool = False
    """Not stopped before it has paid, however slow the machine is."""
    paid_msat: int = 0
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session_id = encode_session_id(next(NUMBERS).to_bytes(16, "big"))
        self.start_uwh = self.bench.world.energy_uwh
        self.began = time.monotonic()

    def deliver(self, record: str, payment_hash: str, amount_msat: int) -> SendFailure | None:
        del record, payment_hash
        self.paid_msat += amount_msat
        own_uwh = self.bench.world.energy_uwh - self.start_uwh
        delivered = cost_msat(TARIFF, own_uwh + own_uwh * 2 // 100, 0, True)
        if self.paid_msat - delivered > CAP_MSAT:
            self.broken.append(f"{self.paid_msat} msat paid for {delivered} msat delivered")
        return None

    def run(self) -> Summary | WattlineError:
        bench = self.bench
        bench.listener.lines.clear()
        bench.listener.snapshots.clear()
        wish = bench.wish = StopWish()
        bench.node.deliver = self.deliver
        opening = pb.Opened(
            session_id=self.session_id,
            tariff=pb.Tariff(tariff_id=TARIFF.tariff_id, energy_msat_per_kwh=TARIFF.energy_msat_per_kwh),
            statement=pb.Statement(session_id=self.session_id, sequence=1, state=pb.SESSION_STATE_DELIVERING),
        )
        channel = Channel(self.says, opened=pb.ChargeResponse(opened=opening))
        run = SessionRun(bench.settings, bench.equipment, self.agreement(channel), bench.listener, bench.wish)
        box: Mailbox = run._mailbox
        channel.pause = lambda: until(lambda: len(box) == 0)

        def stop() -> None:
            channel.over.wait(20)
            if self.is_to_pay:
                until(lambda: self.paid_msat > 0, 20)
            wish.want("operator", "seen enough")

        threading.Thread(target=stop, daemon=True).start()
        try:
            return run.run()
        except WattlineError as error:
            return error
        finally:
            channel.over.set()

    def agreement(self, channel: Channel) -> Agreement:
        token = next(NUMBERS).to_bytes(32, "big")
        remembered = CableSession(
            token=token.hex(), address="x:1", node_id=SOCKET_NODE, outlet_id="A1", tariff=TARIFF,
            rated_power_mw=1_400_000, created_at=int(time.time()),
        )  # fmt: skip
        self.bench.ledger.cable_sessions.save(remembered)
        offer = verified(honest_offer())
        opened = OpenedSocket(channel, CERTIFICATE, offer)  # type: ignore[arg-type]
        return Agreement(opened, remembered, pb.Open(token=token), NodeInfo(CABLE_NODE, "regtest", "v26.06.6", 100))


NONCE = bytes(16)
ADDRESS = SocketAddress("x", 1, SOCKET_NODE)


def honest_offer() -> pb.Offer:
    return pb.Offer(
        node_id=SOCKET_NODE,
        certificate_sha256=CERTIFICATE.sha256,
        network="regtest",
        tariff=pb.Tariff(tariff_id=TARIFF.tariff_id, energy_msat_per_kwh=300_000),
        outlets=[pb.Outlet(outlet_id="A1", max_power_mw=1_400_000, available=True)],
        nonce=NONCE,
        expires_at=2**33,
        methods=[pb.METHOD_KEYSEND],
        statement_interval_ms=1_000,
        cable_lost_s=86_400,
    )


def signed(offer: pb.Offer) -> pb.GetOfferResponse:
    content = offer.SerializeToString()
    signature = FakeSigner(SOCKET_NODE).sign(signed_text("offer", content))
    return pb.GetOfferResponse(offer=content, signature=signature)


def verified(offer: pb.Offer) -> Offer:
    return verify_offer(signed(offer), ADDRESS, CERTIFICATE, NONCE, FakeSigner(CABLE_NODE), "regtest")


def until(condition: Callable[[], bool], timeout_s: float = 0.3) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.fixture(scope="module")
def bought(tmp_path_factory: pytest.TempPathFactory, tls: TlsPair) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("cable")
    bench = Bench(folder, tls)
    bench.world.switch(True)
    bench.limits["max_session_msat"] = bench.limits["max_day_msat"] = 10**12
    patch = pytest.MonkeyPatch()
    patch.setattr("wattline.cable.closing.HURRY_MS", 200)
    patch.setattr("wattline.cable.closing.CUT_HURRY_MS", 100)
    yield bench
    patch.undo()
    bench.socket.stop()
    bench.ledger.close()


def prove(bought: Bench, says: list[Say]) -> None:
    died: list[str] = []
    before, threading.excepthook = threading.excepthook, lambda args: died.append(repr(args.exc_value))
    purchase = Purchase(bought, says)
    try:
        outcome = purchase.run()
    finally:
        threading.excepthook = before
    assert died == []
    assert purchase.broken == []
    lines = list(bought.listener.lines)
    assert len(lines) <= LineLimit.LINES + 30
    if isinstance(outcome, Summary):
        lines += [*ending(outcome).split("\n"), *(str(value) for value in asdict(outcome).values())]
        assert outcome.stop_reason != "internal_error"
    else:
        lines += [outcome.code, outcome.message]
    lines += [str(value) for snapshot in bought.listener.snapshots for value in asdict(snapshot).values()]
    for line in lines:
        assert line.isprintable(), repr(line)
        assert len(line) < 2_000


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(SAYINGS)
def test_no_socket_s_message_is_an_internal_error_or_raw_text_or_money(bought: Bench, says: list[Say]) -> None:
    prove(bought, says)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(SAYINGS)
def test_the_same_of_a_hundred_sessions(bought: Bench, says: list[Say]) -> None:
    prove(bought, says)


def test_such_a_session_pays_as_long_as_nothing_impossible_is_said(bought: Bench) -> None:
    """So that the property above is about something."""
    refused = pb.PaymentRefused(code="over_credit_cap", message=EVIL)
    purchase = Purchase(bought, [pb.ChargeResponse(payment_refused=refused)] * 8, is_to_pay=True)
    outcome = purchase.run()
    assert isinstance(outcome, Summary)
    assert outcome.stop_reason == "operator"
    assert purchase.paid_msat > 0
    assert any("\\x1b[2J" in line for line in bought.listener.lines)


@settings(deadline=None, max_examples=60)
@given(st.one_of(fit(pb.Offer), wild(pb.Offer)), st.booleans())
def test_any_signed_offer_is_taken_within_its_ranges_or_refused_in_one_line(offer: pb.Offer, near: bool) -> None:
    if near:
        made = honest_offer()
        made.MergeFrom(offer)
        made.node_id, made.network, made.nonce, made.expires_at = SOCKET_NODE, "regtest", NONCE, 2**33
        made.certificate_sha256 = CERTIFICATE.sha256
        offer = made
    try:
        taken = verified(offer)
    except WattlineError as error:
        told = error
    else:
        assert all(outlet.unavailable_reason.isprintable() for outlet in taken.outlets)
        assert 0 < max((outlet.max_power_mw for outlet in taken.outlets), default=1) <= 10**9
        return
    assert told.message.isprintable()
    assert len(told.message) < 500


@settings(deadline=None, max_examples=60)
@given(st.one_of(fit(pb.Receipt), wild(pb.Receipt)))
def test_any_signed_receipt_is_read_within_its_ranges_or_refused_in_one_line(receipt: pb.Receipt) -> None:
    content = receipt.SerializeToString()
    signature = FakeSigner(SOCKET_NODE).sign(signed_text("receipt", content))
    told: Receipt | WattlineError
    try:
        told = verify_receipt(
            SignedReceipt(content, signature), FakeSigner(CABLE_NODE), SOCKET_NODE, receipt.session_id
        )
    except WattlineError as error:
        told = error
    if isinstance(told, Receipt):
        assert told.stop_reason.isprintable()
    else:
        assert told.message.isprintable()
        assert len(told.message) < 500


def test_a_stream_that_is_cut_and_cut_again_is_given_up_after_the_cable_s_own_time() -> None:
    channel = Channel([None] * 10_000)
    events: list[object] = []
    lost = threading.Event()

    def emit(event: object) -> None:
        events.append(event)
        if type(event).__name__ == "Lost":
            lost.set()

    timing = StreamTiming(lost_after_s=0.3, first_backoff_s=0.01, max_backoff_s=0.05)
    connection = SocketStream(channel, pb.Open(), None, emit, timing)  # type: ignore[arg-type]
    connection.start()
    assert lost.wait(5)
    connection.stop()
