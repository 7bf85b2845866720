"""The wallet on a bitcoind behind ``newaddr``, ``listfunds`` and ``fundchannel``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from wattline.regtest.node.bitcoin_wallet import SPENT, BitcoinWallet, Utxo
from wattline.regtest.node.coins import Coins
from wattline.regtest.node.feerates import Feerates
from wattline.regtest.node.psbt import PsbtOutput

Json = dict[str, Any]


class BitcoinFunds:
    """``height`` tells the node's."""

    def __init__(self, wallet: BitcoinWallet, coins: Coins, feerates: Feerates, height: Callable[[], int]) -> None:
        self._wallet = wallet
        self._coins = coins
        self._feerates = feerates
        self._height = height

    async def new_address(self, kind: str) -> str:
        return await self._wallet.new_address(kind)

    def outputs(self, spent: bool) -> Sequence[Json]:
        utxos = self._wallet.outputs()
        return [output_object(utxo, self._height()) for utxo in utxos if spent or utxo.status != SPENT]

    async def fund(self, value_sat: int) -> str:
        # P2WSH of a script that nobody knows: channels of practice nodes are never closed on the chain.
        script = bytes.fromhex("0020") + os.urandom(32)
        feerate = await self._feerates.opening()
        return (await self._coins.pay(PsbtOutput(value_sat, script), feerate, None, 1, False))[2]


def output_object(utxo: Utxo, height: int) -> Json:
    """One element of ``outputs`` in ``listfunds``."""
    if utxo.spendheight is not None:
        status: Json = {"status": "spent"}
    elif utxo.blockheight is not None:
        status = {"status": "confirmed", "blockheight": utxo.blockheight}
    else:
        status = {"status": "unconfirmed"}
    reserved = utxo.is_reserved(height)
    return {
        "txid": utxo.txid,
        "output": utxo.vout,
        "amount_msat": utxo.value_sat * 1000,
        "scriptpubkey": utxo.script,
        "address": utxo.address,
        **status,
        "reserved": reserved,
        **({"reserved_to_block": utxo.reserved_til} if reserved else {}),
    }
