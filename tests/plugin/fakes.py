"""A socket without lightningd: the real shell and a real ledger around a wallet, a journal and hardware in memory.

Nothing flows through the outlet unless a test says so, so that what is paid stays unused to the last msat.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.core.session import samples
from tests.plugin.fake_chain import FakeChain, FakeFunds, psbt_of
from wattline.core.aggregate import Aggregate
from wattline.core.bitcoin.chain import Tx
from wattline.core.clock import Clock
from wattline.core.ids import encode_session_id
from wattline.core.ledger.database import LedgerError, open_database
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.payment import Booked, Booking, Cursor
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.lightning.node import (
    ChannelBalance,
    Hop,
    NodeInfo,
    NodeRefused,
    NodeUnavailable,
    NoRoute,
    PaidInvoice,
    Route,
    SendFailure,
    SendStatus,
    SentPayment,
    onchain_content,
    signed_text,
)
from wattline.core.lightning.notes import LabelledPayment
from wattline.core.record import PREIMAGE_TLV_TYPE, RECORD_TLV_TYPE, encode_bigsize, encode_tlv_stream
from wattline.core.session.session import Session, opened
from wattline.core.session.state import Method, State
from wattline.core.settings import parse_settings
from wattline.device.controller.client import RelayState
from wattline.device.meters.reading import MeterError, Reading
from wattline.device.relays.relay import RelayError
from wattline.plugin.app import NodeParts, build
from wattline.plugin.certificate import Identity
from wattline.plugin.hook import Htlc
from wattline.plugin.limits import Limits
from wattline.plugin.opening import SessionOpener
from wattline.plugin.outlet_hardware import OutletParts
from wattline.plugin.outlet_state import Condition
from wattline.plugin.settings import OnchainSettings, SocketSettings
from wattline.plugin.streams import Stream
from wattline.v1 import charging_pb2 as pb

CAP_MSAT = 100_000
INTERVAL_MS = 20
MSAT_PER_WH = 300
"""At the price that the stall sells for."""
TERMS = replace(samples.TERMS, meter_interval_ms=INTERVAL_MS, min_refund_msat=1000)


def node_id(number: int) -> str:
    """A node id that is a point of the curve, as real ones are."""
    key = ec.derive_private_key(number, ec.SECP256K1()).public_key()
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint).hex()


SOCKET, CABLE = node_id(1), node_id(2)


def session_id(number: int) -> str:
    return encode_session_id(number.to_bytes(16, "big"))


def new_session(number: int = 1, outlet_id: str = "A1") -> Session:
    return opened(session_id(number), outlet_id, Method.KEYSEND, TERMS, now_ms())


def record_of(session: Session, token: bytes = bytes(32), **changes: Any) -> SessionRecord:
    values: dict[str, Any] = {
        "session": session,
        "token_sha256": hashlib.sha256(token).hexdigest(),
        "cable_node_id": CABLE,
        "opened_at": 1000,
    }
    return SessionRecord(**values | changes)


def preimage(number: int) -> bytes:
    return hashlib.sha256(b"preimage %d" % number).digest()


def payment_hash(number: int) -> str:
    return hashlib.sha256(preimage(number)).hexdigest()


def htlc(session: str, number: int, amount_msat: int) -> Htlc:
    """Payment ``number`` as the hook shows it."""
    fields = {
        2: amount_msat.to_bytes(4, "big").lstrip(b"\0"),
        4: b"\x10",
        RECORD_TLV_TYPE: f"wattline:1:{session}:{number}".encode(),
        PREIMAGE_TLV_TYPE: preimage(number),
    }
    stream = encode_tlv_stream(fields)
    return Htlc(payment_hash(number), amount_msat, (encode_bigsize(len(stream)) + stream).hex(), is_forward=False)


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def wait_until(what: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "still waiting"
        threading.Event().wait(0.002)


class WatchedLedger(Ledger):
    """The real ledger, whose disk may be full and whose callers may be held up."""

    def __init__(self, path: Path) -> None:
        super().__init__(open_database(path))
        self.full = False
        self.before_save: Callable[[SessionRecord], None] = lambda _: None
        self.before_look: Callable[[], None] = lambda: None

    def save_session(self, record: SessionRecord) -> None:
        self.before_save(record)
        self._need_room()
        super().save_session(record)

    def book(self, rows: Sequence[Booking], cursor: Cursor) -> Booked:
        self._need_room()
        return super().book(rows, cursor)

    def session_by_token(self, token_sha256: str) -> SessionRecord | None:
        found = super().session_by_token(token_sha256)
        self.before_look()
        return found

    def _need_room(self) -> None:
        if self.full:
            raise LedgerError("ledger_full", "the disk is full")


class WatchedLock:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self, waits: Callable[[], None]) -> None:
        self._lock = threading.RLock()
        self._waits = waits

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._waits()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class FakeWallet:
    """A node that pays as it is told, and keeps a true record."""

    def __init__(self) -> None:
        self.fee_msat = 0
        self.blocked = False
        """No route leads anywhere."""
        self.ending = SendStatus.COMPLETE
        """How a payment ends; PENDING: not yet."""
        self.before_send: Callable[[], None] = lambda: None
        self.sends: list[tuple[str, int]] = []
        """Destination and amount of every payment that was handed over."""
        self.record: dict[str, SentPayment] = {}
        self._labels: dict[str, tuple[str, str, str]] = {}
        """Label, destination and preimage by payment_hash."""
        self.forgets_after_s: int | None = None

    def info(self) -> NodeInfo:
        return NodeInfo(SOCKET, "regtest", "v26.06.6", 100)

    def channels(self) -> Sequence[ChannelBalance]:
        return [ChannelBalance(CABLE, "1x1x1", 10**9, 10**9)]

    def find_route(self, destination: str, amount_msat: int, maxfee_msat: int, final_cltv: int) -> Route:
        if self.blocked or self.fee_msat > maxfee_msat:
            raise NoRoute("no_route", "no way")
        sent_msat = amount_msat + self.fee_msat
        hop = Hop("1x1x1/0", destination, sent_msat, final_cltv, amount_msat, final_cltv)
        return Route(destination, amount_msat, (hop,))

    def send(self, route: Route, payment_hash: str, preimage: str, record: str, label: str) -> None:
        self.before_send()
        self.sends.append((route.destination, route.amount_msat))
        self._labels[payment_hash] = (label, route.destination, preimage)
        self.record[payment_hash] = SentPayment(
            payment_hash, SendStatus.PENDING, route.amount_msat, route.amount_sent_msat, None
        )

    def wait(self, payment_hash: str, timeout_s: float) -> SentPayment | SendFailure | None:
        known = self.sent(payment_hash)
        if known is not None and known.status is SendStatus.FAILED:
            return SendFailure("temporary_channel_failure", "busy", False)
        return known if known is not None and known.status is SendStatus.COMPLETE else None

    def sent(self, payment_hash: str) -> SentPayment | None:
        known = self.record.get(payment_hash)
        if known is not None and known.status is SendStatus.PENDING:
            known = self.record[payment_hash] = replace(known, status=self.ending)
        return known

    def labelled(self) -> Sequence[LabelledPayment]:
        """All that was handed over, made at any time."""
        rows = []
        for payment_hash, (label, destination, preimage) in self._labels.items():
            sent = self.sent(payment_hash)
            assert sent is not None
            if sent.status is SendStatus.COMPLETE:
                sent = replace(sent, preimage=preimage)
            rows.append(LabelledPayment(label, destination, 2**40, sent))
        return rows

    def autoclean(self) -> None:
        """What has arrived is deleted, however new it is."""
        for payment_hash, sent in list(self.record.items()):
            if sent.status is SendStatus.COMPLETE:
                del self.record[payment_hash], self._labels[payment_hash]

    def forgets_sent_after_s(self) -> int | None:
        return self.forgets_after_s


class FakeNotes:
    """What a node keeps for us, and what it has sent by its own record."""

    def __init__(self, wallet: FakeWallet) -> None:
        self._wallet = wallet
        self.notes: dict[str, str] = {}
        self.gone = False
        self.refuses = False
        """Neither told nor written down."""

    def note(self, name: str) -> str | None:
        self._answer()
        self._obey()
        return self.notes.get(name)

    def write_note(self, name: str, text: str) -> None:
        self._answer()
        self._obey()
        self.notes[name] = text

    def sent_since(self, created_at: int) -> Sequence[LabelledPayment]:
        self._answer()
        return [row for row in self._wallet.labelled() if row.created_at >= created_at]

    def _answer(self) -> None:
        if self.gone:
            raise NodeUnavailable("node_unavailable", "connection refused")

    def _obey(self) -> None:
        if self.refuses:
            raise NodeRefused("datastore_refused", "no")


class FakeSigner:
    def __init__(self) -> None:
        self.signed: list[str] = []
        self.gone = False

    def sign(self, message: str) -> str:
        if self.gone:
            raise NodeUnavailable("node_unavailable", "connection refused")
        self.signed.append(message)
        return f"{SOCKET} says {message}"

    def verify(self, message: str, signature: str, node_id: str) -> bool:
        return signature == f"{node_id} says {message}"


class FakeJournal:
    """The node's paid invoices."""

    def __init__(self) -> None:
        self.rows: list[PaidInvoice] = []
        self.reads = 0
        self.gone = False

    def paid_since(self, updated_index: int, limit: int) -> Sequence[PaidInvoice]:
        if self.gone:
            raise NodeUnavailable("node_unavailable", "connection refused")
        self.reads += 1
        return [row for row in self.rows if row.updated_index > updated_index][:limit]

    def takes_keysend(self) -> bool:
        return True

    def add(self, session: str, number: int, amount_msat: int, **changes: Any) -> PaidInvoice:
        """Payment ``number`` was received for ``session``; its index follows the last one's."""
        last = self.rows[-1] if self.rows else None
        values: dict[str, Any] = {
            "updated_index": last.updated_index + 1 if last else 1,
            "pay_index": (last.pay_index or 0) + 1 if last else 1,
            "label": f"keysend-1700000000.{number}",
            "description": f"keysend: wattline:1:{session}:{number}",
            "payment_hash": payment_hash(number),
            "amount_received_msat": amount_msat,
            "paid_at": 2000 + number,
            "is_paid": True,
        }
        row = PaidInvoice(**values | changes)
        self.rows.append(row)
        return row


class Hardware:
    """Meter and relay of one outlet."""

    def __init__(self) -> None:
        self.energy_uwh = 5_000_000
        self.closed = False
        self.stuck = False
        """The relay does not open."""
        self.opens = 0
        """How often it was told to."""
        self.meter_error: MeterError | None = None
        self.open_error: RelayError | None = None

    def read(self) -> Reading:
        if self.meter_error is not None:
            raise self.meter_error
        return Reading(self.energy_uwh, 0, 48_000, 0, now_ms())

    def close(self) -> None:
        """The meter's bus."""

    def hold(self, outlet_id: str, lease_ms: int) -> RelayState:
        self.closed = True
        return self._state(outlet_id)

    def open(self, outlet_id: str) -> RelayState:
        self.opens += 1
        if self.open_error is not None:
            raise self.open_error
        self.closed = self.stuck and self.closed
        return self._state(outlet_id)

    def _state(self, outlet_id: str) -> RelayState:
        return RelayState(outlet_id, self.closed, confirmed=True, at_ms=now_ms(), lease_ends_ms=None, fault="")


def parts_of(hardware: Hardware) -> OutletParts:
    return OutletParts(lambda: hardware, hardware)


def socket_settings(min_increment_msat: int = 10) -> SocketSettings:
    """Of the stall: one outlet, A1."""
    return parse_settings(
        {
            "outlet": [
                {
                    "outlet_id": "A1",
                    "max_power_w": 1,
                    "meter": {
                        "driver": "ina228",
                        "bus": 1,
                        "address": 0x40,
                        "shunt_ohms": 0.001,
                        "max_current_a": 40.0,
                    },
                    "relay": {"driver": "gpio", "chip": "/dev/gpiochip0", "line": 17, "active_low": False},
                }
            ],
            "session": {"meter_interval_ms": INTERVAL_MS, "credit_cap_msat": CAP_MSAT},
            "payment": {"min_increment_msat": min_increment_msat},
        },
        SocketSettings,
        "the test",
    )


class Stall:
    """A socket with one outlet, A1, but for threads that work at their own pace: the journal is read, sessions are
    saved and refunds are retried when a test says so, or the end of a session needs it."""

    def __init__(
        self,
        path: Path,
        *,
        settles: bool = True,
        drain_timeout_s: float = 30.0,
        takes_onchain: bool = False,
        node_on: Callable[[FakeChain], Any] | None = None,
    ) -> None:
        """``node_on``: what makes the node that signs, pays and holds the funds (tests.plugin.judged_node); else they
        are in memory. Unless it ``settles``, what is SETTLING stays so."""
        rules = OnchainSettings(enabled=takes_onchain, watch_interval_ms=50, final_timeout_s=5, confirmations=1)
        settings = socket_settings()
        payment = settings.payment.model_copy(update={"drain_timeout_s": drain_timeout_s})
        self.settings = settings.model_copy(update={"onchain": rules, "payment": payment})
        self.ledger = WatchedLedger(path / "socket.sqlite3")
        self.wallet, self.signer, self.journal, self.hardware = FakeWallet(), FakeSigner(), FakeJournal(), Hardware()
        self.chain = FakeChain()
        self.funds = FakeFunds(self.chain)
        node = node_on(self.chain) if node_on is not None else None
        self.node: Any = node
        parts = NodeParts(
            Identity(SOCKET, "regtest", bytes(32)),
            self.wallet if node is None else node.lightning,
            self.signer if node is None else node.lightning,
            self.journal,
            FakeNotes(self.wallet),
            self.funds if node is None else node.funds,
        )
        chain = self.chain if takes_onchain else None
        self.app = app = build(self.settings, self.ledger, parts, chain, {"A1": parts_of(self.hardware)}, Clock())
        app.older_copy.look()
        app.ready.set()
        if not settles:
            app.closer.stop()
        self.outlet = app.outlets["A1"]

    def __enter__(self) -> Stall:
        self.outlet.start()
        wait_until(lambda: self.outlet.view.condition is Condition.AVAILABLE)
        onchain = self.app.onchain
        if onchain is not None:
            onchain.start()
            wait_until(lambda: not onchain.trouble)
        return self

    def __exit__(self, *_: object) -> None:
        if self.app.onchain is not None:
            self.app.onchain.stop()
        self.app.closer.stop()
        self.app.refunds.stop()
        self.outlet.stop()
        self.ledger.close()

    @property
    def opener(self) -> SessionOpener:
        return self.app.requests._opener

    def limit(self, limits: Limits) -> None:
        """Count by these from now on."""
        vars(self.app.requests)["_limits"] = vars(self.opener)["_limits"] = limits

    # What a cable does.

    def request(self, token: bytes = bytes(32), **changes: Any) -> pb.Open:
        values: dict[str, Any] = {
            "token": token,
            "outlet_id": "A1",
            "tariff_id": self.app.prices.current.tariff_id,
            "method": pb.METHOD_KEYSEND,
            "cable_node_id": CABLE,
            "socket_node_id": SOCKET,
        }
        return pb.Open(**values | changes)

    def open(self, token: bytes = bytes(32)) -> str:
        """The id of a session opened with ``token``."""
        return hello(self.app.requests.open(self.request(token))).session_id

    def let_pass(self, session: str, number: int, amount_msat: int) -> None:
        """Payment ``number`` passes the hook."""
        assert self.app.reservations.reserve(
            payment_hash(number), session, amount_msat, lambda flying: self._takes(session, amount_msat, flying)
        )

    def _takes(self, session: str, amount_msat: int, in_flight_msat: int) -> bool:
        return self.app.crediting.refusal(session, amount_msat, in_flight_msat) is None

    def credit(self, session: str, number: int, amount_msat: int) -> None:
        """Payment ``number`` passes the hook, is received and is credited; the journal does not show it yet."""
        before_msat = self.session.account.credited_msat
        self.let_pass(session, number, amount_msat)
        assert self.app.crediting.paid(payment_hash(number), amount_msat) == session
        self.app.journal.told(session, payment_hash(number), amount_msat)
        wait_until(lambda: self.session.account.credited_msat == before_msat + amount_msat)

    def pay(self, session: str, number: int, amount_msat: int) -> None:
        """Payment ``number`` is received, credited and booked."""
        self.credit(session, number, amount_msat)
        self.journal.add(session, number, amount_msat)
        self.app.journal.read_to_end()

    def ask_for_address(self, session: str, sign: Callable[[str, str], str] | None = None) -> Aggregate:
        """What the cable is to pay to on the chain. ``sign``: the signature of a text by a node; else it is the fake
        signer's."""
        text = signed_text("onchain", onchain_content(SOCKET, session))
        signature = sign(text, CABLE) if sign is not None else f"{CABLE} says {text}"
        self.app.requests.onchain_request(session, pb.OnchainRequest(signature=signature))
        aggregate = self.ledger.aggregate(session)
        assert aggregate is not None, "it was refused"
        return aggregate

    def hand_over(self, session: str, number: int, tx: Tx) -> None:
        self.app.requests.aggregate_version(session, pb.AggregateVersion(number=number, psbt=psbt_of(tx)))

    def deliver(self, amount_msat: int) -> None:
        """Energy worth so much flows and is charged."""
        wait_until(lambda: self.hardware.closed)
        self.hardware.energy_uwh += amount_msat * 10**6 // MSAT_PER_WH
        wait_until(lambda: self.session.account.charged_msat >= amount_msat)

    # What there is to see.

    @property
    def session(self) -> Session:
        """The one that has the outlet, or else the first that waits for it."""
        view = self.outlet.view
        assert view.session is not None or view.waiting, "the outlet is free"
        return view.session or view.waiting[0]

    def is_over(self, session: str) -> bool:
        """Closed, with a receipt, and the outlet is free."""
        if self.app.sessions.outlet_of(session) is not None or self.outlet.view.of(session) is not None:
            return False
        record = self.ledger.session(session)
        return record is not None and record.session.state is State.CLOSED

    def receipt(self, session: str) -> pb.Receipt:
        record = self.ledger.session(session)
        saved = self.ledger.receipt(session)
        assert record is not None
        assert saved is not None or not record.session.was_paid, "no receipt"
        return pb.Receipt.FromString(saved.content if saved is not None else self.app.receipts.newest(record).receipt)


def hello(stream: Stream) -> pb.Opened:
    """What a stream begins with."""
    message = next(iter(stream))
    assert message.HasField("opened"), message
    return message.opened
