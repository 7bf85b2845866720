"""Who spends the inputs of an aggregate, and what follows for a cable that spends them elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable

from wattline.bitcoin.chain import Chain, MinedTx
from wattline.ledger import Aggregate, Ledger
from wattline.session import StopReason

log = logging.getLogger(__name__)

DEEPEST_REORG = 100
"""The inputs may be spent in so many blocks below the tip at which they were first seen: it was another one then."""


class Spenders:
    """Every method raises ChainUnavailable and the ledger's errors."""

    def __init__(self, ledger: Ledger, chain: Chain, now: Callable[[], int]) -> None:
        self._ledger = ledger
        self._chain = chain
        self._now = now

    def mined(self, aggregate: Aggregate) -> MinedTx | None:
        """What was mined instead of, or as, a version: it need not spend all the inputs."""
        for item in aggregate.inputs:
            if self._chain.unspent(item.outpoint, include_mempool=False) is None:
                lowest = max(0, aggregate.first_height - DEEPEST_REORG)
                mined = self._chain.mined_spender(item.outpoint, lowest)
                if mined is not None:
                    return mined
        return None

    def are_gone(self, aggregate: Aggregate) -> bool:
        """An input is neither there (one whose own block was taken out of the chain is not confirmed, but there) nor
        spent by anything: something else stands in its parent's place."""
        outpoints = [item.outpoint for item in aggregate.inputs]
        if all(self._chain.unspent(outpoint, include_mempool=True) is not None for outpoint in outpoints):
            return False
        # In this order: what was spent between two questions has a spender by now, in the mempool or in a block.
        return not self._chain.mempool_spenders(outpoints) and self.mined(aggregate) is None

    def fraud(self, session_id: str, txid: str) -> StopReason:
        """What it is called that ``txid`` spends the inputs and pays less than was promised."""
        is_version = self._ledger.version_value_sat(session_id, txid) is not None
        return StopReason.OLDER_VERSION if is_version else StopReason.DOUBLE_SPENT

    def refuse(self, aggregate: Aggregate, reason: str) -> None:
        """This cable has paid with what it did not have."""
        outpoints = [item.outpoint for item in aggregate.inputs]
        if self._ledger.refused_cable(aggregate.cable_node_id) is None:
            log.error("cable %s is refused from now on: %s", aggregate.cable_node_id, reason)
        self._ledger.refuse_cable(aggregate.cable_node_id, outpoints, aggregate.session_id, reason, self._now())
