"""The socket's certificate holds whatever the clock says, and a dated one of an earlier wattline is made anew."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wattline.cable.link.transport import fetch_certificate, open_channel
from wattline.cable.settings import SocketAddress
from wattline.plugin.certificate import Certificate, load_or_make
from wattline.v1 import charging_pb2 as pb
from wattline.v1 import charging_pb2_grpc as pb_grpc

FIRST_SECOND = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
LAST_SECOND = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
DATED = (FIRST_SECOND + datetime.timedelta(days=365), datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC))


def parsed(certificate: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.certificate_pem)


def write_dated(home: Path, name: str = "wattline", dates: tuple[datetime.datetime, datetime.datetime] = DATED) -> None:
    """As wattline made them: by the clock, for twenty years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dates[0])
        .not_valid_after(dates[1])
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (home / "tls-key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (home / "tls-key.pem").chmod(0o600)
    (home / "tls-certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


class Greeter(pb_grpc.ChargingServiceServicer):
    def GetOffer(self, request: pb.GetOfferRequest, context: object) -> pb.GetOfferResponse:  # noqa: N802
        return pb.GetOfferResponse(signature="hello")

    def Charge(self, request_iterator: object, context: object) -> Iterator[pb.ChargeResponse]:  # noqa: N802
        yield pb.ChargeResponse()

    def GetReceipt(self, request: pb.GetReceiptRequest, context: object) -> pb.GetReceiptResponse:  # noqa: N802
        return pb.GetReceiptResponse()


def is_reached(certificate: Certificate) -> bool:
    """By a cable, over gRPC."""
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_ChargingServiceServicer_to_server(Greeter(), server)
    credentials = grpc.ssl_server_credentials([(certificate.key_pem, certificate.certificate_pem)])
    address = SocketAddress("127.0.0.1", server.add_secure_port("127.0.0.1:0", credentials), None)
    server.start()
    try:
        presented = fetch_certificate(address)
        assert presented.sha256 == certificate.sha256
        channel = open_channel(presented)
        with channel:
            stub = pb_grpc.ChargingServiceStub(channel)
            answer: pb.GetOfferResponse = stub.GetOffer(pb.GetOfferRequest(), timeout=10)
            return answer.signature == "hello"
    finally:
        server.stop(0).wait()


def test_it_holds_from_the_first_second_of_1970_to_the_last_of_9999(tmp_path: Path) -> None:
    made = parsed(load_or_make(tmp_path))
    assert (made.not_valid_before_utc, made.not_valid_after_utc) == (FIRST_SECOND, LAST_SECOND)
    assert load_or_make(tmp_path) == load_or_make(tmp_path)


def test_a_dated_one_is_made_anew_for_the_same_key_once(tmp_path: Path) -> None:
    write_dated(tmp_path)
    key_pem = (tmp_path / "tls-key.pem").read_bytes()
    undated = load_or_make(tmp_path)
    assert parsed(undated).not_valid_after_utc == LAST_SECOND
    assert undated.key_pem == key_pem
    assert (tmp_path / "tls-certificate.pem").read_bytes() == undated.certificate_pem
    assert load_or_make(tmp_path) == undated


def test_one_that_the_operator_put_there_stays(tmp_path: Path) -> None:
    write_dated(tmp_path, "socket.example.org")
    assert parsed(load_or_make(tmp_path)).not_valid_after_utc == DATED[1]


def test_while_cables_with_sessions_trust_it_a_dated_one_stays_as_long_as_they_can(tmp_path: Path) -> None:
    write_dated(tmp_path)
    assert parsed(load_or_make(tmp_path, is_pinned=True)).not_valid_after_utc == DATED[1]
    assert parsed(load_or_make(tmp_path)).not_valid_after_utc == LAST_SECOND


def test_one_that_was_made_by_a_wrong_clock_is_made_anew_whoever_trusts_it(tmp_path: Path) -> None:
    """A socket that was first started in 1971: nobody can reach it."""
    write_dated(tmp_path, dates=(FIRST_SECOND, FIRST_SECOND + datetime.timedelta(days=20 * 365)))
    undated = load_or_make(tmp_path, is_pinned=True)
    assert parsed(undated).not_valid_after_utc == LAST_SECOND
    assert is_reached(undated)


def test_a_cable_takes_the_certificate_that_holds_for_ever(tmp_path: Path) -> None:
    assert is_reached(load_or_make(tmp_path))


@pytest.mark.parametrize("name", ["tls-key.pem", "tls-certificate.pem"])
def test_with_either_file_gone_both_are_made_anew(tmp_path: Path, name: str) -> None:
    first = load_or_make(tmp_path)
    (tmp_path / name).unlink()
    assert load_or_make(tmp_path).sha256 != first.sha256
