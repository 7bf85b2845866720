"""What the node key signs: offers and receipts, as bytes whose digest stands in a plain ASCII message.

``signmessage`` signs the JSON-escaped text, so only plain ASCII is ever signed.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from wattline.core.lightning.node import Signer

Kind = Literal["offer", "onchain", "open", "receipt"]


def onchain_content(socket_node_id: str, session_id: str) -> bytes:
    """What a cable signs when it asks for the address of its on-chain payment: good for this session of this socket
    alone, since another socket could name any session_id."""
    return f"{socket_node_id}:{session_id}".encode("ascii")


def signed_text(kind: Kind, content: bytes) -> str:
    """The message that is signed for ``content``."""
    return f"wattline:{kind}:1:{hashlib.sha256(content).hexdigest()}"


def sign(signer: Signer, kind: Kind, content: bytes) -> str:
    """The node's signature (zbase32) over ``content``."""
    return signer.sign(signed_text(kind, content))


def is_signed_by(signer: Signer, kind: Kind, content: bytes, signature: str, node_id: str) -> bool:
    """Whether ``node_id`` signed ``content``."""
    return signer.verify(signed_text(kind, content), signature, node_id)
