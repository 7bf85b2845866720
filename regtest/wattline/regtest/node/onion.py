"""Onions of the practice network: a layer for every hop, of the size and with the secrets of BOLT #4's, peeled by the
key of the hop. They are not sphinx: their length shows how far they have come."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass

import coincurve

from wattline.regtest.node.keys import NodeKey

BODY_BYTES = 1300
PACKET_BYTES = 1 + 33 + BODY_BYTES + 32


class OnionError(ValueError):
    """A packet that cannot be made or peeled."""


@dataclass(frozen=True, slots=True)
class Peeled:
    """What a hop finds in its layer."""

    payload: bytes
    """As the sender gave it, length in front."""
    shared_secret: bytes
    next_onion: bytes
    """The packet for the next hop; meaningless bytes for the last one."""
    is_final: bool


def make_onion(hops: Sequence[tuple[str, bytes]], associated: bytes) -> tuple[bytes, list[bytes]]:
    """The packet for ``hops`` (node id and payload, the first one first) and the secret shared with each of them."""
    inner = b""
    secrets: list[bytes] = []
    for node_id, payload in reversed(hops):
        ephemeral = coincurve.PrivateKey()
        try:
            secret = ephemeral.ecdh(bytes.fromhex(node_id))
        except ValueError as error:
            raise OnionError(f"{node_id} is not a public key") from error
        content = _sized(payload) + _sized(inner)
        if len(content) + 2 > BODY_BYTES:
            raise OnionError("the hops do not fit into an onion")
        body = _sized(_crypt(secret, content))
        body += os.urandom(BODY_BYTES - len(body))
        inner = b"\0" + ephemeral.public_key.format() + body + _seal(secret, body, associated)
        # The padding is not worth carrying inside the layer around it.
        inner = inner if not secrets and len(hops) == 1 else _trim(inner)
        secrets.insert(0, secret)
    return _pad(inner), secrets


def peel(packet: bytes, key: NodeKey, associated: bytes) -> Peeled:
    """This hop's layer. Raises OnionError when it is not for this key or has been altered."""
    if len(packet) != PACKET_BYTES or packet[0] != 0:
        raise OnionError("not an onion")
    point, body, seal = packet[1:34], packet[34 : 34 + BODY_BYTES], packet[34 + BODY_BYTES :]
    try:
        secret = key.shared_secret(point)
    except ValueError as error:
        raise OnionError("no point of the curve in it") from error
    if not hmac.compare_digest(seal, _seal(secret, body, associated)):
        raise OnionError("its seal is broken")
    content = _crypt(secret, _unsized(body)[0])
    payload, rest = _unsized(content)
    inner, _ = _unsized(rest)
    filler = b"\0" + point + _stream(secret, b"next", BODY_BYTES + 32)
    return Peeled(payload, secret, _pad(inner) if inner else filler, not inner)


def _seal(secret: bytes, body: bytes, associated: bytes) -> bytes:
    return hmac.new(secret, _sized(_unsized(body)[0]) + associated, hashlib.sha256).digest()


def _trim(packet: bytes) -> bytes:
    body = packet[34 : 34 + BODY_BYTES]
    return packet[:34] + _sized(_unsized(body)[0]) + packet[34 + BODY_BYTES :]


def _pad(packet: bytes) -> bytes:
    """A trimmed packet in its full length; the padding is not sealed."""
    body, seal = packet[34:-32], packet[-32:]
    return packet[:34] + body + os.urandom(BODY_BYTES - len(body)) + seal


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _unsized(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:2], "big")
    if len(data) < 2 + size:
        raise OnionError("it is shorter than it says")
    return data[2 : 2 + size], data[2 + size :]


def _crypt(secret: bytes, data: bytes) -> bytes:
    stream = _stream(secret, b"rho", len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


def _stream(secret: bytes, purpose: bytes, length: int) -> bytes:
    return hashlib.shake_256(purpose + secret).digest(length)
