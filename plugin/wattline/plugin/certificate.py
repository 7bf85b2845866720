"""The socket's TLS certificate: self-signed ECDSA P-256, made once, vouched for by the signed offer."""

from __future__ import annotations

import datetime
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wattline.errors import StopError
from wattline.ownership import ROOT, user_name

LIFETIME = datetime.timedelta(days=20 * 365)
NAME = "wattline"
"""Subject and DNS name of every socket's certificate; what identifies a socket is its node key."""


@dataclass(frozen=True, slots=True)
class Certificate:
    certificate_pem: bytes
    key_pem: bytes

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the DER form: the fingerprint in the offer."""
        der = x509.load_pem_x509_certificate(self.certificate_pem).public_bytes(serialization.Encoding.DER)
        return hashlib.sha256(der).digest()


def load_or_make(directory: Path) -> Certificate:
    """The certificate in ``directory``, made there when there is none. Raises StopError when it cannot be used."""
    key_path, certificate_path = directory / "tls-key.pem", directory / "tls-certificate.pem"
    try:
        if not key_path.exists() or not certificate_path.exists():
            _write(_make(), key_path, certificate_path)
        found = key_path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            raise StopError("tls_key_exposed", f"{key_path}: others can read this key (mode {mode:04o}); allowed: 0600")
        if found.st_uid not in (os.geteuid(), ROOT):
            raise StopError("tls_key_exposed", f"{key_path}: this key belongs to user {user_name(found.st_uid)}")
        certificate = Certificate(certificate_path.read_bytes(), key_path.read_bytes())
        _check_pair(certificate, certificate_path)
    except OSError as error:
        raise StopError("tls_key_unreadable", f"{directory}: the TLS key cannot be used: {error}") from error
    return certificate


def _make() -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + LIFETIME)
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


def _check_pair(certificate: Certificate, path: Path) -> None:
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
