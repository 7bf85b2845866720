"""Onions: every hop finds its own payload, and nobody else's."""

from __future__ import annotations

import pytest

from wattline.regtest.node.keys import NodeKey
from wattline.regtest.node.onion import BODY_BYTES, PACKET_BYTES, OnionError, make_onion, peel

KEYS = [NodeKey(bytes([number]) * 32) for number in (1, 2, 3)]
HASH = b"h" * 32


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_each_hop_finds_its_payload_and_the_last_one_knows_that_it_is_the_last(hops: int) -> None:
    payloads = [bytes([number]) * 40 for number in range(hops)]
    packet, secrets = make_onion([(key.node_id, p) for key, p in zip(KEYS, payloads, strict=False)], HASH)
    for number in range(hops):
        assert len(packet) == PACKET_BYTES
        layer = peel(packet, KEYS[number], HASH)
        assert (layer.payload, layer.shared_secret) == (payloads[number], secrets[number])
        assert layer.is_final == (number == hops - 1)
        packet = layer.next_onion
    with pytest.raises(OnionError):
        peel(packet, KEYS[0], HASH)


def test_an_onion_for_another_node_or_another_payment_or_altered_cannot_be_peeled() -> None:
    packet, _ = make_onion([(KEYS[0].node_id, b"toast")], HASH)
    altered = packet[:40] + bytes([packet[40] ^ 1]) + packet[41:]
    for onion, key, hash_ in ((packet, KEYS[1], HASH), (packet, KEYS[0], b"x" * 32), (altered, KEYS[0], HASH)):
        with pytest.raises(OnionError):
            peel(onion, key, hash_)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OnionError):
        make_onion([(KEYS[0].node_id, b"x" * BODY_BYTES)], HASH)
    with pytest.raises(OnionError):
        make_onion([("02" + "00" * 32, b"toast")], HASH)
