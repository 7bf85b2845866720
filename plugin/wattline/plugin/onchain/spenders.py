"""Who spends the inputs of an aggregate, and what follows for a cable that spends them elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from wattline.core.aggregate import Aggregate, is_paid_by
from wattline.core.bitcoin.chain import BlockPruned, Chain, MinedTx, Outpoint, Tx
from wattline.core.errors import StopError
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.onchain import Income, ReceivingFunds
from wattline.core.session.session import Session
from wattline.core.session.state import StopReason

log = logging.getLogger(__name__)

DEEPEST_REORG = 100
"""The inputs may be spent in so many blocks below the tip at which they were first seen: it was another one then."""


class SpenderUnknown(StopError):
    """An input is spent, and what spends it cannot be found out. Code ``spender_unknown``."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What spends an input of an aggregate in a block of the best chain."""

    txid: str
    paid_sat: int
    """To the aggregate's script."""
    height: int
    block_hash: str
    tx: Tx | None
    """None where the block is gone, and only our own node's wallet tells of what came."""

    @classmethod
    def of(cls, aggregate: Aggregate, mined: MinedTx) -> Spent:
        return cls(mined.tx.txid, mined.tx.paid_to(aggregate.script), mined.height, mined.block_hash, mined.tx)


class Spenders:
    """Every method raises ChainUnavailable and the ledger's errors."""

    def __init__(self, ledger: Ledger, chain: Chain, funds: ReceivingFunds, now: Callable[[], int]) -> None:
        self._ledger = ledger
        self._chain = chain
        self._funds = funds
        self._now = now
        self._unknown_at: dict[str, str] = {}
        """By session, the tip at which all blocks were read in vain: they are not read again before the next one."""

    def mined(self, aggregate: Aggregate, session: Session | None) -> Spent | None:
        """What was mined instead of, or as, a version: it need not spend all the inputs. Raises SpenderUnknown,
        NodeUnavailable."""
        session_id = aggregate.session_id
        spent = [
            item.outpoint
            for item in aggregate.inputs
            if self._chain.unspent(item.outpoint, include_mempool=False) is None
        ]
        if not spent:
            self._unknown_at.pop(session_id, None)
            return None
        tip = self._chain.tip()
        missing: BlockPruned | None = None
        if self._unknown_at.get(session_id) != tip.block_hash:
            lowest = max(0, aggregate.first_height - DEEPEST_REORG)
            for outpoint in spent:
                try:
                    mined = self._chain.mined_spender(outpoint, lowest)
                except BlockPruned as error:
                    missing = error
                    continue
                if mined is not None:
                    self._unknown_at.pop(session_id, None)
                    return Spent.of(aggregate, mined)
            if missing is None:
                return None
            self._unknown_at[session_id] = tip.block_hash
        came = self._came(aggregate, session)
        if came is not None:
            return came
        raise SpenderUnknown(
            "spender_unknown",
            f"input {spent[0]} is spent, bitcoind has deleted the block that says by what, and nothing that pays for "
            f"the session has come to the node's wallet: wattline-resolve {session_id} tells how it ended",
        ) from missing

    def _came(self, aggregate: Aggregate, session: Session | None) -> Spent | None:
        """What our own node's wallet knows of the session's address: one of our versions, or what pays what is owed."""
        for income in self._funds.income(aggregate.script):
            block_hash = self._chain.block_hash(income.blockheight) if income.blockheight else None
            if block_hash is not None and self._explains(aggregate, session, income):
                return Spent(income.outpoint.txid, income.value_sat, income.blockheight, block_hash, None)
        return None

    def _explains(self, aggregate: Aggregate, session: Session | None, income: Income) -> bool:
        if self._ledger.version_value_sat(aggregate.session_id, income.outpoint.txid) is not None:
            return True
        return session is not None and self.pays(session, income.value_sat)

    def pays(self, session: Session, value_sat: int) -> bool:
        """Whether ``value_sat`` on the chain pays what the session owes there, as far as it is charged by now."""
        onchain_msat = self._ledger.onchain_credited_msat(session.session_id)
        account = session.account
        return is_paid_by(value_sat, account.charged_msat, account.credited_msat - onchain_msat)

    def are_gone(self, aggregate: Aggregate, session: Session | None) -> bool:
        """An input is neither there (one whose own block was taken out of the chain is not confirmed, but there) nor
        spent by anything: something else stands in its parent's place. Raises SpenderUnknown."""
        outpoints = [item.outpoint for item in aggregate.inputs]
        if all(self._chain.unspent(outpoint, include_mempool=True) is not None for outpoint in outpoints):
            return False
        # In this order: what was spent between two questions has a spender by now, in the mempool or in a block.
        return not self._chain.mempool_spenders(outpoints) and self.mined(aggregate, session) is None

    def outpoint(self, aggregate: Aggregate, spent: Spent) -> Outpoint | None:
        """The output of ``spent`` that pays us."""
        if spent.tx is None:
            return next((item.outpoint for item in self._funds.income(aggregate.script)), None)
        for number, output in enumerate(spent.tx.outputs):
            if output.script == aggregate.script:
                return Outpoint(spent.txid, number)
        return None

    def fraud(self, session_id: str, txid: str) -> StopReason:
        """What it is called that ``txid`` spends the inputs and pays less than is owed."""
        is_version = self._ledger.version_value_sat(session_id, txid) is not None
        return StopReason.OLDER_VERSION if is_version else StopReason.DOUBLE_SPENT

    def refuse(self, aggregate: Aggregate, reason: str) -> None:
        """This cable has paid with what it did not have."""
        outpoints = [item.outpoint for item in aggregate.inputs]
        if self._ledger.refused_cable(aggregate.cable_node_id) is None:
            log.error("cable %s is refused from now on: %s", aggregate.cable_node_id, reason)
        self._ledger.refuse_cable(aggregate.cable_node_id, outpoints, aggregate.session_id, reason, self._now())
