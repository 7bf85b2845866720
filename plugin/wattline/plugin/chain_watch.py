"""The watch on the chain: the inputs of aggregates that still grow, and the fate of those that were chosen to be
broadcast, until they are final there.

One thread looks at everything again and again; nothing depends on having seen it before, so a restart or a reorg of the
chain changes nothing but the time it takes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from wattline.bitcoin.chain import (
    BroadcastRefused,
    Chain,
    ChainUnavailable,
    MinedTx,
    NotATransaction,
    Outpoint,
    Tip,
)
from wattline.errors import RetryError, StopError, WattlineError
from wattline.ledger import Aggregate, AggregateStatus, Ledger, Version
from wattline.lightning.onchain import ReceivingFunds
from wattline.offering import OnchainSettings
from wattline.payment.aggregate import MSAT_PER_SAT, feerate_per_kw
from wattline.plugin.aggregates import Aggregates
from wattline.session import Event, Fault, Session, State, StopReason
from wattline.tariff import worth_msat

log = logging.getLogger(__name__)

RAISED_FLOOR_PERCENT = 125
"""While the mempool's floor is raised: a transaction whose fee rate is not so much above it is broadcast."""
SLOW_LOOK_S = 2.0
"""How often everything is looked at that no block changes."""
BROADCAST_AGAIN_S = 5.0
BUMP_AGAIN_S = 60.0
MOST_FOR_CHILD_PERCENT = 50
"""A child may cost at most this part of what its parent pays us."""


class Sessions(Protocol):
    """The sessions, as far as the chain can end them."""

    def post(self, session_id: str, event: Event) -> bool: ...

    def session_now(self, session_id: str) -> Session | None:
        """A session as it stands, live or over."""

    def is_served(self, session_id: str) -> bool:
        """Whether an outlet still has it: its end is not written yet."""


class ChainWatch:
    """See the module."""

    def __init__(
        self,
        settings: OnchainSettings,
        network: str,
        ledger: Ledger,
        chain: Chain,
        funds: ReceivingFunds,
        desk: Aggregates,
        sessions: Sessions,
        now: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self._settings = settings
        self._network = network
        self._is_right_chain = False
        self._ledger = ledger
        self._chain = chain
        self._funds = funds
        self._desk = desk
        self._sessions = sessions
        self._now = now
        self._wake = threading.Event()
        self._stopping = False
        self._tip: Tip | None = None
        self._slow_due = 0.0
        self._broadcast_at: dict[str, float] = {}
        self._waits_since: dict[str, int] = {}
        """The height at which a settlement was first seen to wait in the mempool, by session."""
        self._bump_due: dict[str, float] = {}
        self._announced: set[str] = set()
        """Versions that our own node has been told of, by txid."""
        self._thread = threading.Thread(target=self._run, name="chain watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=5)

    def wake(self) -> None:
        """Look now: something was chosen."""
        self._wake.set()

    @property
    def tip_height(self) -> int | None:
        """As seen last; None before the first look."""
        return self._tip.height if self._tip is not None else None

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.look()
            except WattlineError as error:
                self._say(f"{error.code}: {error.message}")
            except Exception:
                log.exception("the chain could not be watched")
                self._say("internal error, see the log")
            else:
                self._say("")
            self._wake.wait(self._settings.watch_interval_ms / 1000)
            self._wake.clear()

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._desk.trouble:
            log.warning("the chain cannot be watched: %s", trouble)
        self._desk.trouble = trouble

    def look(self) -> None:
        """One look at everything. Raises ChainUnavailable and whatever else stands in the way of it."""
        self._check_network()
        aggregates = self._ledger.unfinished_aggregates()
        is_slow = time.monotonic() >= self._slow_due
        if not aggregates and not is_slow:
            return
        tip = self._chain.tip()
        is_new_block, self._tip = tip != self._tip, tip
        if is_slow:
            self._slow_due = time.monotonic() + SLOW_LOOK_S
        growing = [each for each in aggregates if each.status is AggregateStatus.OPEN]
        self._watch_growing(growing, is_thorough=is_new_block or is_slow)
        for aggregate in aggregates:
            if aggregate.status is AggregateStatus.SENT:
                self._on_its_own(aggregate, lambda each: self._follow(each, tip, is_new_block or is_slow))

    def _check_network(self) -> None:
        """Once: a bitcoind of another chain would tell lies about this one."""
        if self._is_right_chain:
            return
        network = self._chain.network()
        if network != self._network:
            raise StopError("wrong_network", f"bitcoind is on {network}, lightningd on {self._network}: see [bitcoind]")
        self._is_right_chain = True

    def _on_its_own(self, aggregate: Aggregate, work: Callable[[Aggregate], None]) -> None:
        """What is wrong with one settlement must not keep the others."""
        try:
            work(aggregate)
        except ChainUnavailable:
            raise
        except WattlineError as error:
            log.warning("settlement of session %s: %s: %s", aggregate.session_id, error.code, error.message)

    # Aggregates that grow.

    def _watch_growing(self, growing: Sequence[Aggregate], *, is_thorough: bool) -> None:
        outpoints = [item.outpoint for each in growing for item in each.inputs]
        spenders = self._chain.mempool_spenders(outpoints) if outpoints else {}
        for aggregate in growing:
            self._on_its_own(aggregate, lambda each: self._watch_one(each, spenders, is_thorough=is_thorough))

    def _watch_one(self, aggregate: Aggregate, spenders: Mapping[Outpoint, str], *, is_thorough: bool) -> None:
        session_id = aggregate.session_id
        if not self._sessions.is_served(session_id):
            session = self._sessions.session_now(session_id)
            if session is not None and session.state is State.CLOSED:
                self._desk.conclude(session)  # the plugin died between the close and the choice
            return
        newest = self._ledger.newest_version(session_id)
        if newest is None:
            return
        txids = {spenders[item.outpoint] for item in aggregate.inputs if item.outpoint in spenders}
        if not txids and is_thorough:
            txids = self._mined_spenders(aggregate)
        if txids:
            self._inputs_spent(aggregate, newest, txids)
        elif is_thorough:
            reason = self._reason_to_end(aggregate, newest)
            if reason is not None:
                self._end(aggregate, newest, reason)

    def _mined_spenders(self, aggregate: Aggregate) -> set[str]:
        for item in aggregate.inputs:
            if self._chain.unspent(item.outpoint, include_mempool=False) is None:
                mined = self._chain.mined_spender(item.outpoint, aggregate.first_height)
                return {mined.tx.txid if mined is not None else "unknown"}
        return set()

    def _inputs_spent(self, aggregate: Aggregate, newest: Version, txids: set[str]) -> None:
        """The cable (only it can sign for them) has spent inputs while the aggregate was growing."""
        session_id = aggregate.session_id
        if txids == {newest.txid}:
            log.info("session %s: the cable has broadcast the newest version itself", session_id)
            self._end(aggregate, newest, StopReason.PAID_EARLY)
            return
        is_older = all(self._ledger.version_value_sat(session_id, txid) is not None for txid in txids)
        reason = StopReason.OLDER_VERSION if is_older else StopReason.DOUBLE_SPENT
        log.error("session %s: %s: the inputs of its payment are spent by %s", session_id, reason, ", ".join(txids))
        # The relay first, then the books.
        self._end(aggregate, newest, reason)
        self._refuse(aggregate, reason)

    def _reason_to_end(self, aggregate: Aggregate, newest: Version) -> StopReason | None:
        floor = self._chain.floor()
        rate = feerate_per_kw(newest.fee_sat, newest.vsize)
        if floor.is_raised and rate * 100 < floor.feerate_per_kw * RAISED_FLOOR_PERCENT:
            return StopReason.FEERATE_LOW
        if self._now() - aggregate.invited_at >= aggregate.rules.max_age_s:
            return StopReason.PAYMENT_AGED
        session = self._sessions.session_now(aggregate.session_id)
        if session is not None and session.state is State.PAUSED:
            terms = session.terms
            need_msat = worth_msat(terms.tariff, terms.rated_power_mw, terms.start_ms) - session.account.balance_msat
            left_sat = aggregate.rules.exposure_cap_sat - newest.value_sat
            if need_msat > left_sat * MSAT_PER_SAT:
                return StopReason.EXPOSURE_CAP
        return None

    def _end(self, aggregate: Aggregate, newest: Version, reason: StopReason) -> None:
        session_id = aggregate.session_id
        is_at_risk = reason in (StopReason.DOUBLE_SPENT, StopReason.OLDER_VERSION, StopReason.PAID_EARLY)
        self._sessions.post(session_id, Fault(reason))
        if is_at_risk:
            # No final version is asked for: what counts now is to be first.
            chosen = self._desk.seize(session_id, reason)
            detail = {"reason": reason, "newest": newest.txid}
            self._ledger.append_event(self._now(), session_id, "aggregate_seized", detail)
            if chosen is not None:
                self._broadcast(session_id, chosen)

    def _refuse(self, aggregate: Aggregate, reason: str) -> None:
        """This cable has paid with what it did not have."""
        outpoints = [item.outpoint for item in aggregate.inputs]
        if self._ledger.refused_cable(aggregate.cable_node_id) is None:
            log.error("cable %s is refused from now on: %s", aggregate.cable_node_id, reason)
        self._ledger.refuse_cable(aggregate.cable_node_id, outpoints, aggregate.session_id, reason, self._now())

    # Aggregates of which a version was chosen.

    def _follow(self, aggregate: Aggregate, tip: Tip, is_thorough: bool) -> None:
        session_id = aggregate.session_id
        chosen = self._ledger.version(session_id, aggregate.chosen_number or 0)
        assert chosen is not None, "a choice names a version"
        if aggregate.mined_block is not None:
            if is_thorough:
                self._count(aggregate, chosen)
            return
        if session_id not in self._broadcast_at:
            is_thorough = True
        if not is_thorough:
            return
        first = aggregate.inputs[0].outpoint
        if self._chain.unspent(first, include_mempool=False) is not None:
            self._keep_in_mempool(aggregate, chosen, tip)
            return
        mined = self._chain.mined_spender(first, aggregate.first_height)
        if mined is not None:
            self._mined(aggregate, chosen, mined)

    def _mined(self, aggregate: Aggregate, chosen: Version, mined: MinedTx) -> None:
        session_id = aggregate.session_id
        value_sat = mined.tx.paid_to(aggregate.script)
        self._ledger.mined(session_id, mined.tx.txid, value_sat, mined.height, mined.block_hash)
        # What the session counts on is the chosen version's value.
        lost_msat = max(0, chosen.value_sat - value_sat) * MSAT_PER_SAT
        self._ledger.lose(session_id, lost_msat)
        detail = {"txid": mined.tx.txid, "value_sat": value_sat, "height": mined.height, "lost_msat": lost_msat}
        self._ledger.append_event(self._now(), session_id, "aggregate_mined", detail)
        if lost_msat:
            log.error("session %s: %d msat are lost: %s was mined instead", session_id, lost_msat, mined.tx.txid)
            known = self._ledger.version_value_sat(session_id, mined.tx.txid) is not None
            self._refuse(aggregate, StopReason.OLDER_VERSION if known else StopReason.DOUBLE_SPENT)
        else:
            log.info("session %s: %d sat were mined in %s", session_id, value_sat, mined.tx.txid)
        self._describe(aggregate, mined)

    def _count(self, aggregate: Aggregate, chosen: Version) -> None:
        """Confirmations, until there are enough."""
        assert aggregate.mined_block is not None
        confirmations = self._chain.confirmations(aggregate.mined_block)
        session_id = aggregate.session_id
        if confirmations == 0:
            log.warning("session %s: a reorg took %s out of the chain", session_id, aggregate.mined_txid)
            self._ledger.append_event(self._now(), session_id, "aggregate_unmined", {"txid": aggregate.mined_txid})
            self._ledger.unmined(session_id)
            self._broadcast(session_id, chosen)
        elif confirmations >= self._settings.confirmations:
            status = AggregateStatus.LOST if aggregate.lost_msat else AggregateStatus.SETTLED
            self._ledger.close_aggregate(session_id, status, self._now())
            for remembered in (self._broadcast_at, self._waits_since, self._bump_due):
                remembered.pop(session_id, None)
            self._announced.discard(chosen.txid)
            log.info("session %s: its settlement is final: %s", session_id, status)

    def _keep_in_mempool(self, aggregate: Aggregate, chosen: Version, tip: Tip) -> None:
        session_id = aggregate.session_id
        if self._chain.mempool_tx(chosen.txid) is None:
            self._look_for_rivals(aggregate, chosen)
            if time.monotonic() - self._broadcast_at.get(session_id, float("-inf")) >= BROADCAST_AGAIN_S:
                self._broadcast(session_id, chosen)
            return
        self._broadcast_at.setdefault(session_id, time.monotonic())
        self._tell_node(chosen)
        waited = tip.height - self._waits_since.setdefault(session_id, tip.height)
        is_stuck = aggregate.child_txid is None and waited >= self._settings.bump_after_blocks
        if is_stuck and time.monotonic() >= self._bump_due.get(session_id, 0.0):
            self._bump_due[session_id] = time.monotonic() + BUMP_AGAIN_S
            self._bump(aggregate, chosen)

    def _look_for_rivals(self, aggregate: Aggregate, chosen: Version) -> None:
        """Another transaction with the same inputs in the mempool, which pays us less: only the cable can have made
        it. Ours cannot replace it, so both are waited for."""
        for txid in set(self._chain.mempool_spenders([item.outpoint for item in aggregate.inputs]).values()):
            rival = self._chain.mempool_tx(txid)
            if rival is not None and rival.paid_to(aggregate.script) < chosen.value_sat:
                known = self._ledger.version_value_sat(aggregate.session_id, txid) is not None
                self._refuse(aggregate, StopReason.OLDER_VERSION if known else StopReason.DOUBLE_SPENT)

    def _broadcast(self, session_id: str, chosen: Version) -> None:
        """Hand the chosen version to the network, by our own node too, so that it knows what it is going to have."""
        self._broadcast_at[session_id] = time.monotonic()
        try:
            self._chain.broadcast(chosen.raw)
        except BroadcastRefused as error:
            log.warning("session %s: %s cannot be broadcast now: %s", session_id, chosen.txid, error.message)
            return
        except NotATransaction as error:
            log.error("session %s: %s: %s", session_id, error.code, error.message)
            return
        log.info("session %s: broadcast %s, %d sat", session_id, chosen.txid, chosen.value_sat)
        self._tell_node(chosen)

    def _tell_node(self, chosen: Version) -> None:
        if chosen.txid in self._announced:
            return
        try:
            self._funds.send(chosen.psbt)
        except RetryError as error:
            log.info("the node is told of %s later: %s", chosen.txid, error.message)
            return
        except WattlineError as error:
            log.warning("the node does not take %s: %s", chosen.txid, error.message)
        self._announced.add(chosen.txid)

    def _bump(self, aggregate: Aggregate, chosen: Version) -> None:
        """A child of our own output pays for both, where that is worth it."""
        target = self._funds.feerate_per_kw()
        rate = feerate_per_kw(chosen.fee_sat, chosen.vsize)
        if target <= rate:
            return  # it does not wait for want of a fee
        # One input and one output of ours (P2TR) are 111 vB.
        child_vsize = 111
        fee_sat = target * (chosen.vsize + child_vsize) * 4 // 1000 - chosen.fee_sat
        if fee_sat * 100 > chosen.value_sat * MOST_FOR_CHILD_PERCENT:
            log.info(
                "session %s: helping %s would cost %d sat: not worth it", aggregate.session_id, chosen.txid, fee_sat
            )
            return
        txid = self._funds.bump(Outpoint(chosen.txid, chosen.vout), fee_sat * 1000 // (child_vsize * 4) + 1)
        self._ledger.child(aggregate.session_id, txid)
        log.info("session %s: %s is helped by %s, %d sat", aggregate.session_id, chosen.txid, txid, fee_sat)

    def _describe(self, aggregate: Aggregate, mined: MinedTx) -> None:
        for number, output in enumerate(mined.tx.outputs):
            if output.script == aggregate.script:
                text = f"wattline:1:{aggregate.session_id}"
                try:
                    self._funds.describe_income(Outpoint(mined.tx.txid, number), text)
                except WattlineError as error:
                    log.info("the bookkeeper does not describe %s yet: %s", mined.tx.txid, error.message)
