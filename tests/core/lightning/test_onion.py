"""What each hop of a keysend is told (BOLT #4)."""

from __future__ import annotations

import pytest

from wattline.core.lightning.node import Hop, Route
from wattline.core.lightning.onion import encode_short_channel_id, onion_hops, payment_hash_of
from wattline.core.record import PREIMAGE_TLV_TYPE, RECORD_TLV_TYPE, invoice_description, parse_payload

PREIMAGE = "11" * 32
RECORD = "wattline:1:0123456789ABCDEFGHJKMNPQRS:3"
B, C = "02" + "bb" * 32, "03" + "cc" * 32

DIRECT = Route(B, 5000, (Hop("103x1x0/1", B, 5000, 46, 5000, 46),))
OVER_B = Route(C, 5000, (Hop("103x1x0/1", B, 6001, 52, 6001, 52), Hop("104x2x1/0", C, 6001, 52, 5000, 46)))


def fields(payload: str) -> dict[int, bytes]:
    return parse_payload(bytes.fromhex(payload))


def test_the_destination_is_told_amount_expiry_record_and_preimage_and_nothing_else() -> None:
    (hop,) = onion_hops(DIRECT, 1000, PREIMAGE, RECORD)
    assert hop.node_id == B
    assert fields(hop.payload) == {
        2: (5000).to_bytes(2, "big"),
        4: (1046).to_bytes(2, "big"),
        RECORD_TLV_TYPE: RECORD.encode(),
        PREIMAGE_TLV_TYPE: bytes.fromhex(PREIMAGE),
    }


def test_a_forwarding_node_is_told_the_next_channel_and_what_shall_come_out_of_it() -> None:
    over, last = onion_hops(OVER_B, 1000, PREIMAGE, RECORD)
    assert (over.node_id, last.node_id) == (B, C)
    assert fields(over.payload) == {
        2: (5000).to_bytes(2, "big"),
        4: (1046).to_bytes(2, "big"),
        6: bytes.fromhex("0000680000020001"),
    }
    assert fields(last.payload)[2] == (5000).to_bytes(2, "big")


def test_the_receiving_node_will_write_the_record_into_its_invoice() -> None:
    (hop,) = onion_hops(DIRECT, 1000, PREIMAGE, RECORD)
    assert invoice_description(bytes.fromhex(hop.payload)) == f"keysend: {RECORD}"


def test_hops_that_do_not_meet_are_refused() -> None:
    torn = Route(C, 5000, (OVER_B.hops[0], Hop("104x2x1/0", C, 6000, 52, 5000, 46)))
    with pytest.raises(ValueError, match="do not meet"):
        onion_hops(torn, 1000, PREIMAGE, RECORD)


def test_a_route_that_delivers_another_amount_or_to_another_node_is_refused() -> None:
    for wrong in (Route(B, 4999, DIRECT.hops), Route(C, 5000, DIRECT.hops), Route(B, 5000, ())):
        with pytest.raises(ValueError, match="hop"):
            onion_hops(wrong, 1000, PREIMAGE, RECORD)


def test_a_preimage_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        onion_hops(DIRECT, 1000, PREIMAGE[:-2], RECORD)


def test_a_short_channel_id_is_24_24_and_16_bits() -> None:
    assert encode_short_channel_id("539268x845x1") == bytes.fromhex("083a8400034d0001")  # the example of BOLT #7
    assert encode_short_channel_id("16777215x16777215x65535/1") == b"\xff" * 8
    for wrong in ("16777216x0x0", "0x16777216x0", "0x0x65536", "1x2", "", "axbxc", "1x2x-3"):
        with pytest.raises(ValueError, match="short_channel_id"):
            encode_short_channel_id(wrong)


def test_the_payment_hash_is_the_sha256_of_the_preimage() -> None:
    assert payment_hash_of("00" * 32) == "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"
