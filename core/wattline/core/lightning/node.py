"""The Lightning node as the rest of wattline sees it.

Domain types and one Protocol; Core Lightning behind it is in :mod:`wattline.core.lightning.cln`. All amounts are
integers in msat, all hashes, keys and preimages lower-case hex, all times seconds of the Unix epoch unless the name
says otherwise.

What the node key signs (offers, receipts) are bytes whose digest stands in a plain ASCII message: ``signmessage`` signs
the JSON-escaped text, so nothing else is ever signed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from wattline.core.checks import NODE_ID
from wattline.core.errors import RetryError, StopError


def is_node_id(value: object) -> bool:
    """Whether it is a compressed point of secp256k1 in lower-case hex, which a node id is (BOLT #7)."""
    return isinstance(value, str) and NODE_ID.fullmatch(value) is not None and _is_point(value)


@functools.lru_cache(maxsize=10_000)
def _is_point(text: str) -> bool:
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), bytes.fromhex(text))
    except ValueError:
        return False
    return True


class NodeUnavailable(RetryError):
    """The node does not answer (restarting, socket gone). What was under way is in doubt, not failed."""


class NodeRefused(StopError):
    """The node answered with an error that repeating the call will not cure; ``rpc_code`` is Core Lightning's."""

    def __init__(self, code: str, message: str, rpc_code: int | None = None) -> None:
        super().__init__(code, message)
        self.rpc_code = rpc_code


class NoRoute(RetryError):
    """No single route carries the amount within its fee limit just now; a smaller amount may pass."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    node_id: str
    """33-byte compressed public key, hex."""
    network: str
    """``bitcoin``, ``testnet``, ``signet`` or ``regtest``."""
    version: str
    blockheight: int


@dataclass(frozen=True, slots=True)
class ChannelBalance:
    """One of the node's own usable channels (in a state that takes new htlcs, peer connected)."""

    peer_id: str
    short_channel_id: str
    spendable_msat: int
    receivable_msat: int


@dataclass(frozen=True, slots=True)
class Hop:
    """One channel of a route, in the order in which the payment travels. The htlc on it carries the ``_out`` figures;
    the difference to ``_in`` is what the node before it keeps (nothing where that is ourselves)."""

    short_channel_id_dir: str
    """``scid/direction`` as getroutes gives it."""
    next_node_id: str
    amount_in_msat: int
    """What arrives at the node before this channel, or leaves our wallet when the channel is our own."""
    cltv_in: int
    """Blocks from now, as getroutes counts (not a height)."""
    amount_out_msat: int
    """What goes through this channel and arrives at the node behind it."""
    cltv_out: int


@dataclass(frozen=True, slots=True)
class Route:
    """A single path to one node. ``hops[0].amount_in_msat`` is what leaves our wallet."""

    destination: str
    amount_msat: int
    hops: tuple[Hop, ...]

    @property
    def amount_sent_msat(self) -> int:
        return self.hops[0].amount_in_msat

    @property
    def fee_msat(self) -> int:
        return self.amount_sent_msat - self.amount_msat


class SendStatus(StrEnum):
    PENDING = "pending"
    COMPLETE = "complete"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SentPayment:
    """What the node's own record (listsendpays) says of one payment_hash that we sent."""

    payment_hash: str
    status: SendStatus
    amount_msat: int | None
    amount_sent_msat: int
    """What left the wallet, routing fee included; meaningful when COMPLETE."""
    preimage: str | None


# BOLT #4, "Failure Messages": those by which a destination says that it does not want the payment as it is.


@dataclass(frozen=True, slots=True)
class SendFailure:
    """Why a payment failed for good (its htlc is gone and the money is back)."""

    code: str
    """BOLT #4 failcode name in lower case without WIRE_ (``temporary_channel_failure``), or ``unknown``."""
    message: str
    at_destination: bool
    """The destination itself refused it; another route will not help."""


@dataclass(frozen=True, slots=True)
class PaidInvoice:
    """A row of the journal: one paid invoice of the node, as listinvoices shows it."""

    updated_index: int
    pay_index: int | None
    label: str
    description: str
    payment_hash: str
    amount_received_msat: int
    paid_at: int
    is_paid: bool


class Wallet(Protocol):
    """The sending side: what the payer needs of a node."""

    def info(self) -> NodeInfo: ...

    def channels(self) -> Sequence[ChannelBalance]: ...

    def find_route(self, destination: str, amount_msat: int, maxfee_msat: int, final_cltv: int) -> Route:
        """One path for the whole amount (``getroutes``, maxparts 1). Raises NoRoute, NodeUnavailable."""

    def send(self, route: Route, payment_hash: str, preimage: str, record: str, label: str) -> None:
        """Hand one htlc to the node (``createonion`` + ``sendonion``) whose final payload carries ``record`` as TLV
        1463899221 and ``preimage`` as TLV 5482373484. Sending the same payment_hash again is harmless: it is paid once.
        Raises NodeUnavailable (in doubt), NodeRefused (not sent)."""

    def wait(self, payment_hash: str, timeout_s: float) -> SentPayment | SendFailure | None:
        """The outcome (``waitsendpay``); None when the time ran out. Raises NodeUnavailable (in doubt)."""

    def forgets_sent_after_s(self) -> int | None:
        """After how many seconds the node may delete its record of a payment that it made; None when it keeps it."""

    def sent(self, payment_hash: str) -> SentPayment | None:
        """What the node's record says (``listsendpays``); None when it knows nothing of that hash."""


class Signer(Protocol):
    """Signing with the node key (``signmessage`` / ``checkmessage``). Messages are plain ASCII."""

    def sign(self, message: str) -> str: ...

    def verify(self, message: str, signature: str, node_id: str) -> bool: ...


class Journal(Protocol):
    """The receiving side's durable truth: the node's paid invoices, in the order in which they were last updated."""

    def paid_since(self, updated_index: int, limit: int) -> Sequence[PaidInvoice]:
        """At most ``limit`` rows (of any status) with an index above ``updated_index``, ascending."""

    def takes_keysend(self) -> bool:
        """The node runs what receives keysend payments."""


class CableNode(Wallet, Signer, Journal, Protocol):
    """All that a cable asks of its own node."""

    def check_version(self) -> NodeInfo:
        """Raises StopError ``node_too_old``, NodeUnavailable, NodeRefused."""


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
