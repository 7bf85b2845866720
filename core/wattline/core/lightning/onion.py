"""The onion of a keysend along one route: what each hop is told (BOLT #4, ``payload`` TLV stream)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from wattline.core.lightning.node import Hop, Route
from wattline.core.record import PREIMAGE_TLV_TYPE, RECORD_TLV_TYPE, encode_bigsize, encode_tlv_stream, encode_truncated

AMT_TO_FORWARD = 2
OUTGOING_CLTV_VALUE = 4
SHORT_CHANNEL_ID = 6

_SHORT_CHANNEL_ID = re.compile(r"([0-9]{1,8})x([0-9]{1,8})x([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class OnionHop:
    """One element of createonion's ``hops``: who peels this layer, and what it says."""

    node_id: str
    payload: str
    """Hex, with its length in front."""


def onion_hops(route: Route, base_height: int, preimage: str, record: str) -> tuple[OnionHop, ...]:
    """The payloads for ``route``, in the order in which the payment travels.

    ``base_height`` is the block height that the route's relative cltv values count from; ``preimage`` is 32 bytes of
    hex. A forwarding node is told the next channel and what shall go through it (``amount_out_msat`` and ``cltv_out``
    of the channel behind it, its own fee kept); the last one the amount, its expiry, the record and the preimage. No
    ``payment_data``: a keysend has no invoice and so no payment_secret; lightningd's own sends none either.
    Raises ValueError for a route or preimage that cannot be.
    """
    if not route.hops:
        raise ValueError("a route needs at least one hop")
    if len(bytes.fromhex(preimage)) != 32:
        raise ValueError("a preimage has 32 bytes")
    hops = [
        OnionHop(hop.next_node_id, _with_length(_forward_payload(hop, following, base_height)))
        for hop, following in zip(route.hops, route.hops[1:], strict=False)
    ]
    last = route.hops[-1]
    if last.amount_out_msat != route.amount_msat or last.next_node_id != route.destination:
        raise ValueError("the last hop does not deliver the route's amount to its destination")
    final = {
        AMT_TO_FORWARD: encode_truncated(last.amount_out_msat),
        OUTGOING_CLTV_VALUE: encode_truncated(base_height + last.cltv_out),
        RECORD_TLV_TYPE: record.encode("utf-8"),
        PREIMAGE_TLV_TYPE: bytes.fromhex(preimage),
    }
    hops.append(OnionHop(last.next_node_id, _with_length(final)))
    return tuple(hops)


def payment_hash_of(preimage: str) -> str:
    """SHA-256 of a preimage, both in hex (BOLT #2: what an htlc is locked to)."""
    return hashlib.sha256(bytes.fromhex(preimage)).hexdigest()


def encode_short_channel_id(text: str) -> bytes:
    """``BLOCKxTXxOUTPUT`` (with or without ``/direction``) as its 8 bytes (BOLT #7). Raises ValueError."""
    match = _SHORT_CHANNEL_ID.fullmatch(text.partition("/")[0])
    if match is None:
        raise ValueError(f"{text!r} is not a short_channel_id")
    block, index, output = (int(part) for part in match.groups())
    if block >= 1 << 24 or index >= 1 << 24 or output >= 1 << 16:
        raise ValueError(f"{text!r} is not a short_channel_id: 24, 24 and 16 bits are allowed")
    return ((block << 40) | (index << 16) | output).to_bytes(8, "big")


def _forward_payload(hop: Hop, following: Hop, base_height: int) -> dict[int, bytes]:
    # What arrives at a node must be what its next channel's figures begin with, or it refuses the difference.
    if (hop.amount_out_msat, hop.cltv_out) != (following.amount_in_msat, following.cltv_in):
        raise ValueError(f"the hops do not meet at {hop.next_node_id}")
    return {
        AMT_TO_FORWARD: encode_truncated(following.amount_out_msat),
        OUTGOING_CLTV_VALUE: encode_truncated(base_height + following.cltv_out),
        SHORT_CHANNEL_ID: encode_short_channel_id(following.short_channel_id_dir),
    }


def _with_length(fields: dict[int, bytes]) -> str:
    stream = encode_tlv_stream(fields)
    return (encode_bigsize(len(stream)) + stream).hex()
