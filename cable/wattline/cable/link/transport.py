"""The way to a socket: its certificate, a gRPC channel that trusts exactly that one, and what its node has signed.

The certificate proves nothing by itself; the signed offer, fetched over this very channel, names its hash. A name is
resolved once, by this machine's own resolver (so mDNS names and scoped addresses mean what they mean to every other
program), and both connections go to the address that answered: gRPC has a resolver of its own, which knows neither.

Offers and receipts are read after every check only: signature, node, and values within their bounds.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID
from google.protobuf.message import DecodeError

from wattline.cable.policy.events import MethodName, Receipt, SignedReceipt
from wattline.cable.policy.offer import Offer, OfferedOutlet, OfferError
from wattline.cable.settings import SocketAddress
from wattline.core.aggregate import OnchainRules
from wattline.core.errors import RetryError, StopError
from wattline.core.lightning.node import Signer, is_signed_by
from wattline.core.tariff import Tariff
from wattline.core.text import printable
from wattline.core.wire.reading import OutOfRange, admitted
from wattline.v1 import charging_pb2 as pb
from wattline.v1 import charging_pb2_grpc as pb_grpc

CONNECT_TIMEOUT_S = 5.0
LARGEST_MESSAGE = 64 * 1024
"""Bytes; an offer of 256 outlets, the largest of all, has half of it."""
_NAME = re.compile(r"[A-Za-z0-9*_.-]{1,253}")


class SocketUnreachable(RetryError):
    """Nothing answers at the address, or not now."""

    def __init__(self, address: SocketAddress, detail: str) -> None:
        super().__init__("socket_unreachable", f"no socket answers at {address.target}: {detail}")


class NotWattline(StopError):
    """Something answers, but it does not sell electricity."""

    def __init__(self, address: SocketAddress, detail: str) -> None:
        super().__init__("not_wattline", f"what answers at {address.target} is not a wattline socket: {detail}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that a name stands for, as a number."""

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]
    """As getaddrinfo gives it: host and port, for IPv6 also flow and scope."""

    @property
    def target(self) -> str:
        """As gRPC takes it without resolving anything (its name syntax: ``ipv4:`` and ``ipv6:``)."""
        host, port = self.sockaddr[:2]
        if self.family is not socket.AF_INET6:
            return f"ipv4:{host}:{port}"
        scope = self.sockaddr[3]
        return f"ipv6:[{host}%25{scope}]:{port}" if scope else f"ipv6:[{host}]:{port}"


def resolve(address: SocketAddress) -> list[Endpoint]:
    """All that ``address`` stands for, in the order of the resolver. Raises SocketUnreachable."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SocketUnreachable(address, detail) from error
    return [Endpoint(socket.AddressFamily(family), sockaddr) for family, _, _, _, sockaddr in found]


@dataclass(frozen=True, slots=True)
class PresentedCertificate:
    """What the server at an address presented; nobody has vouched for it yet."""

    der: bytes
    name: str
    """A DNS name in it, so that TLS can be told which name to expect."""
    target: str
    """Where it was presented, for gRPC."""

    @property
    def pem(self) -> bytes:
        return ssl.DER_cert_to_PEM_cert(self.der).encode("ascii")

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.der).digest()


def fetch_certificate(address: SocketAddress, timeout_s: float = CONNECT_TIMEOUT_S) -> PresentedCertificate:
    """The certificate that the server presents; of several addresses, that of the first at which one is. Raises
    SocketUnreachable, NotWattline (no TLS there)."""
    failures: list[SocketUnreachable | NotWattline] = []
    for endpoint in resolve(address):
        try:
            return _certificate_at(address, endpoint, timeout_s)
        except (SocketUnreachable, NotWattline) as error:
            failures.append(error)
    # Something that answers says more than something that does not.
    raise next((failure for failure in failures if isinstance(failure, NotWattline)), failures[-1])


def _certificate_at(address: SocketAddress, endpoint: Endpoint, timeout_s: float) -> PresentedCertificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.socket(endpoint.family, socket.SOCK_STREAM) as plain:
            plain.settimeout(timeout_s)
            plain.connect(endpoint.sockaddr)
            try:
                with context.wrap_socket(plain, server_hostname=None) as secure:
                    der = secure.getpeercert(binary_form=True)
            except ssl.SSLError as error:
                raise NotWattline(address, f"no TLS ({error.reason or error})") from error
            except ConnectionResetError as error:
                raise NotWattline(address, "it closes the connection at the TLS handshake") from error
            except TimeoutError as error:
                raise NotWattline(address, "it accepts connections but does not answer a TLS handshake") from error
    except OSError as error:
        raise SocketUnreachable(address, error.strerror or str(error)) from error
    if der is None:
        raise NotWattline(address, "it presents no certificate")
    return certificate_from_der(address, der, endpoint.target)


def certificate_from_der(address: SocketAddress, der: bytes, target: str) -> PresentedCertificate:
    """``der``, presented at ``target``, with the name to expect in it. Raises NotWattline when there is none in it."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        try:
            alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = alternative.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            names = []
        names += [str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except ValueError as error:
        raise NotWattline(address, f"its certificate cannot be read: {printable(error)}") from error
    name = next((name for name in names if _NAME.fullmatch(name)), None)
    if name is None:
        raise NotWattline(address, "its certificate has no name that a host could have")
    return PresentedCertificate(der, name, target)


def open_channel(certificate: PresentedCertificate) -> grpc.Channel:
    """A channel over TLS to where ``certificate`` was presented, that accepts it and no other."""
    credentials = grpc.ssl_channel_credentials(root_certificates=certificate.pem)
    options = (
        ("grpc.ssl_target_name_override", certificate.name),
        # A channel of its own: gRPC otherwise shares connections between channels to the same target.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    )
    return grpc.secure_channel(certificate.target, credentials, options=options)


def details_of(error: grpc.RpcError) -> str:
    """What the other side, or gRPC itself, says of a call that failed: ``unavailable: failed to connect``."""
    return f"{error.code().name.lower()}: {printable(error.details() or 'no details', 200)}"


def is_too_large(error: grpc.RpcError) -> bool:
    """A message came that is larger than LARGEST_MESSAGE."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")


NONCE_BYTES = 32
CALL_TIMEOUT_S = 10.0
METHOD_NUMBERS: dict[MethodName, pb.Method.ValueType] = {"keysend": pb.METHOD_KEYSEND, "onchain": pb.METHOD_ONCHAIN}


@dataclass(frozen=True, slots=True)
class OpenedSocket:
    """A channel to a socket together with the offer that vouches for it. The caller closes the channel."""

    channel: grpc.Channel
    certificate: PresentedCertificate
    offer: Offer


def tariff_from(message: pb.Tariff) -> Tariff:
    """A tariff of a message that was admitted."""
    return Tariff(
        tariff_id=message.tariff_id,
        energy_msat_per_kwh=message.energy_msat_per_kwh,
        time_msat_per_hour=message.time_msat_per_hour,
        session_fee_msat=message.session_fee_msat,
    )


def open_socket(address: SocketAddress, signer: Signer, network: str) -> OpenedSocket:
    """Connect, fetch the offer and check who made it. Raises SocketUnreachable, NotWattline, OfferError."""
    certificate = fetch_certificate(address)
    channel = open_channel(certificate)
    try:
        nonce = os.urandom(NONCE_BYTES)
        response = _get_offer(channel, address, nonce)
        offer = verify_offer(response, address, certificate, nonce, signer, network)
    except BaseException:
        channel.close()
        raise
    return OpenedSocket(channel, certificate, offer)


def _get_offer(channel: grpc.Channel, address: SocketAddress, nonce: bytes) -> pb.GetOfferResponse:
    stub = pb_grpc.ChargingServiceStub(channel)
    try:
        response: pb.GetOfferResponse = stub.GetOffer(pb.GetOfferRequest(nonce=nonce), timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        code, details = error.code(), details_of(error)
        if code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
            raise NotWattline(address, f"it has no ChargingService ({details})") from error
        # The TLS handshake has succeeded a moment ago, so a peer that speaks no HTTP/2 shows here as unavailable too.
        raise SocketUnreachable(address, details) from error
    return response


def verify_offer(
    response: pb.GetOfferResponse,
    address: SocketAddress,
    certificate: PresentedCertificate,
    nonce: bytes,
    signer: Signer,
    network: str,
) -> Offer:
    """The offer in ``response`` when it is genuine, fresh, made for this connection and by the right node."""
    message = pb.Offer()
    try:
        message.ParseFromString(admitted(response).offer)
        admitted(message)
    except DecodeError as error:
        raise NotWattline(address, "its offer cannot be read") from error
    except OutOfRange as error:
        raise OfferError("offer_invalid", f"the offer from {address.target} cannot be: {error.message}") from error
    if not is_signed_by(signer, "offer", response.offer, response.signature, message.node_id):
        raise OfferError("offer_forged", f"the offer from {address.target} is not signed by node {message.node_id}")
    if message.certificate_sha256 != certificate.sha256:
        raise OfferError(
            "offer_forged",
            f"the offer is for certificate {message.certificate_sha256.hex()[:16]}..., but {address.target} presents "
            f"{certificate.sha256.hex()[:16]}...: somebody may sit in between",
        )
    if message.nonce != nonce:
        raise OfferError(
            "offer_replayed", f"the offer from {address.target} answers another request: an old one replayed"
        )
    if address.node_id is not None and message.node_id != address.node_id:
        raise OfferError(
            "socket_not_pinned",
            f"the socket at {address.target} is node {message.node_id}, but the configuration names {address.node_id}",
        )
    if message.network != network:
        raise OfferError("wrong_network", f"the socket is on {message.network or '?'}, the cable's node on {network}")
    return Offer(
        node_id=message.node_id,
        network=message.network,
        tariff=tariff_from(message.tariff),
        outlets=tuple(
            OfferedOutlet(item.outlet_id, item.max_power_mw, item.available, item.unavailable_reason)
            for item in message.outlets
        ),
        methods=tuple(name for name, number in METHOD_NUMBERS.items() if number in message.methods),
        expires_at=message.expires_at,
        credit_cap_msat=message.credit_cap_msat,
        min_increment_msat=message.min_increment_msat,
        statement_interval_ms=message.statement_interval_ms,
        pause_max_s=message.pause_max_s,
        open_timeout_s=message.open_timeout_s,
        cable_lost_s=message.cable_lost_s,
        min_refund_msat=message.min_refund_msat,
        onchain=rules_from(message.onchain) if message.HasField("onchain") else None,
    )


_REFUNDS = {
    pb.REFUND_STATUS_NONE: "none",
    pb.REFUND_STATUS_SENT: "sent",
    pb.REFUND_STATUS_OWED: "owed",
    pb.REFUND_STATUS_KEPT: "kept",
}


class ReceiptError(StopError):
    """A receipt that the socket's node has not signed, or that belongs to something else."""


def verify_receipt(signed: SignedReceipt, signer: Signer, node_id: str, session_id: str) -> Receipt:
    """The receipt when ``node_id`` has signed it and it is for ``session_id``. Raises ReceiptError."""
    if not is_signed_by(signer, "receipt", signed.receipt, signed.signature, node_id):
        raise ReceiptError("receipt_forged", f"the receipt is not signed by the socket's node {node_id}")
    return read_receipt(signed, node_id, session_id)


def read_receipt(signed: SignedReceipt, node_id: str, session_id: str) -> Receipt:
    """The same for one whose signature was checked before."""
    message = pb.Receipt()
    try:
        message.ParseFromString(signed.receipt)
        admitted(message)
    except DecodeError as error:
        raise ReceiptError("receipt_invalid", "the signed receipt cannot be read") from error
    except OutOfRange as error:
        raise ReceiptError("receipt_invalid", f"the signed receipt cannot be: {error.message}") from error
    if message.session_id != session_id or message.node_id != node_id:
        raise ReceiptError("receipt_invalid", f"the receipt is for session {message.session_id}, not {session_id}")
    return Receipt(
        session_id=message.session_id,
        node_id=message.node_id,
        outlet_id=message.outlet_id,
        stop_reason=message.stop_reason,
        tariff=tariff_from(message.tariff),
        energy_uwh=message.energy_uwh,
        delivered_ms=message.delivered_ms,
        credited_msat=message.credited_msat,
        charged_msat=message.charged_msat,
        refunded_msat=message.refunded_msat,
        balance_msat=message.balance_msat,
        payments=message.payments,
        refund_status=_REFUNDS.get(message.refund_status, "unknown"),
        refund_fee_msat=message.refund_fee_msat,
        refund_payment_hash=message.refund_payment_hash,
        signed=signed,
        onchain_credited_msat=message.onchain_credited_msat,
        returned_msat=message.returned_msat,
        onchain_txid=message.onchain_txid,
        onchain_value_sat=message.onchain_value_sat,
        from_restored_ledger=message.from_restored_ledger,
    )


def rules_from(message: pb.OnchainRules) -> OnchainRules:
    """The rules as they stand there; :func:`check_rules` judges them."""
    return OnchainRules(
        floor_sat=message.floor_sat,
        credit_cap_sat=message.credit_cap_sat,
        exposure_cap_sat=message.exposure_cap_sat,
        min_feerate_per_kw=message.min_feerate_per_kw,
        max_feerate_per_kw=message.max_feerate_per_kw,
        max_age_s=message.max_age_s,
        input_confirmations=message.input_confirmations,
        max_inputs=message.max_inputs,
    )
