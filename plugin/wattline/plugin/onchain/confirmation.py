"""Following what was chosen to be broadcast, over reorgs and restarts, until it is final: settled, or lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from wattline.core.aggregate import MSAT_PER_SAT, Aggregate, AggregateStatus, Version, lost_msat
from wattline.core.bitcoin.chain import Chain, Outpoint, Tip
from wattline.core.ledger.ledger import Ledger
from wattline.core.session.session import Session
from wattline.core.session.state import StopReason
from wattline.plugin.onchain.broadcast import Broadcasts
from wattline.plugin.onchain.spenders import Spenders, Spent
from wattline.plugin.settings import OnchainSettings

log = logging.getLogger(__name__)


class ConfirmationTracker:
    """Owned by the thread that watches the chain."""

    def __init__(
        self,
        settings: OnchainSettings,
        ledger: Ledger,
        chain: Chain,
        spenders: Spenders,
        broadcasts: Broadcasts,
        session_now: Callable[[str], Session | None],
        now: Callable[[], int],
    ) -> None:
        self._session_now = session_now
        self._settings = settings
        self._ledger = ledger
        self._chain = chain
        self._spenders = spenders
        self._broadcasts = broadcasts
        self._now = now
        self._gone_since: dict[str, int] = {}
        """The height at which an input was first missed, by session; counted anew after a restart."""

    def follow(self, aggregate: Aggregate, tip: Tip, *, is_thorough: bool) -> None:
        """One look at an aggregate that is SENT. Raises what the chain, the node and the ledger raise."""
        session_id = aggregate.session_id
        chosen = self._ledger.version(session_id, aggregate.chosen_number or 0)
        assert chosen is not None, "a choice names a version"
        if not is_thorough and not (aggregate.mined_block is None and self._broadcasts.is_new(session_id)):
            return
        if aggregate.mined_block is not None:
            self._count(aggregate, chosen)
            return
        mined = self._spenders.mined(aggregate, self._session_now(session_id))
        if mined is not None:
            self._mined(aggregate, chosen, mined)
        elif self._chain.mempool_tx(chosen.txid) is not None:
            self._gone_since.pop(session_id, None)
            self._broadcasts.tend(aggregate, chosen, tip)
        elif not self._is_lost_for_good(aggregate, chosen, tip):
            self._look_for_rivals(aggregate, chosen)
            if self._broadcasts.is_due(session_id):
                self._broadcasts.send(session_id, chosen)

    def _mined(self, aggregate: Aggregate, chosen: Version, mined: Spent) -> None:
        session_id, value_sat = aggregate.session_id, mined.paid_sat
        # What the session counts on is the chosen version's value.
        missing_msat = max(0, chosen.value_sat - value_sat) * MSAT_PER_SAT
        is_fraud = self._is_fraud(session_id, value_sat, missing_msat)
        detail = {"txid": mined.txid, "value_sat": value_sat, "height": mined.height, "missing_msat": missing_msat}
        with self._ledger.unit():
            self._ledger.mined(session_id, mined.txid, value_sat, mined.height, mined.block_hash)
            self._ledger.lose(session_id, missing_msat)
            self._ledger.append_event(self._now(), session_id, "aggregate_mined", detail)
            if is_fraud:
                self._spenders.refuse(aggregate, self._spenders.fraud(session_id, mined.txid))
        if is_fraud:
            log.error(
                "session %s: %s was mined instead, and pays %d sat: %d msat are lost",
                session_id,
                mined.txid,
                value_sat,
                self._lost_msat(session_id, missing_msat),
            )
        else:
            log.info("session %s: %d sat were mined in %s", session_id, value_sat, mined.txid)
        self._broadcasts.arrived(session_id)
        self._describe(aggregate, mined)

    def _is_fraud(self, session_id: str, value_sat: int, missing_msat: int) -> bool:
        """Less came than was chosen to be taken, and less than is owed: whatever transaction it is that pays."""
        session = self._session_now(session_id)
        return missing_msat > 0 and (session is None or not self._spenders.pays(session, value_sat))

    def _lost_msat(self, session_id: str, missing_msat: int) -> int:
        session = self._session_now(session_id)
        return lost_msat(missing_msat, session.account.balance_msat) if session is not None else missing_msat

    def _describe(self, aggregate: Aggregate, mined: Spent) -> None:
        outpoint = self._spenders.outpoint(aggregate, mined)
        if outpoint is not None:
            self._broadcasts.describe(aggregate.session_id, outpoint)

    def _count(self, aggregate: Aggregate, chosen: Version) -> None:
        """Confirmations, until there are enough."""
        assert aggregate.mined_block is not None
        confirmations = self._chain.confirmations(aggregate.mined_block)
        session_id = aggregate.session_id
        if confirmations == 0:
            log.warning("session %s: a reorg took %s out of the chain", session_id, aggregate.mined_txid)
            with self._ledger.unit():
                self._ledger.append_event(self._now(), session_id, "aggregate_unmined", {"txid": aggregate.mined_txid})
                self._ledger.unmined(session_id)
            self._broadcasts.send(session_id, chosen)
            return
        if aggregate.mined_txid == chosen.txid:
            self._broadcasts.describe(session_id, Outpoint(chosen.txid, chosen.vout))
        if confirmations >= self._settings.confirmations:
            is_lost = self._is_fraud(session_id, aggregate.mined_value_sat, aggregate.lost_msat)
            if is_lost:  # the last energy may have been charged since
                self._spenders.refuse(aggregate, self._spenders.fraud(session_id, aggregate.mined_txid or ""))
            self._close(session_id, AggregateStatus.LOST if is_lost else AggregateStatus.SETTLED)

    def _is_lost_for_good(self, aggregate: Aggregate, chosen: Version, tip: Tip) -> bool:
        """An input has not existed for as many blocks as make a transaction final: nothing will ever spend it."""
        session_id = aggregate.session_id
        if not self._spenders.are_gone(aggregate, self._session_now(session_id)):
            self._gone_since.pop(session_id, None)
            return False
        gone_since = self._gone_since.setdefault(session_id, tip.height)
        if tip.height - gone_since < self._settings.confirmations:
            return False
        missing_msat = chosen.value_sat * MSAT_PER_SAT
        with self._ledger.unit():
            self._ledger.lose(session_id, missing_msat)
            self._ledger.append_event(self._now(), session_id, "aggregate_vanished", {"missing_msat": missing_msat})
            self._spenders.refuse(aggregate, StopReason.DOUBLE_SPENT)
            self._close(session_id, AggregateStatus.LOST)
        log.error(
            "session %s: %d msat are lost: an input does not exist any more",
            session_id,
            self._lost_msat(session_id, missing_msat),
        )
        return True

    def _close(self, session_id: str, status: AggregateStatus) -> None:
        self._ledger.close_aggregate(session_id, status, self._now())
        self._broadcasts.forget(session_id)
        self._gone_since.pop(session_id, None)
        log.info("session %s: its settlement is final: %s", session_id, status)

    def _look_for_rivals(self, aggregate: Aggregate, chosen: Version) -> None:
        """Another transaction with the same inputs in the mempool, which pays us less than is owed: only the cable
        can have made it. Ours cannot replace it, so both are waited for."""
        for txid in set(self._chain.mempool_spenders([item.outpoint for item in aggregate.inputs]).values()):
            rival = self._chain.mempool_tx(txid)
            if rival is None:
                continue
            value_sat = rival.paid_to(aggregate.script)
            missing_msat = max(0, chosen.value_sat - value_sat) * MSAT_PER_SAT
            if self._is_fraud(aggregate.session_id, value_sat, missing_msat):
                self._spenders.refuse(aggregate, self._spenders.fraud(aggregate.session_id, txid))
