"""The socket's TLS certificate: self-signed ECDSA P-256, made once, vouched for by the signed offer.

Its dates mean nothing, so it has none: it holds from the first second of 1970 to the last of 9999 (RFC 5280, 4.1.2.5),
whatever the clock said when it was made or says when it is looked at.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from wattline.core.errors import StopError
from wattline.core.ownership import ROOT, user_name

log = logging.getLogger(__name__)

NOT_BEFORE = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
NAME = "wattline"
"""Subject and DNS name of every socket's certificate; what identifies a socket is its node key."""
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sells, and where."""

    node_id: str
    network: str
    """lightningd's."""
    certificate_sha256: bytes
    listen: str = ""
    """host:port on which cables are served."""


@dataclass(frozen=True, slots=True)
class Certificate:
    certificate_pem: bytes
    key_pem: bytes

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the DER form: the fingerprint in the offer."""
        der = x509.load_pem_x509_certificate(self.certificate_pem).public_bytes(serialization.Encoding.DER)
        return hashlib.sha256(der).digest()


def load_or_make(directory: Path, *, is_pinned: bool = False) -> Certificate:
    """The certificate in ``directory``, made there when there is none. One of an earlier wattline, which was dated, is
    made anew for the same key; while it ``is_pinned`` by the cables of sessions that live, only when its dates are over
    or to come by this machine's clock. Raises StopError when it cannot be used."""
    key_path, certificate_path = directory / "tls-key.pem", directory / "tls-certificate.pem"
    try:
        if not key_path.exists() or not certificate_path.exists():
            _write(_make(ec.generate_private_key(ec.SECP256R1())), key_path, certificate_path)
        found = key_path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            raise StopError("tls_key_exposed", f"{key_path}: others can read this key (mode {mode:04o}); allowed: 0600")
        if found.st_uid not in (os.geteuid(), ROOT):
            raise StopError("tls_key_exposed", f"{key_path}: this key belongs to user {user_name(found.st_uid)}")
        certificate = Certificate(certificate_path.read_bytes(), key_path.read_bytes())
        key = _check_pair(certificate, certificate_path)
    except OSError as error:
        raise StopError("tls_key_unreadable", f"{directory}: the TLS key cannot be used: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not _is_to_be_replaced(certificate, is_pinned):
        return certificate
    undated = _make(key)
    try:
        _write(undated, key_path, certificate_path)
    except OSError as error:
        log.warning("%s: the dated certificate stays: %s", certificate_path, error)
        return certificate
    return undated


def _is_to_be_replaced(certificate: Certificate, is_pinned: bool) -> bool:
    """Whether it is one of ours with dates; what an operator put there is his own affair."""
    found = x509.load_pem_x509_certificate(certificate.certificate_pem)
    first, last = found.not_valid_before_utc, found.not_valid_after_utc
    is_dated = found.subject == found.issuer == _NAME and (first, last) != (NOT_BEFORE, NOT_AFTER)
    return is_dated and not (is_pinned and first <= datetime.datetime.now(datetime.UTC) <= last)


def _make(key: ec.EllipticCurvePrivateKey) -> Certificate:
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _write(certificate: Certificate, key_path: Path, certificate_path: Path) -> None:
    for path, content, mode in (
        (key_path, certificate.key_pem, 0o600),
        (certificate_path, certificate.certificate_pem, 0o644),
    ):
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def _check_pair(certificate: Certificate, path: Path) -> PrivateKeyTypes:
    """The key."""
    try:
        public = x509.load_pem_x509_certificate(certificate.certificate_pem).public_key()
        key = serialization.load_pem_private_key(certificate.key_pem, password=None)
        same = public == key.public_key()
    except ValueError as error:
        raise StopError(
            "tls_key_bad", f"{path}: not a usable certificate and key: {error}; remove both to make new ones"
        ) from error
    if not same:
        raise StopError("tls_key_bad", f"{path}: does not belong to the key beside it; remove both to make new ones")
    return key
