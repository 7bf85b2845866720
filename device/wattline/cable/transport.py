"""The way to a socket: the certificate it presents, and a gRPC channel that trusts exactly that one.

The certificate proves nothing by itself; the signed offer, fetched over this very channel, names its hash.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from dataclasses import dataclass

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from wattline.cable.settings import SocketAddress
from wattline.errors import RetryError, StopError
from wattline.wire import printable

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
class PresentedCertificate:
    """What the server at an address presented; nobody has vouched for it yet."""

    der: bytes
    name: str
    """A DNS name in it, so that TLS can be told which name to expect."""

    @property
    def pem(self) -> bytes:
        return ssl.DER_cert_to_PEM_cert(self.der).encode("ascii")

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.der).digest()


def fetch_certificate(address: SocketAddress, timeout_s: float = CONNECT_TIMEOUT_S) -> PresentedCertificate:
    """The certificate that the server presents. Raises SocketUnreachable, NotWattline (no TLS there)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((address.host, address.port), timeout=timeout_s) as plain:
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
    return certificate_from_der(address, der)


def certificate_from_der(address: SocketAddress, der: bytes) -> PresentedCertificate:
    """``der`` with the name to expect in it. Raises NotWattline when it is no certificate with a name."""
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
    return PresentedCertificate(der, name)


def open_channel(address: SocketAddress, certificate: PresentedCertificate) -> grpc.Channel:
    """A channel over TLS to ``address`` that accepts ``certificate`` and no other."""
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
    return grpc.secure_channel(address.target, credentials, options=options)


def details_of(error: grpc.RpcError) -> str:
    """What the other side, or gRPC itself, says of a call that failed: ``unavailable: failed to connect``."""
    return f"{error.code().name.lower()}: {printable(error.details() or 'no details', 200)}"


def is_too_large(error: grpc.RpcError) -> bool:
    """A message came that is larger than LARGEST_MESSAGE."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")
