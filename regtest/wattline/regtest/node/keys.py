"""The node's key, its signatures over messages, and other nodes' (lightningd/signmessage.c).

The key comes from hsm_secret by lightningd's own derivation, so a practice node has the id of the real node with the
same secret.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import coincurve

_ZBASE32 = "ybndrfg8ejkmcpqxot1uwisza345h769"
_PREFIX = b"Lightning Signed Message:"
_FIRST_BYTE = 31
"""Of a signature: this plus the recovery id."""


class NodeKey:
    """A private key and what is done with it."""

    def __init__(self, secret: bytes) -> None:
        # hsmd/libhsmd.c, node_key(): RFC 5869 with a salt of four zero bytes and "nodeid".
        extracted = hmac.new(bytes(4), secret[:32], hashlib.sha256).digest()
        derived = hmac.new(extracted, b"nodeid\x01", hashlib.sha256).digest()
        self._key = coincurve.PrivateKey(derived)
        self.node_id = self._key.public_key.format().hex()

    @classmethod
    def load(cls, path: Path) -> NodeKey:
        """From an hsm_secret; made when there is none."""
        if not path.exists():
            path.write_bytes(coincurve.PrivateKey().secret)
            path.chmod(0o400)
        return cls(path.read_bytes())

    def shared_secret(self, point: bytes) -> bytes:
        """ECDH as BOLT #4 has it: SHA-256 of the compressed point."""
        return self._key.ecdh(point)

    def sign_recoverable(self, digest: bytes) -> bytes:
        """64 bytes of signature and one of recovery id."""
        return self._key.sign_recoverable(digest, hasher=None)

    def sign_message(self, message: str) -> dict[str, str]:
        """The answer of ``signmessage``."""
        signature = self.sign_recoverable(_message_digest(message))
        compact, recid = signature[:64], signature[64]
        return {
            "signature": compact.hex(),
            "recid": f"{recid:02x}",
            "zbase": to_zbase32(bytes([_FIRST_BYTE + recid]) + compact),
        }


def signer_of(message: str, zbase: str) -> str:
    """The node id whose key made the signature. Raises ValueError when it is no signature at all."""
    signature = from_zbase32(zbase)
    if len(signature) != 65 or not _FIRST_BYTE <= signature[0] < _FIRST_BYTE + 4:
        raise ValueError("not a recoverable signature")
    recoverable = signature[1:] + bytes([signature[0] - _FIRST_BYTE])
    return recover(recoverable, _message_digest(message))


def recover(recoverable: bytes, digest: bytes) -> str:
    """The public key that signed ``digest``. Raises ValueError."""
    try:
        return coincurve.PublicKey.from_signature_and_message(recoverable, digest, hasher=None).format().hex()
    except Exception as error:
        raise ValueError(f"no key signs like this: {error}") from error


def is_public_key(text: str) -> bool:
    """Whether these are 33 bytes of a point on the curve."""
    try:
        return len(coincurve.PublicKey(bytes.fromhex(text)).format()) == len(bytes.fromhex(text))
    except ValueError:
        return False


def _message_digest(message: str) -> bytes:
    return hashlib.sha256(hashlib.sha256(_PREFIX + message.encode()).digest()).digest()


def to_zbase32(data: bytes) -> str:
    """Five bits a character, the last one padded with zeros."""
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    return "".join(_ZBASE32[int(bits[i : i + 5], 2)] for i in range(0, len(bits), 5))


def from_zbase32(text: str) -> bytes:
    """Raises ValueError for other characters or for a length that no bytes have."""
    bits = "".join(f"{_ZBASE32.index(character):05b}" for character in text)
    whole = len(bits) // 8 * 8
    if len(bits) - whole >= 5 or "1" in bits[whole:]:
        raise ValueError("not a whole number of bytes")
    return int(bits[:whole] or "0", 2).to_bytes(whole // 8, "big")
