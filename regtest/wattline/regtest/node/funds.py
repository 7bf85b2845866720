"""What ``newaddr``, ``listfunds`` and ``fundchannel`` need of a wallet, and the wallet on the practice chain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from wattline.regtest.node.blocks import Output, PracticeBlocks
from wattline.regtest.node.fault import Fault
from wattline.regtest.node.store import Store

Json = dict[str, Any]
CANNOT_AFFORD = 301
FEE_SAT = 166


class Funds(Protocol):
    async def new_address(self, kind: str) -> str:
        """``p2tr`` or ``bech32``."""

    def outputs(self, spent: bool) -> Sequence[Json]:
        """The elements of ``listfunds``; ``spent`` ones too."""

    async def fund(self, value_sat: int) -> str:
        """A transaction whose output 0 is a channel of ``value_sat``; its txid. Raises Fault."""


class PracticeFunds:
    """On the practice chain: whoever has the address has the money."""

    def __init__(self, store: Store, blocks: PracticeBlocks) -> None:
        self._store = store
        self._blocks = blocks

    async def new_address(self, kind: str) -> str:
        address = ("bcrt1q" if kind == "bech32" else "bcrt1p") + os.urandom(19).hex()
        self._store.insert("addresses", address=address)
        return address

    def outputs(self, spent: bool) -> Sequence[Json]:
        return [_output(output) for output in self._unspent()]

    async def fund(self, value_sat: int) -> str:
        outputs = [output for output in self._unspent() if output.height is not None]
        total = sum(output.value_sat for output in outputs)
        if total < value_sat + FEE_SAT:
            raise Fault(CANNOT_AFFORD, f"Could not afford {value_sat}sat using all {len(outputs)} available UTXOs")
        change = await self.new_address("p2tr")
        channel_address = "bcrt1p" + os.urandom(29).hex()
        return self._blocks.pay(
            [(channel_address, value_sat), (change, total - value_sat - FEE_SAT)],
            [(output.txid, output.number) for output in outputs],
        )

    def _unspent(self) -> list[Output]:
        addresses = [row["address"] for row in self._store.rows("SELECT address FROM addresses")]
        return self._blocks.unspent(addresses)


def _output(output: Output) -> Json:
    confirmed = output.height is not None
    return {
        "txid": output.txid,
        "output": output.number,
        "amount_msat": output.value_sat * 1000,
        "scriptpubkey": "5120" + output.txid,
        "address": output.address,
        "status": "confirmed" if confirmed else "unconfirmed",
        **({"blockheight": output.height} if confirmed else {}),
        "reserved": False,
    }
