"""The way to a socket: the certificate it presents, and a gRPC channel that trusts exactly that one.

The certificate proves nothing by itself; the signed offer, fetched over this very channel, names its hash. A name is
resolved once, by this machine's own resolver (so mDNS names and scoped addresses mean what they mean to every other
program), and both connections go to the address that answered: gRPC has a resolver of its own, which knows neither.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from wattline.cable.settings import SocketAddress
from wattline.core.errors import RetryError, StopError
from wattline.core.text import printable

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
