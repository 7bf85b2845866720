"""The watch on the chain: the inputs of aggregates that still grow. What was chosen to be broadcast is followed on the
way (:mod:`wattline.plugin.onchain.confirmation`).

One thread looks at everything again and again; nothing depends on having seen it before, so a restart or a reorg of the
chain changes nothing but the time it takes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from wattline.core.aggregate import MSAT_PER_SAT, Aggregate, AggregateStatus, Version
from wattline.core.bitcoin.chain import Chain, ChainUnavailable, Outpoint, Tip, Tx
from wattline.core.clock import Clock
from wattline.core.errors import WattlineError
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.onchain import ReceivingFunds
from wattline.core.session.event import CreditChecked, DeliveryFault
from wattline.core.session.session import Session
from wattline.core.session.state import State, StopReason
from wattline.core.tariff import worth_msat
from wattline.core.version_check import feerate_per_kw
from wattline.plugin.crediting import Crediting
from wattline.plugin.older_copy import OlderCopy
from wattline.plugin.onchain.admission import check_height
from wattline.plugin.onchain.broadcast import Broadcasts
from wattline.plugin.onchain.chain_identity import ChainIdentity
from wattline.plugin.onchain.confirmation import ConfirmationTracker
from wattline.plugin.onchain.decision import BroadcastDecision
from wattline.plugin.onchain.intake import VersionIntake
from wattline.plugin.onchain.spenders import Spenders, SpenderUnknown
from wattline.plugin.sessions import Sessions
from wattline.plugin.settings import OnchainSettings

log = logging.getLogger(__name__)

RAISED_FLOOR_PERCENT = 125
"""While the mempool's floor is raised: a transaction whose fee rate is not so much above it is broadcast."""
BLOCK_S = 600
"""Between two blocks, on the average."""
SLOW_LOOK_S = 2.0
"""How often everything is looked at that no block changes."""


class InputWatch:
    """See the module."""

    def __init__(
        self,
        settings: OnchainSettings,
        network: str,
        ledger: Ledger,
        chain: Chain,
        funds: ReceivingFunds,
        intake: VersionIntake,
        decision: BroadcastDecision,
        sessions: Sessions,
        crediting: Crediting,
        copy: OlderCopy,
        clock: Clock,
    ) -> None:
        """``network``: lightningd's."""
        now = clock.now_s
        self._settings = settings
        self.identity = ChainIdentity(network, ledger, chain, funds, now)
        self._copy = copy
        self._ledger = ledger
        self._chain = chain
        self.intake = intake
        self.decision = decision
        self._sessions = sessions
        self._crediting = crediting
        self._now = now
        self._clock = clock.monotonic
        self._spenders = Spenders(ledger, chain, funds, now)
        self._broadcasts = Broadcasts(settings, ledger, chain, funds, clock.monotonic)
        self._pursuit = ConfirmationTracker(
            settings, ledger, chain, self._spenders, self._broadcasts, sessions.session, now
        )
        self._begun: dict[str, float] = {}
        """When the aggregates that grow were invited, monotonic, in s."""
        self._troubles: dict[str, str] = {}
        """What is wrong with one session's payment, and how it was said."""
        self._wake = threading.Event()
        self._stopping = False
        self._tip: Tip | None = None
        self._looked_through: Tip | None = None
        """The tip at which everything was looked at, to the end."""
        self._slow_due = float("-inf")
        self._thread = threading.Thread(target=self._run, name="chain watch", daemon=True)

    def start(self) -> None:
        # Before anybody may ask for a receipt: it says what is broadcast.
        self._conclude_closed(self._ledger.unfinished_aggregates())
        self._thread.start()

    def stop(self) -> None:
        self.decision.stop()
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=5)

    def wake(self) -> None:
        """Look now: something was chosen."""
        self._wake.set()

    @property
    def troubles(self) -> Sequence[str]:
        """What is wrong with the payments of single sessions; the others go on."""
        found = {**self._broadcasts.troubles, **self._troubles}
        return [f"session {session_id}: {text}" for session_id, text in sorted(found.items())]

    @property
    def trouble(self) -> str:
        """Why the chain cannot be looked at just now, and what is wrong with single payments; empty when all is
        well."""
        return "; ".join(filter(None, [self.intake.trouble, *self.troubles]))

    def accept_chain(self, reason: str) -> None:
        """The operator says that the chain is the right one."""
        self.identity.accept(reason)
        self.wake()

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
        if trouble and trouble != self.intake.trouble:
            log.warning("the chain cannot be watched: %s", trouble)
        self.intake.trouble = trouble

    def look(self) -> None:
        """One look at everything. Raises ChainUnavailable and whatever else stands in the way of it."""
        aggregates = self._ledger.unfinished_aggregates()
        self._conclude_closed(aggregates)
        self._troubles = {each.session_id: text for each in aggregates if (text := self._troubles.get(each.session_id))}
        self.identity.check_network()
        is_slow = self._clock() >= self._slow_due
        if not aggregates and not is_slow:
            return
        tip = self._chain.tip()
        self.identity.check(tip)
        check_height(tip, aggregates)
        self._tip = tip
        is_thorough = is_slow or tip != self._looked_through
        growing = [each for each in aggregates if each.status is AggregateStatus.OPEN]
        self._begun = {each.session_id: self._begun_at(each, tip) for each in growing}
        self._watch_growing(growing, is_thorough=is_thorough)
        for aggregate in aggregates:
            if aggregate.status is AggregateStatus.SENT:
                self._on_its_own(aggregate, lambda each: self._pursuit.follow(each, tip, is_thorough=is_thorough))
        self._looked_through = tip
        self.decision.chain_was_seen = True
        if is_slow:
            self._slow_due = self._clock() + SLOW_LOOK_S

    def _begun_at(self, aggregate: Aggregate, tip: Tip) -> float:
        """When it was invited, by the monotonic clock: what went before this process saw it, the chain tells, once
        there is a first version."""
        known = self._begun.get(aggregate.session_id)
        if known is not None:
            return known
        blocks = max(0, tip.height - aggregate.first_height) if aggregate.first_height else 0
        return self._clock() - BLOCK_S * blocks

    def _on_its_own(self, aggregate: Aggregate, work: Callable[[Aggregate], None]) -> None:
        """What is wrong with one settlement must not keep the others."""
        try:
            work(aggregate)
        except ChainUnavailable:
            raise
        except WattlineError as error:
            self._trouble(aggregate.session_id, f"{error.code}: {error.message}")
        except Exception:
            log.exception("settlement of session %s", aggregate.session_id)
            self._trouble(aggregate.session_id, "internal error, see the log")
        else:
            self._troubles.pop(aggregate.session_id, None)

    def _trouble(self, session_id: str, text: str) -> None:
        """Said once, and shown as long as it lasts."""
        if self._troubles.get(session_id) != text:
            log.warning("settlement of session %s: %s", session_id, text)
        self._troubles[session_id] = text

    def _conclude_closed(self, aggregates: Sequence[Aggregate]) -> None:
        """Choose for sessions that are over: the plugin died between the close and the choice."""
        for aggregate in aggregates:
            if aggregate.status is AggregateStatus.OPEN and not self._sessions.is_served(aggregate.session_id):
                self._on_its_own(aggregate, self._conclude)

    def _conclude(self, aggregate: Aggregate) -> None:
        session = self._sessions.session(aggregate.session_id)
        if session is None or session.state is not State.CLOSED:
            return
        is_doubtful = self._copy.concerns(aggregate.session_id)
        if is_doubtful and (not self.decision.chain_was_seen or self._adopted(aggregate, session)):
            return
        self.decision.conclude(session)

    # VersionIntake that grow.

    def _watch_growing(self, growing: Sequence[Aggregate], *, is_thorough: bool) -> None:
        outpoints = [item.outpoint for each in growing for item in each.inputs]
        spenders = self._chain.mempool_spenders(outpoints) if outpoints else {}
        for aggregate in growing:
            self._on_its_own(aggregate, lambda each: self._watch_one(each, spenders, is_thorough=is_thorough))

    def _watch_one(self, aggregate: Aggregate, spenders: Mapping[Outpoint, str], *, is_thorough: bool) -> None:
        session_id = aggregate.session_id
        newest = self._ledger.newest_version(session_id)
        session = self._sessions.session(session_id)
        if not self._sessions.is_served(session_id) or newest is None or session is None:
            return
        txids = {spenders[item.outpoint] for item in aggregate.inputs if item.outpoint in spenders}
        try:
            txs = self._txs(aggregate, session, txids, is_thorough=is_thorough)
            is_gone = not txs and is_thorough and self._spenders.are_gone(aggregate, session)
        except SpenderUnknown as error:
            # It is spent, and nobody knows by what: nobody is accused, and nothing more is delivered for it.
            log.error("session %s: %s", session_id, error.message)
            self._seize(aggregate, newest, StopReason.INPUT_GONE, set())
            raise
        if txs:
            self._inputs_spent(aggregate, newest, session, txs)
        elif is_gone:
            # Nobody is accused of it: a reorg may have done it, or whoever sent the coin to the cable.
            log.error("session %s: an input of its payment does not exist any more", session_id)
            self._seize(aggregate, newest, StopReason.INPUT_GONE, set())
        elif is_thorough:
            if session.is_withheld:
                self._sessions.post(session_id, CreditChecked())
            reason = self._reason_to_end(aggregate, newest)
            if reason is not None:
                self._sessions.post(session_id, DeliveryFault(reason))

    def _txs(self, aggregate: Aggregate, session: Session, txids: Collection[str], *, is_thorough: bool) -> list[Tx]:
        """What spends its inputs: those of the mempool, else, on a thorough look or when they have just left it, what
        was mined."""
        txs = [tx for tx in (self._chain.mempool_tx(txid) for txid in txids) if tx is not None]
        if not txs and (txids or is_thorough):
            mined = self._spenders.mined(aggregate, session)
            if mined is not None and mined.tx is None:
                raise SpenderUnknown("spender_unknown", f"{mined.txid} pays for it, and the block that says so is gone")
            txs = [mined.tx] if mined is not None and mined.tx is not None else []
        return txs

    def _inputs_spent(self, aggregate: Aggregate, newest: Version, session: Session, txs: Sequence[Tx]) -> None:
        """The cable (only it can sign for them) has spent inputs while the aggregate was growing. What counts now is to
        be first: no final version is asked for."""
        session_id, txids = aggregate.session_id, {tx.txid for tx in txs}
        final = self._ledger.final_version(session_id)
        if final is not None and txids == {final.txid}:
            return  # it is about to be chosen
        if self._adopted(aggregate, session, txs):
            return
        paid_sat = sum(tx.paid_to(aggregate.script) for tx in txs)
        if txids == {newest.txid} or self._spenders.pays(session, paid_sat):
            reason = StopReason.PAID_EARLY
            log.info("session %s: the cable itself has broadcast what pays for it, %d sat", session_id, paid_sat)
        else:
            is_older = all(self._ledger.version_value_sat(session_id, txid) is not None for txid in txids)
            reason = StopReason.OLDER_VERSION if is_older else StopReason.DOUBLE_SPENT
            log.error("session %s: %s: its inputs are spent by %s", session_id, reason, ", ".join(sorted(txids)))
        self._seize(aggregate, newest, reason, txids)

    def _adopted(self, aggregate: Aggregate, session: Session, txs: Sequence[Tx] | None = None) -> bool:
        """A ledger that is an older copy may find on the chain what it had chosen itself, a final or a later version:
        that stands. ``txs``: what spends the inputs; None: look for it."""
        session_id = aggregate.session_id
        newest = self._ledger.newest_version(session_id)
        if newest is None or not self._copy.concerns(session_id):
            return False
        if txs is None:
            spenders = self._chain.mempool_spenders([item.outpoint for item in aggregate.inputs])
            txs = self._txs(aggregate, session, set(spenders.values()), is_thorough=True)
        if len(txs) != 1 or txs[0].outpoints != {item.outpoint for item in aggregate.inputs}:
            return False
        (tx,) = txs
        value_sat = tx.paid_to(aggregate.script)
        outputs = [number for number, output in enumerate(tx.outputs) if output.script == aggregate.script]
        is_known = self._ledger.final_version(session_id) is not None or value_sat == newest.value_sat
        if is_known or len(outputs) != 1 or not self._spenders.pays(session, value_sat):
            return False
        found = Version(
            session_id=session_id,
            number=newest.number + 1,
            value_sat=value_sat,
            fee_sat=sum(item.value_sat for item in aggregate.inputs) - sum(item.value_sat for item in tx.outputs),
            vsize=tx.vsize,
            vout=outputs[0],
            txid=tx.txid,
            psbt="",
            raw=tx.raw,
            is_final=value_sat < newest.value_sat,
            stored_at=self._now(),
        )
        log.warning("session %s: this ledger does not know %s, which pays it %d sat", session_id, tx.txid, value_sat)
        if found.is_final:
            return self.decision.adopt(found)
        self._ledger.store_version(found)
        if not self._crediting.credit_stored(session_id, found.txid, value_sat * MSAT_PER_SAT):
            self._ledger.drop_version(session_id, found.number)
            return False
        self._seize(aggregate, found, StopReason.LEDGER_RESTORED, {tx.txid})
        return True

    def _seize(self, aggregate: Aggregate, newest: Version, reason: StopReason, txids: set[str]) -> None:
        """End the session at once, and try to have the newest version mined."""
        session_id = aggregate.session_id
        # The relay first. That the session ends is written before the choice: no restart lets it deliver again.
        self._sessions.post(session_id, DeliveryFault(reason))
        self._sessions.save(session_id)
        if reason in (StopReason.DOUBLE_SPENT, StopReason.OLDER_VERSION):
            self._spenders.refuse(aggregate, reason)
        chosen = self.decision.seize(session_id, reason)
        detail = {"reason": reason, "newest": newest.txid, "spent_by": sorted(txids)}
        self._ledger.append_event(self._now(), session_id, "aggregate_seized", detail)
        if chosen is not None:
            self._broadcasts.send(session_id, chosen)

    def _reason_to_end(self, aggregate: Aggregate, newest: Version) -> StopReason | None:
        floor = self._chain.floor()
        rate = feerate_per_kw(newest.fee_sat, newest.vsize)
        if floor.is_raised and rate * 100 < floor.feerate_per_kw * RAISED_FLOOR_PERCENT:
            return StopReason.FEERATE_LOW
        if self._clock() - self._begun[aggregate.session_id] >= aggregate.rules.max_age_s:
            return StopReason.PAYMENT_AGED
        session = self._sessions.session(aggregate.session_id)
        if session is not None and session.state is State.PAUSED:
            terms = session.terms
            need_msat = worth_msat(terms.tariff, terms.rated_power_mw, terms.start_ms) - session.account.balance_msat
            left_sat = aggregate.rules.exposure_cap_sat - newest.value_sat
            if need_msat > left_sat * MSAT_PER_SAT:
                return StopReason.EXPOSURE_CAP
        return None
