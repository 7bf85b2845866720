"""Whether bitcoind is on the chain on which it was before, and on that of lightningd: asked before anything that it
says of coins is believed. Another chain knows none of them, and makes every cable look like a cheat."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from wattline.core.bitcoin.chain import Chain, Tip
from wattline.core.errors import StopError
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.onchain import ReceivingFunds

GENESIS: Mapping[str, str] = {
    "bitcoin": "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f",
    "testnet": "000000000933ea01ad0ee984209779baaec3ced90fa3f408719526f8d77f4943",
    "testnet4": "00000000da84f2bafbbc53dee25a72ae507ff4914b867c565be350b0da8bf043",
    "signet": "00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6",
    "regtest": "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206",
}
"""Hashes of the first blocks, by Core Lightning's name of the network (bitcoind's src/kernel/chainparams.cpp)."""
DEPTH = 12
"""So deep a block is remembered: no reorg has ever reached that far."""
EVERY_BLOCKS = 144
"""How often another one is remembered."""
REMEMBERED = "block_remembered"
WITNESSES = 3
"""So many outputs of the node's own wallet are looked for."""


class OtherChain(StopError):
    """bitcoind shows another chain than before, or than lightningd. Code ``bitcoind_other_chain``."""


class ChainIdentity:
    """For one thread, but for :meth:`accept`."""

    def __init__(
        self,
        network: str,
        ledger: Ledger,
        chain: Chain,
        funds: ReceivingFunds,
        now: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        """``network``: lightningd's."""
        self._network = network
        self._ledger = ledger
        self._chain = chain
        self._funds = funds
        self._now = now
        self._is_begun = False
        self._checked: str | None = None
        """The block at the tip when all was well."""

    def check_network(self) -> None:
        """Once: the network and its first block. Raises StopError ``bitcoind_other_network``, OtherChain, and what the
        chain raises."""
        if self._is_begun:
            return
        self._chain.check(self._network)
        first, wanted = self._chain.block_hash(0), GENESIS.get(self._network)
        if wanted is not None and first != wanted:
            raise OtherChain("bitcoind_other_chain", f"bitcoind's first block is {first}, not that of {self._network}")
        self._is_begun = True

    def check(self, tip: Tip) -> None:
        """At each new ``tip``: the block that was remembered is still there. Raises OtherChain, and what chain, node
        and ledger raise."""
        if tip.block_hash == self._checked:
            return
        known = self._remembered()
        if known is not None:
            height, block_hash = known
            found = self._chain.block_hash(height)
            if found != block_hash:
                raise OtherChain(
                    "bitcoind_other_chain",
                    f"bitcoind's block {height} is {found or 'not there'}; it was {block_hash}: it is on another chain "
                    "than before (if that is right: wattline-resolve chain accept)",
                )
        height = _deep(tip)
        is_due = known is None or height >= known[0] + EVERY_BLOCKS or known[0] <= 1 < height
        if self._checked is None or is_due:
            self._check_witnesses()
        if is_due:
            self._remember(height, {})
        self._checked = tip.block_hash

    def accept(self, reason: str) -> None:
        """The operator says that the chain which bitcoind shows now is the right one. Raises what chain and ledger
        raise."""
        tip = self._chain.tip()
        self._remember(_deep(tip), {"accepted_because": reason})

    def _remembered(self) -> tuple[int, str] | None:
        event = self._ledger.last_event(REMEMBERED)
        return (int(event.detail["height"]), str(event.detail["hash"])) if event is not None else None

    def _remember(self, height: int, detail: Mapping[str, str]) -> None:
        block_hash = self._chain.block_hash(height)
        if block_hash is not None:
            self._ledger.append_event(self._now(), None, REMEMBERED, {"height": height, "hash": block_hash, **detail})

    def _check_witnesses(self) -> None:
        """What the node's own wallet holds in blocks, a bitcoind of the same chain knows."""
        outputs = self._funds.outputs()[:WITNESSES]
        if outputs and all(self._chain.unspent(item.outpoint, include_mempool=False) is None for item in outputs):
            raise OtherChain(
                "bitcoind_other_chain",
                f"bitcoind does not know {outputs[0].outpoint}, which lightningd's wallet holds since block "
                f"{outputs[0].blockheight}: they are on different chains, or one of them is far behind",
            )


def _deep(tip: Tip) -> int:
    """The height of a block that stays; of a chain that is shorter, of its second: every regtest has the same first."""
    return max(min(1, tip.height), tip.height - DEPTH)
