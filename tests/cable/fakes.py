"""A socket, a wallet and a meter that do what a test tells them, on real gRPC over TLS and a real ledger."""

from __future__ import annotations

import datetime
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cable.fake_funds import FakeAggregate, address_of, rules_message, script_of
from wattline.core.aggregate import OnchainRules, final_value_sat
from wattline.core.bitcoin.psbt import unsigned_tx
from wattline.core.lightning.node import (
    ChannelBalance,
    Hop,
    NodeInfo,
    NodeUnavailable,
    NoRoute,
    PaidInvoice,
    Route,
    SendFailure,
    SendStatus,
    SentPayment,
)
from wattline.core.lightning.notes import LabelledPayment
from wattline.core.lightning.onion import payment_hash_of
from wattline.core.tariff import Tariff, cost_msat, worth_msat
from wattline.device.meters.reading import MeterError, Reading
from wattline.v1 import charging_pb2 as pb
from wattline.v1 import charging_pb2_grpc as pb_grpc

SOCKET_NODE = "02" + "51" * 32
CABLE_NODE = "03" + "ca" * 32
SESSION_IDS = tuple(f"{number:026d}" for number in range(1, 6))
TICK_S = 0.02


def fake_signature(message: str, node_id: str) -> str:
    return hashlib.sha256(f"{node_id}:{message}".encode()).hexdigest()


@dataclass(frozen=True)
class TlsPair:
    key_pem: bytes
    certificate_pem: bytes
    sha256: bytes


def make_certificate(name: str = "wattline") -> TlsPair:
    """A self-signed certificate as a socket makes one."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return TlsPair(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate.public_bytes(serialization.Encoding.PEM),
        certificate.fingerprint(hashes.SHA256()),
    )


class FakeSigner:
    """Signs for one node, verifies for all."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id

    def sign(self, message: str) -> str:
        return fake_signature(message, self.node_id)

    def verify(self, message: str, signature: str, node_id: str) -> bool:
        return signature == fake_signature(message, node_id)


class World:
    """Energy flows through the socket's relay into the cable, at a power that the test sets."""

    def __init__(self, power_mw: int = 1_300_000) -> None:
        self._lock = threading.Lock()
        self._power_mw = power_mw
        self._closed = False
        self._energy_nj = 0
        self._at = time.monotonic()
        self.cable_factor = 1.0
        """What the cable's meter shows of what flows."""

    def _advance(self) -> None:
        now = time.monotonic()
        if self._closed:
            self._energy_nj += int(self._power_mw * (now - self._at) * 1_000_000)
        self._at = now

    def switch(self, closed: bool) -> None:
        with self._lock:
            self._advance()
            self._closed = closed

    def set_power(self, power_mw: int) -> None:
        with self._lock:
            self._advance()
            self._power_mw = power_mw

    @property
    def energy_uwh(self) -> int:
        with self._lock:
            self._advance()
            return self._energy_nj // 3_600_000

    @property
    def power_mw(self) -> int:
        with self._lock:
            return self._power_mw if self._closed else 0


class FakeMeter:
    """The cable's own meter in a world; ``error`` is raised by the next read."""

    def __init__(self, world: World, base_uwh: int = 7_000_000) -> None:
        self.world = world
        self.base_uwh = base_uwh
        self.voltage_mv = 48_000
        self.error: MeterError | None = None
        self.is_closed = False

    def read(self) -> Reading:
        if self.error is not None:
            raise self.error
        energy = self.base_uwh + int(self.world.energy_uwh * self.world.cable_factor)
        power = self.world.power_mw
        return Reading(energy, power, self.voltage_mv, power // 48, time.monotonic_ns() // 1_000_000)

    def close(self) -> None:
        self.is_closed = True


class FakeLightning(FakeSigner):
    """The cable's node: a Wallet, Signer and Journal with one direct channel. What it sends reaches ``deliver``."""

    def __init__(self, deliver: Callable[[str, str, int], SendFailure | None]) -> None:
        super().__init__(CABLE_NODE)
        self.network = "regtest"
        self.deliver = deliver
        self.fee_msat = 0
        self.height = 100
        self.largest_msat = 10**9
        self.has_keysend = True
        self.smallest_msat = 1
        """A channel on the way carries no less."""
        self.delay_s = 0.01
        self.is_down = False
        self.hold = threading.Event()
        self.hold.set()
        """Cleared: payments are taken but not resolved."""
        self.held: list[str] = []
        """The payment hashes of those that found it cleared."""
        self.lost_sends = 0
        """So many sends die on their way into the node: it never hears of them."""
        self.sends: list[tuple[str, int, str]] = []
        self.results: dict[str, SentPayment | SendFailure] = {}
        self.invoices: list[PaidInvoice] = []
        self._lock = threading.Lock()

    def info(self) -> NodeInfo:
        self._check()
        return NodeInfo(self.node_id, self.network, "v26.06.6", self.height)

    def check_version(self) -> NodeInfo:
        return self.info()

    def takes_keysend(self) -> bool:
        self._check()
        return self.has_keysend

    def channels(self) -> Sequence[ChannelBalance]:
        self._check()
        return [ChannelBalance(SOCKET_NODE, "1x1x1", 10**8, 10**8)]

    def find_route(self, destination: str, amount_msat: int, maxfee_msat: int, final_cltv: int) -> Route:
        self._check()
        if not self.smallest_msat <= amount_msat <= self.largest_msat:
            raise NoRoute("no_route", f"no single route for {amount_msat} msat")
        if self.fee_msat > maxfee_msat:
            raise NoRoute("route_too_expensive", f"no route within {maxfee_msat} msat")
        sent = amount_msat + self.fee_msat
        return Route(destination, amount_msat, (Hop("1x1x1/0", destination, sent, 60, amount_msat, 50),))

    def send(self, route: Route, payment_hash: str, preimage: str, record: str, label: str) -> None:
        self._check()
        assert payment_hash == payment_hash_of(preimage)
        assert record == label
        with self._lock:
            if self.lost_sends:
                self.lost_sends -= 1
                self.is_down = True
                raise NodeUnavailable("node_unavailable", "lightningd went away")
            if payment_hash in self.results or any(payment_hash == item[0] for item in self.sends):
                return
            self.sends.append((payment_hash, route.amount_msat, record))
        threading.Thread(target=self._carry, args=(route, payment_hash, preimage, record), daemon=True).start()

    def _carry(self, route: Route, payment_hash: str, preimage: str, record: str) -> None:
        time.sleep(self.delay_s)
        if not self.hold.is_set():
            self.held.append(payment_hash)
        self.hold.wait(30)
        failure: SendFailure | None = SendFailure("temporary_channel_failure", "Capacity exceeded", False)
        if route.amount_msat <= self.largest_msat:
            failure = self.deliver(record, payment_hash, route.amount_msat)
        with self._lock:
            self.results[payment_hash] = failure or SentPayment(
                payment_hash, SendStatus.COMPLETE, route.amount_msat, route.amount_sent_msat, preimage
            )

    def wait(self, payment_hash: str, timeout_s: float) -> SentPayment | SendFailure | None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._check()
            with self._lock:
                if payment_hash in self.results:
                    return self.results[payment_hash]
            time.sleep(0.002)
        return None

    def forgets_sent_after_s(self) -> int | None:
        return None

    def sent(self, payment_hash: str) -> SentPayment | None:
        self._check()
        with self._lock:
            amount = next((item[1] for item in self.sends if item[0] == payment_hash), None)
            result = self.results.get(payment_hash)
        if amount is None:
            return None
        if isinstance(result, SentPayment):
            return result
        status = SendStatus.FAILED if isinstance(result, SendFailure) else SendStatus.PENDING
        return SentPayment(payment_hash, status, amount, amount + self.fee_msat, None)

    def sent_since(self, created_at: int) -> Sequence[LabelledPayment]:
        """All that was handed over, as if it were just now."""
        self._check()
        with self._lock:
            sends = list(self.sends)
        rows = [(label, self.sent(payment_hash)) for payment_hash, _, label in sends]
        return [LabelledPayment(label, SOCKET_NODE, int(time.time()), sent) for label, sent in rows if sent is not None]

    def paid_since(self, updated_index: int, limit: int) -> Sequence[PaidInvoice]:
        self._check()
        return [row for row in self.invoices if row.updated_index > updated_index][:limit]

    def receive(self, description: str, amount_msat: int) -> None:
        number = len(self.invoices) + 1
        self.invoices.append(
            PaidInvoice(number, number, f"keysend-{number}", description, f"{number:064x}", amount_msat, 1, True)
        )

    def _check(self) -> None:
        if self.is_down:
            raise NodeUnavailable("node_unavailable", "lightningd does not answer")


@dataclass
class Account:
    """One session at the fake socket."""

    session_id: str
    token: bytes
    tariff: Tariff
    outlet_id: str
    credited: int = 0
    payments: int = 0
    refunded: int = 0
    onchain: FakeAggregate | None = None
    base_uwh: int = 0
    delivered_ms: int = 0
    state: int = pb.SESSION_STATE_OPEN
    stop_reason: str = ""
    cable_reason: str = ""
    sequence: int = 0
    receipt: pb.SignedReceipt | None = None
    final_charge: int = 0
    method: int = pb.METHOD_KEYSEND
    outbox: list[queue.SimpleQueue[pb.ChargeResponse | None]] = field(default_factory=list)


class Signing(Protocol):
    """A node that signs for itself."""

    node_id: str

    def sign(self, message: str) -> str: ...


class FakeSocket(pb_grpc.ChargingServiceServicer):
    """A socket that sells honestly, except where a test sets one of the ``lie_*`` hooks."""

    def __init__(self, world: World, tls: TlsPair, signer: Signing | None = None) -> None:
        self.world = world
        self.signer = signer or FakeSigner(SOCKET_NODE)
        self.node_id = self.signer.node_id
        self.new_address: Callable[[], tuple[str, str]] = self._fake_address
        """Address and script of the next session's aggregate."""
        self.delivers = True
        """False: nothing flows any more, whatever was paid."""
        self.is_away = False
        """It answers nobody."""
        self.tick_s = TICK_S
        self.statement_interval_ms = 100
        """Named in offers; where it is longer, what changes no state is told as seldom."""
        self._told: dict[str, tuple[int, float]] = {}
        """Between two statements."""
        self.certificate_sha256 = tls.sha256
        self.tariff = Tariff.of(300_000)
        self.network = "regtest"
        self.rated_power_mw = 1_400_000
        self.available = True
        self.methods = [pb.METHOD_KEYSEND]
        self.credit_cap_msat = 100_000
        self.min_increment_msat = 10
        self.cable_lost_s = 5
        self.valid_s = 60
        self.sessions: dict[str, Account] = {}
        self.meter_values: list[pb.MeterValue] = []
        self.opens: list[pb.Open] = []
        self.resumes = 0
        self.orders: list[tuple[str, str]] = []
        self.refuse_open: list[pb.Refusal] = []
        self.refuse_payments: tuple[str, str] | None = None
        self.sign_node = self.node_id
        self.lie_offer: Callable[[pb.Offer], None] = lambda offer: None
        self.lie_statement: Callable[[pb.Statement], None] = lambda statement: None
        self.lie_receipt: Callable[[pb.Receipt], None] = lambda receipt: None
        self.lie_tariff: Tariff | None = None
        self.sends_receipt = True
        self.answers_resume = True
        self.offer_error = ""
        self.refund_to: Callable[[str, int], None] = lambda description, amount: None
        self.min_refund_msat = 1
        self.peak_balance = 0
        self.onchain_rules: OnchainRules | None = None
        """None: nothing is taken on-chain."""
        self.refuse_versions: Callable[[int, int], tuple[str, str] | None] = lambda number, value_sat: None
        """By number and value; code and message."""
        self.loses_versions = 0
        """So many versions never arrive."""
        self.loses_answers = 0
        """So many are stored, but their answer never arrives."""
        self.lie_invitation: Callable[[pb.OnchainInvitation], None] = lambda invitation: None
        self.lie_final: Callable[[pb.FinalDue], None] = lambda due: None
        self.final_timeout_s = 3.0
        self.refuses_finals = False
        """As a socket whose bitcoind is away."""
        self.swallows_finals = False
        """As one that means to have the newest mined: it never says that it has the final one."""
        self.gives_receipt = True
        self.versions: list[tuple[int, int, bool]] = []
        """Number, value in sat and whether it is final, of every version that reached it."""
        self.signatures: list[str] = []
        self._awaited: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self._paid_hashes: set[str] = set()
        self._lock = threading.RLock()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_ChargingServiceServicer_to_server(self, self._server)
        credentials = grpc.ssl_server_credentials([(tls.key_pem, tls.certificate_pem)])
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()
        self._stopping = threading.Event()
        self._loop = threading.Thread(target=self._run, daemon=True)
        self._loop.start()

    def stop(self) -> None:
        self._stopping.set()
        for account in self.sessions.values():
            for outbox in account.outbox:
                outbox.put(None)
        self._server.stop(0).wait()
        self._loop.join(5)

    @property
    def address(self) -> str:
        return f"{self.node_id}@127.0.0.1:{self.port}"

    @property
    def session(self) -> Account:
        """The newest session."""
        return list(self.sessions.values())[-1]

    # What the protocol asks for.

    def GetOffer(self, request: pb.GetOfferRequest, context: Any) -> pb.GetOfferResponse:  # noqa: N802
        if self.offer_error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.offer_error)
        if self.is_away:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        offer = pb.Offer(
            node_id=self.sign_node,
            certificate_sha256=self.certificate_sha256,
            network=self.network,
            tariff=_tariff(self.tariff),
            outlets=[
                pb.Outlet(
                    outlet_id="A1",
                    max_power_mw=self.rated_power_mw,
                    available=self.available,
                    unavailable_reason="" if self.available else "in use",
                )
            ],
            nonce=request.nonce,
            expires_at=int(time.time()) + self.valid_s,
            methods=self.methods,
            credit_cap_msat=self.credit_cap_msat,
            min_increment_msat=self.min_increment_msat,
            statement_interval_ms=self.statement_interval_ms,
            pause_max_s=5,
            open_timeout_s=5,
            cable_lost_s=self.cable_lost_s,
            min_refund_msat=self.min_refund_msat,
            onchain=rules_message(self.onchain_rules) if self.onchain_rules is not None else None,
        )
        self.lie_offer(offer)
        content = offer.SerializeToString(deterministic=True)
        text = f"wattline:offer:1:{hashlib.sha256(content).hexdigest()}"
        return pb.GetOfferResponse(offer=content, signature=self.signer.sign(text))

    def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.GetReceiptResponse:  # noqa: N802
        account = self.sessions.get(request.session_id)
        if account is None or account.receipt is None or account.token != request.token:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "unknown_session: no receipt")
        assert account is not None
        return pb.GetReceiptResponse(receipt=account.receipt)

    def Charge(self, request_iterator: Iterator[pb.ChargeRequest], context: Any) -> Iterator[pb.ChargeResponse]:  # noqa: N802
        first = next(request_iterator)
        with self._lock:
            answer = self._begin(first)
            if isinstance(answer, pb.Refusal):
                yield pb.ChargeResponse(refusal=answer)
                return
            account, resumed = answer
        if resumed and not self.answers_resume:
            self._stopping.wait(30)
            return
        with self._lock:
            outbox: queue.SimpleQueue[pb.ChargeResponse | None] = queue.SimpleQueue()
            account.outbox.append(outbox)
            opened = pb.Opened(
                session_id=account.session_id,
                tariff=_tariff(self.lie_tariff or account.tariff),
                statement=self._statement(account),
                resumed=resumed,
            )
        context.add_callback(lambda: outbox.put(None))
        threading.Thread(target=self._listen, args=(request_iterator, account), daemon=True).start()
        yield pb.ChargeResponse(opened=opened)
        while (message := outbox.get()) is not None:
            yield message
            if message.WhichOneof("message") in ("receipt", "refusal"):
                return

    def _begin(self, first: pb.ChargeRequest) -> tuple[Account, bool] | pb.Refusal:
        if self.refuse_open:
            return self.refuse_open.pop(0)
        if first.WhichOneof("message") == "resume":
            self.resumes += 1
            known = self.sessions.get(first.resume.session_id)
            if known is None or known.token != first.resume.token or known.state == pb.SESSION_STATE_CLOSED:
                return pb.Refusal(code="unknown_session", message="no such session")
            return known, True
        self.opens.append(first.open)
        for known in self.sessions.values():
            if known.token == first.open.token and known.state != pb.SESSION_STATE_CLOSED:
                return known, True
        account = Account(SESSION_IDS[len(self.sessions)], first.open.token, self.tariff, first.open.outlet_id)
        account.base_uwh = self.world.energy_uwh
        account.method = first.open.method
        self.sessions[account.session_id] = account
        return account, False

    def _listen(self, requests: Iterator[pb.ChargeRequest], account: Account) -> None:
        try:
            for request in requests:
                match request.WhichOneof("message"):
                    case "meter_value":
                        self.meter_values.append(request.meter_value)
                    case "close":
                        # Not in this thread: the final version comes by this very stream.
                        closing = (account, "cable_closed", request.close.reason)
                        threading.Thread(target=self.close_session, args=closing, daemon=True).start()
                    case "onchain_request":
                        self._invite(account, request.onchain_request.signature)
                    case "aggregate_version":
                        self._take_version(account, request.aggregate_version)
        except grpc.RpcError:
            return

    # What a test does to it.

    def take_payment(self, record: str, payment_hash: str, amount_msat: int) -> SendFailure | None:
        """A payment reaches the socket's node."""
        _, _, session_id, sequence = record.split(":")
        with self._lock:
            if payment_hash in self._paid_hashes:
                raise AssertionError("paid twice")
            account = self.sessions.get(session_id)
            refused = self.refuse_payments
            if account is None or account.state in (pb.SESSION_STATE_SETTLING, pb.SESSION_STATE_CLOSED):
                refused = ("session_closed", "the session is closed")
            if refused is not None:
                if account is not None:
                    self._send(
                        account,
                        pb.ChargeResponse(
                            payment_refused=pb.PaymentRefused(
                                payment_hash=payment_hash, amount_msat=amount_msat, code=refused[0], message=refused[1]
                            )
                        ),
                    )
                return SendFailure("incorrect_or_unknown_payment_details", "failed at the destination", True)
            assert account is not None
            self._paid_hashes.add(payment_hash)
            self.orders.append((session_id, sequence))
            account.credited += amount_msat
            account.payments += 1
            self.peak_balance = max(self.peak_balance, account.credited - self._charged(account))
        return None

    def cut_streams(self) -> None:
        with self._lock:
            for account in self.sessions.values():
                for outbox in account.outbox:
                    outbox.put(None)
                account.outbox.clear()

    def _invite(self, account: Account, signature: str) -> None:
        with self._lock:
            self.signatures.append(signature)
            rules = self.onchain_rules
            if rules is None:
                refused = pb.VersionRefused(number=0, code="onchain_unavailable", message="not just now")
                self._send(account, pb.ChargeResponse(version_refused=refused))
                return
            if account.onchain is None:
                account.onchain = FakeAggregate(*self.new_address())
            aggregate = account.onchain
            invitation = pb.OnchainInvitation(
                address=aggregate.address,
                script=aggregate.script,
                rules=rules_message(rules),
                newest_number=aggregate.number,
                newest_value_sat=aggregate.value_sat,
            )
            self.lie_invitation(invitation)
            self._send(account, pb.ChargeResponse(onchain_invitation=invitation))

    def _fake_address(self) -> tuple[str, str]:
        name = f"socket-{len(self.sessions)}"
        return address_of(name), script_of(name)

    def _take_version(self, account: Account, version: pb.AggregateVersion) -> None:
        with self._lock:
            tx = unsigned_tx(version.psbt)
            assert account.onchain is not None
            aggregate = account.onchain
            value_sat = tx.paid_to(aggregate.script)
            if self.loses_versions:
                self.loses_versions -= 1
                return
            self.versions.append((version.number, value_sat, version.is_final))
            aggregate.psbts[tx.txid] = version.psbt
            if version.is_final and self.swallows_finals:
                return
            refused = self._refusal(account, aggregate, version, value_sat, tx.txid)
            if refused is not None:
                answer = pb.VersionRefused(number=version.number, code=refused[0], message=refused[1])
                self._send(account, pb.ChargeResponse(version_refused=answer))
                return
            if aggregate.txids.get(version.number) != tx.txid:
                aggregate.txids[version.number] = tx.txid
                aggregate.held[tx.txid] = (value_sat, tx)
                if version.is_final:
                    aggregate.final_sat = value_sat
                    aggregate.final_came.set()
                else:
                    account.credited += (value_sat - aggregate.value_sat) * 1000
                    account.payments += 1
                    aggregate.number, aggregate.value_sat = version.number, value_sat
                    self.peak_balance = max(self.peak_balance, account.credited - self._charged(account))
            if self.loses_answers:
                self.loses_answers -= 1
                return
            accepted = pb.VersionAccepted(number=version.number, value_sat=value_sat, is_final=version.is_final)
            self._send(account, pb.ChargeResponse(version_accepted=accepted))

    def _refusal(
        self, account: Account, aggregate: FakeAggregate, version: pb.AggregateVersion, value_sat: int, txid: str
    ) -> tuple[str, str] | None:
        """As the real socket: a version told again is known."""
        if aggregate.txids.get(version.number) == txid:
            return None
        if version.number != aggregate.number + 1:
            return "bad_version", f"the next version has number {aggregate.number + 1}"
        if version.is_final and self.refuses_finals:
            return "onchain_unavailable", "the socket cannot look at the chain just now"
        if version.is_final:
            return None if value_sat == aggregate.due_sat else ("wrong_output", "another value is wanted")
        if account.state in (pb.SESSION_STATE_SETTLING, pb.SESSION_STATE_CLOSED):
            return "session_closed", "the session is closed"
        if value_sat <= aggregate.value_sat:
            return "value_not_larger", f"{aggregate.value_sat} sat before"
        assert self.onchain_rules is not None
        unused = account.credited - self._charged(account) + (value_sat - aggregate.value_sat) * 1000
        if unused > self.onchain_rules.credit_cap_sat * 1000:
            return "credit_cap", "too much unused credit"
        if value_sat > self.onchain_rules.exposure_cap_sat:
            return "exposure_cap", "too much in all"
        return self.refuse_versions(version.number, value_sat)

    def when(self, is_so: Callable[[], bool], act: Callable[[], None]) -> None:
        """Do something in the very moment when something else has become true."""
        with self._lock:
            self._awaited.append((is_so, act))

    def charged_msat(self, account: Account) -> int:
        """What the session owes by now."""
        with self._lock:
            return self._charged(account)

    def disown_newest(self, account: Account) -> None:
        """Forget the newest version, as if it had never come."""
        aggregate = account.onchain
        assert aggregate is not None
        with self._lock:
            lost_sat = aggregate.value_sat
            aggregate.txids.pop(aggregate.number)
            aggregate.number -= 1
            aggregate.value_sat = aggregate.held[aggregate.txids[aggregate.number]][0]
            account.credited -= (lost_sat - aggregate.value_sat) * 1000
            account.payments -= 1

    def flood(self, account: Account, count: int) -> None:
        """Say whatever can be said of an aggregate, over and over, of versions that never were."""
        aggregate = account.onchain
        assert aggregate is not None
        assert self.onchain_rules is not None
        for n in range(1_000, 1_000 + count):
            for message in (
                pb.ChargeResponse(version_accepted=pb.VersionAccepted(number=n, value_sat=n)),
                pb.ChargeResponse(version_accepted=pb.VersionAccepted(number=n, value_sat=n, is_final=True)),
                pb.ChargeResponse(version_refused=pb.VersionRefused(number=n, code="policy", message=f"no {n}")),
                pb.ChargeResponse(
                    onchain_invitation=pb.OnchainInvitation(
                        address=aggregate.address,
                        script=aggregate.script,
                        rules=rules_message(self.onchain_rules),
                        newest_number=aggregate.number,
                        newest_value_sat=aggregate.value_sat,
                    )
                ),
                pb.ChargeResponse(final_due=pb.FinalDue(value_sat=n, charged_msat=n, keysend_msat=n)),
            ):
                self._send(account, message)

    def close_session(self, account: Account, reason: str, cable_reason: str = "", due_at_once: int = 1) -> None:
        """``due_at_once``: so often it asks for the final version at a time."""
        with self._lock:
            if account.state in (pb.SESSION_STATE_CLOSED, pb.SESSION_STATE_SETTLING):
                return
            self.world.switch(False)
            account.stop_reason, account.cable_reason = reason, cable_reason
            charged = self._charged(account)
            account.state = pb.SESSION_STATE_SETTLING
            account.final_charge = charged
        self._ask_for_final(account, due_at_once)
        with self._lock:
            self._close(account)

    def _ask_for_final(self, account: Account, due_at_once: int) -> None:
        """Asked every now and then, as the real socket does."""
        aggregate = account.onchain
        if aggregate is None or not aggregate.number or self.onchain_rules is None:
            return
        keysend = account.credited - aggregate.value_sat * 1000
        aggregate.due_sat = final_value_sat(account.final_charge, keysend, self.onchain_rules.floor_sat)
        if aggregate.due_sat == 0 or aggregate.due_sat >= aggregate.value_sat:
            return
        due = pb.FinalDue(value_sat=aggregate.due_sat, charged_msat=account.final_charge, keysend_msat=keysend)
        self.lie_final(due)
        deadline = time.monotonic() + self.final_timeout_s
        while time.monotonic() < deadline:
            for _ in range(due_at_once):
                self._send(account, pb.ChargeResponse(final_due=due))
            if aggregate.final_came.wait(0.1):
                return

    def _close(self, account: Account) -> None:
        account.state = pb.SESSION_STATE_CLOSED
        charged, aggregate = account.final_charge, account.onchain
        returned, value_sat, txid = 0, 0, ""
        if aggregate is not None and aggregate.number:
            value_sat = aggregate.final_sat or (aggregate.value_sat if aggregate.due_sat else 0)
            returned = (aggregate.value_sat - value_sat) * 1000
            number = aggregate.number + 1 if aggregate.final_sat else aggregate.number
            txid = aggregate.txids[number] if value_sat else ""
            aggregate.chosen = txid
        unused = account.credited - charged - returned
        account.refunded = returned
        status = pb.REFUND_STATUS_NONE
        if unused > 0 and unused >= self.min_refund_msat:
            account.refunded, status = returned + unused, pb.REFUND_STATUS_SENT
            self.refund_to(f"keysend: wattline:1:{account.session_id}:0", unused)
        elif unused > 0:
            status = pb.REFUND_STATUS_KEPT
        receipt = pb.Receipt(
            session_id=account.session_id,
            node_id=self.node_id,
            outlet_id=account.outlet_id,
            cable_node_id=CABLE_NODE,
            method=account.method,  # type: ignore[arg-type]
            tariff=_tariff(account.tariff),
            stop_reason=account.stop_reason,
            energy_uwh=self.world.energy_uwh - account.base_uwh,
            delivered_ms=account.delivered_ms,
            credited_msat=account.credited,
            charged_msat=charged,
            refunded_msat=account.refunded,
            balance_msat=account.credited - charged - account.refunded,
            payments=account.payments,
            refund_status=status,
            onchain_credited_msat=aggregate.value_sat * 1000 if aggregate is not None else 0,
            returned_msat=returned,
            onchain_txid=txid,
            onchain_value_sat=value_sat,
        )
        self.lie_receipt(receipt)
        if not self.gives_receipt:
            return
        content = receipt.SerializeToString(deterministic=True)
        text = f"wattline:receipt:1:{hashlib.sha256(content).hexdigest()}"
        account.receipt = pb.SignedReceipt(receipt=content, signature=self.signer.sign(text))
        if self.sends_receipt:
            self._send(account, pb.ChargeResponse(receipt=account.receipt))

    # What it does by itself.

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stopping.wait(self.tick_s):
            now = time.monotonic()
            with self._lock:
                for awaited in [each for each in self._awaited if each[0]()]:
                    awaited[1]()
                    self._awaited.remove(awaited)
                for account in self.sessions.values():
                    self._step(account, int((now - before) * 1000))
                    if account.state != pb.SESSION_STATE_CLOSED and self._is_due(account, now):
                        self._told[account.session_id] = account.state, now
                        self._send(account, pb.ChargeResponse(statement=self._statement(account)))
            before = now

    def _is_due(self, account: Account, now: float) -> bool:
        state, at = self._told.get(account.session_id, (-1, 0.0))
        interval_s = self.statement_interval_ms / 1000
        return state != account.state or interval_s <= 0.1 or now - at >= interval_s

    def _step(self, account: Account, passed_ms: int) -> None:
        if account.state in (pb.SESSION_STATE_CLOSED, pb.SESSION_STATE_SETTLING):
            return
        if account.state == pb.SESSION_STATE_DELIVERING:
            account.delivered_ms += passed_ms
        balance = account.credited - self._charged(account)
        reserve = worth_msat(account.tariff, self.rated_power_mw, 200)
        if not self.delivers:
            if account.state == pb.SESSION_STATE_DELIVERING:
                account.state = pb.SESSION_STATE_PAUSED
                self.world.switch(False)
            return
        if account.state == pb.SESSION_STATE_DELIVERING and balance < reserve:
            account.state = pb.SESSION_STATE_PAUSED
            self.world.switch(False)
        elif account.state in (pb.SESSION_STATE_OPEN, pb.SESSION_STATE_PAUSED) and balance >= (
            worth_msat(account.tariff, self.rated_power_mw, 500)
            + (account.tariff.session_fee_msat if account.state == pb.SESSION_STATE_OPEN else 0)
        ):
            account.state = pb.SESSION_STATE_DELIVERING
            self.world.switch(True)

    def _charged(self, account: Account) -> int:
        if account.state in (pb.SESSION_STATE_CLOSED, pb.SESSION_STATE_SETTLING):
            return account.final_charge
        started = account.state != pb.SESSION_STATE_OPEN and account.payments > 0
        if not started:
            return 0
        return cost_msat(account.tariff, self.world.energy_uwh - account.base_uwh, account.delivered_ms, True)

    def _statement(self, account: Account) -> pb.Statement:
        account.sequence += 1
        charged = self._charged(account)
        statement = pb.Statement(
            session_id=account.session_id,
            sequence=account.sequence,
            state=account.state,  # type: ignore[arg-type]
            relay_closed=account.state == pb.SESSION_STATE_DELIVERING,
            energy_uwh=self.world.energy_uwh - account.base_uwh,
            delivered_ms=account.delivered_ms,
            power_mw=self.world.power_mw,
            voltage_mv=48_000,
            current_ma=self.world.power_mw // 48,
            credited_msat=account.credited,
            charged_msat=charged,
            refunded_msat=account.refunded,
            balance_msat=account.credited - charged - account.refunded,
            payments=account.payments,
            min_increment_msat=self.min_increment_msat,
            stop_reason=account.stop_reason,
            onchain_credited_msat=account.onchain.value_sat * 1000 if account.onchain is not None else 0,
        )
        self.lie_statement(statement)
        return statement

    def _send(self, account: Account, message: pb.ChargeResponse) -> None:
        for outbox in account.outbox:
            outbox.put(message)


def keep_refund(receipt: pb.Receipt) -> None:
    """A lie: what was to be sent back stays with the socket."""
    receipt.balance_msat += receipt.refunded_msat
    receipt.refunded_msat = 0
    receipt.refund_status = pb.REFUND_STATUS_KEPT


def _tariff(tariff: Tariff) -> pb.Tariff:
    return pb.Tariff(
        tariff_id=tariff.tariff_id,
        energy_msat_per_kwh=tariff.energy_msat_per_kwh,
        time_msat_per_hour=tariff.time_msat_per_hour,
        session_fee_msat=tariff.session_fee_msat,
    )


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what or condition}")
        time.sleep(0.005)
