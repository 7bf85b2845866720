"""Keysends over one channel of one's choice that have nothing to do with wattline: they bring a channel's balance to
where a test wants it."""

from __future__ import annotations

import secrets

from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.node import ChannelBalance
from wattline.core.lightning.onion import AMT_TO_FORWARD, OUTGOING_CLTV_VALUE, payment_hash_of
from wattline.core.record import PREIMAGE_TLV_TYPE, encode_bigsize, encode_tlv_stream, encode_truncated
from wattline.regtest.lightningd import Node
from wattline.regtest.waiting import wait_until

FINAL_CLTV = 24
CLOSE_ENOUGH_MSAT = 5_000
"""A channel's spendable amount moves a little with the fees of its commitment transaction."""


def level(wallet: Node, payee: Node, spendable_msat: int) -> None:
    """Bring what ``wallet`` can spend in each of its channels with ``payee`` to this, by payments to or from it."""

    def is_level() -> bool:
        off = [
            (channel.short_channel_id, channel.spendable_msat - spendable_msat) for channel in channels(wallet, payee)
        ]
        for short_channel_id, difference_msat in off:
            if difference_msat > CLOSE_ENOUGH_MSAT:
                pay_directly(wallet, payee, short_channel_id, difference_msat)
            elif difference_msat < -CLOSE_ENOUGH_MSAT:
                pay_directly(payee, wallet, short_channel_id, -difference_msat)
        return all(abs(difference_msat) <= CLOSE_ENOUGH_MSAT for _, difference_msat in off)

    wait_until(f"{spendable_msat} msat to spend in each channel of {wallet.name}", is_level)


def channels(wallet: Node, payee: Node) -> list[ChannelBalance]:
    """The usable channels between the two, as ``wallet`` sees them."""
    return [item for item in CoreLightning(wallet.rpc_path).channels() if item.peer_id == payee.node_id]


def pay_directly(wallet: Node, payee: Node, short_channel_id: str, amount_msat: int) -> None:
    """One keysend over that channel, without any record. Raises RpcError when it does not arrive."""
    preimage = secrets.token_hex(32)
    payment_hash = payment_hash_of(preimage)
    # One more than the height, as lightningd counts itself when it turns first_hop.delay into an expiry.
    expiry = int(wallet.rpc.getinfo()["blockheight"]) + 1 + FINAL_CLTV
    stream = encode_tlv_stream(
        {
            AMT_TO_FORWARD: encode_truncated(amount_msat),
            OUTGOING_CLTV_VALUE: encode_truncated(expiry),
            PREIMAGE_TLV_TYPE: bytes.fromhex(preimage),
        }
    )
    payload = (encode_bigsize(len(stream)) + stream).hex()
    hop = {"pubkey": payee.node_id, "payload": payload}
    onion = wallet.rpc.call("createonion", {"hops": [hop], "assocdata": payment_hash})
    wallet.rpc.call(
        "sendonion",
        {
            "onion": onion["onion"],
            "first_hop": {
                "id": payee.node_id,
                "channel": short_channel_id,
                "amount_msat": amount_msat,
                "delay": FINAL_CLTV,
            },
            "payment_hash": payment_hash,
            "shared_secrets": onion["shared_secrets"],
            "amount_msat": amount_msat,
            "destination": payee.node_id,
        },
    )
    wallet.rpc.call("waitsendpay", {"payment_hash": payment_hash, "timeout": 30})
