"""How the chosen versions get into a block: handed to the network and to our own node, again and again, and helped by a
child that pays more when they are stuck; and what our node's bookkeeper is told of them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from wattline.core.aggregate import Aggregate, Version
from wattline.core.bitcoin.chain import BroadcastRefused, Chain, Outpoint, Tip, TxOutput
from wattline.core.bitcoin.psbt import finalized_psbt
from wattline.core.bitcoin.transaction import read_tx
from wattline.core.errors import RetryError, WattlineError
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.onchain import ReceivingFunds
from wattline.core.version_check import WEIGHT_PER_VBYTE, feerate_per_kw
from wattline.plugin.settings import OnchainSettings

log = logging.getLogger(__name__)

BROADCAST_AGAIN_S = 5.0
TELL_AGAIN_S, TELL_AGAIN_AT_MOST_S = 5.0, 600.0
"""After a refusal of our own node: doubled with each one."""
BUMP_AGAIN_S = 60.0
CHILD_VSIZE = 111
"""One input and one output of ours (P2TR)."""
MOST_FOR_CHILD_PERCENT = 50
"""A child may cost at most this part of what its parent pays us."""


class Broadcasts:
    """What it remembers may be lost: it is only when something is tried again. For one thread."""

    def __init__(
        self,
        settings: OnchainSettings,
        ledger: Ledger,
        chain: Chain,
        funds: ReceivingFunds,
        clock: Callable[[], float],
    ) -> None:
        """``clock``: monotonic, in s."""
        self._settings = settings
        self._ledger = ledger
        self._chain = chain
        self._funds = funds
        self._clock = clock
        self._sent_at: dict[str, float] = {}
        """By session, as the others."""
        self._waits_since: dict[str, int] = {}
        """The height at which it was first seen to wait in the mempool."""
        self._bump_due: dict[str, float] = {}
        self._announced: dict[str, str] = {}
        """The version that our own node has been told of, by txid."""
        self._described: dict[str, str] = {}
        """The transaction that the bookkeeper has been told of, by txid."""
        self._refusals: dict[tuple[str, str], tuple[int, float]] = {}
        """By session and what our node was told: how often it has refused that, and when it is told again."""
        self.troubles: dict[str, str] = {}
        """What our own node does not take, by session: without it there is no child to help a stuck payment."""

    def is_due(self, session_id: str) -> bool:
        """Whether it is time to hand it to the network (again)."""
        return self._clock() - self._sent_at.get(session_id, float("-inf")) >= BROADCAST_AGAIN_S

    def is_new(self, session_id: str) -> bool:
        """This process has not dealt with it yet."""
        return session_id not in self._sent_at

    def send(self, session_id: str, chosen: Version) -> None:
        """Hand the chosen version to the network, by our own node too, so that it knows what it is going to have. What
        the mempool does not take now is sent again later. Raises ChainUnavailable, ChainRefused."""
        self._sent_at[session_id] = self._clock()
        try:
            self._chain.broadcast(chosen.raw)
        except BroadcastRefused as error:
            log.warning("session %s: %s cannot be broadcast now: %s", session_id, chosen.txid, error.message)
            return
        log.info("session %s: broadcast %s, %d sat", session_id, chosen.txid, chosen.value_sat)
        self._waits_since.setdefault(session_id, self._chain.tip().height)
        self._tell_node(session_id, chosen)

    def tend(self, aggregate: Aggregate, chosen: Version, tip: Tip) -> None:
        """The chosen version is in the mempool: let it not wait there for ever."""
        session_id = aggregate.session_id
        self._sent_at.setdefault(session_id, self._clock())
        self._tell_node(session_id, chosen)
        waited = tip.height - self._waits_since.setdefault(session_id, tip.height)
        is_stuck = aggregate.child_txid is None and waited >= self._settings.bump_after_blocks
        if is_stuck and self._clock() >= self._bump_due.get(session_id, 0.0):
            self._bump_due[session_id] = self._clock() + BUMP_AGAIN_S
            self._bump(aggregate, chosen)

    def describe(self, session_id: str, outpoint: Outpoint) -> None:
        """Tell the bookkeeper what the deposit was for, as soon as it knows of it; nothing when it was done."""
        if self._described.get(session_id) == outpoint.txid or not self._may_tell(session_id, "income"):
            return
        try:
            self._funds.describe_income(outpoint, f"wattline:1:{session_id}")
        except RetryError as error:
            log.info("the bookkeeper does not describe %s yet: %s", outpoint, error.message)
            return
        except WattlineError as error:
            self._refused(session_id, "income")
            log.warning("the bookkeeper does not describe %s: %s", outpoint, error.message)
            return
        self._described[session_id] = outpoint.txid

    def arrived(self, session_id: str) -> None:
        """It is in a block: our own node sees it there, and nothing has to be helped."""
        self.troubles.pop(session_id, None)

    def forget(self, session_id: str) -> None:
        """Its fate is final."""
        for remembered in (self._sent_at, self._waits_since, self._bump_due, self._announced, self._described):
            remembered.pop(session_id, None)
        self.troubles.pop(session_id, None)
        for what in ("income", "payment"):
            self._refusals.pop((session_id, what), None)

    def _tell_node(self, session_id: str, chosen: Version) -> None:
        """With a PSBT of our own making: whatever else stood in the cable's, our node could refuse it for."""
        if self._announced.get(session_id) == chosen.txid or not self._may_tell(session_id, "payment"):
            return
        tx = read_tx(bytes.fromhex(chosen.raw))
        found = [self._chain.unspent(item.outpoint, include_mempool=False) for item in tx.inputs]
        prevouts = [TxOutput(each.value_sat, each.script) for each in found if each is not None]
        if len(prevouts) < len(found):
            return  # mined meanwhile, which our node sees for itself
        try:
            self._funds.send(finalized_psbt(tx, prevouts))
        except RetryError as error:
            log.info("the node is told of %s later: %s", chosen.txid, error.message)
            return
        except WattlineError as error:
            trouble = f"lightningd does not take {chosen.txid}, and could not help it by a child: {error.message}"
            if self.troubles.get(session_id) != trouble:
                log.warning("session %s: %s", session_id, trouble)
            self.troubles[session_id] = trouble
            self._refused(session_id, "payment")
            return
        self.troubles.pop(session_id, None)
        self._announced[session_id] = chosen.txid

    def _may_tell(self, session_id: str, what: str) -> bool:
        return self._clock() >= self._refusals.get((session_id, what), (0, float("-inf")))[1]

    def _refused(self, session_id: str, what: str) -> None:
        count = self._refusals.get((session_id, what), (0, 0.0))[0]
        wait_s = min(TELL_AGAIN_S * 2**count, TELL_AGAIN_AT_MOST_S)
        self._refusals[session_id, what] = (min(count + 1, 10), self._clock() + wait_s)

    def _bump(self, aggregate: Aggregate, chosen: Version) -> None:
        """A child of our own output pays for both, where that is worth it."""
        target = self._funds.feerate_per_kw()
        if target <= feerate_per_kw(chosen.fee_sat, chosen.vsize):
            return  # it does not wait for want of a fee
        fee_sat = target * (chosen.vsize + CHILD_VSIZE) * WEIGHT_PER_VBYTE // 1000 - chosen.fee_sat
        if fee_sat * 100 > chosen.value_sat * MOST_FOR_CHILD_PERCENT:
            log.info(
                "session %s: helping %s would cost %d sat: not worth it", aggregate.session_id, chosen.txid, fee_sat
            )
            return
        rate = fee_sat * 1000 // (CHILD_VSIZE * WEIGHT_PER_VBYTE) + 1
        txid = self._funds.bump(Outpoint(chosen.txid, chosen.vout), rate)
        self._ledger.child(aggregate.session_id, txid)
        log.info("session %s: %s is helped by %s, %d sat", aggregate.session_id, chosen.txid, txid, fee_sat)
