"""Which version of an aggregate is broadcast: written to the ledger once, before anybody sends it. Whoever follows the
chain (:mod:`wattline.plugin.onchain.input_watch`) carries that out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from wattline.core.aggregate import MSAT_PER_SAT, Aggregate, AggregateStatus, Version, final_value_sat
from wattline.core.bitcoin.chain import ChainUnavailable
from wattline.core.clock import Clock
from wattline.core.ledger.ledger import Ledger
from wattline.core.session.session import Session
from wattline.core.session.state import StopReason
from wattline.plugin.older_copy import OlderCopy
from wattline.plugin.onchain.admission import OpenAggregates
from wattline.plugin.settings import OnchainSettings
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)

SEEN_WAIT_S = 600.0
"""So long the end of a session waits for the first look at the chain, where the ledger is an older copy. Then it closes
without a decision, its outlet is free, and it is decided when the chain was seen."""
ASK_AGAIN_S = 1.0
"""How often the cable is asked for the final version: it may be just resuming."""


class BroadcastDecision:
    """Thread-safe. The first choice of a session stands."""

    def __init__(
        self,
        settings: OnchainSettings,
        ledger: Ledger,
        tell: Callable[[str, pb.ChargeResponse], None],
        open_aggregates: OpenAggregates,
        copy: OlderCopy,
        clock: Clock,
    ) -> None:
        """``tell``: sends something to a session's cable, if it is there."""
        self.chain_was_seen = False
        """Set by whoever watches the chain, after the first look at everything."""
        self._copy = copy
        self._settings = settings
        self._ledger = ledger
        self._tell = tell
        self._open = open_aggregates
        self._now = clock.now_s
        self._clock = clock.monotonic
        self._waits_since: dict[str, float] = {}
        """Since when a session's end waits for the chain; monotonic, in s."""
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Wait for no cable any more."""
        self._stopping.set()

    def give_back(self, session: Session) -> int:
        """After the intake was closed: how much of the credit is never taken, in msat. When this returns it is written
        down which version is broadcast: the one that pays exactly what is owed, when the cable has signed it in time;
        none when nothing is owed on the chain; else the newest, and 0 is given back; or it is decided later
        (:meth:`is_put_off`), and 0 is given back, too. Waits for the cable; may be asked again."""
        session_id = session.session_id
        newest = self._ledger.newest_version(session_id)
        aggregate = self._ledger.aggregate(session_id)
        if aggregate is None or newest is None:
            return 0
        if aggregate.status is AggregateStatus.OPEN:
            if self.is_put_off(session_id):
                return 0
            due_sat = self._due_sat(session, aggregate)
            if 0 < due_sat < newest.value_sat:
                self._wait_for_final(session, due_sat)
            aggregate = self._decide(session, due_sat)
        chosen = self._ledger.version(session_id, aggregate.chosen_number) if aggregate.chosen_number else None
        return (newest.value_sat - (chosen.value_sat if chosen else 0)) * MSAT_PER_SAT

    def is_put_off(self, session_id: str) -> bool:
        """Before anything is decided for a session that an older copy of the ledger knows: a version that is not in it
        may have been chosen, and mined, so the chain is asked first. Raises ChainUnavailable while it is waited for;
        True when that was too long, and the session ends without a decision."""
        if self.chain_was_seen or not self._copy.concerns(session_id) or not self._ledger.newest_version(session_id):
            return False
        waited_s = self._clock() - self._waits_since.setdefault(session_id, self._clock())
        if waited_s < SEEN_WAIT_S:
            raise ChainUnavailable("bitcoind_unavailable", "the chain was not looked at yet")
        return True

    def conclude(self, session: Session) -> None:
        """At the close: the newest version is broadcast, unless it was decided otherwise before, or is decided when the
        chain was seen. May be told again."""
        session_id = session.session_id
        with self._open.of(session_id).lock:
            aggregate = self._ledger.aggregate(session_id)
            if aggregate is None or aggregate.status is not AggregateStatus.OPEN:
                return
            newest = self._ledger.newest_version(session_id)
            if self.is_put_off(session_id):
                log.error("session %s ends; what is broadcast for it is decided once the chain was seen", session_id)
                return
            if newest is None or not session.account.payments:
                self._ledger.void(session_id, "nothing was handed over", self._now())
            else:
                self._ledger.choose(session_id, newest.number, session.stop_reason or "closed", self._now())

    def seize(self, session_id: str, reason: StopReason) -> Version | None:
        """Choose the newest version at once, because something is wrong; None when there is none, or when it was
        decided that nothing is taken. The first choice stands."""
        aggregate_state = self._open.of(session_id)
        with aggregate_state.lock:
            aggregate_state.is_closed = True
            newest = self._ledger.newest_version(session_id)
            if newest is None:
                return None
            chosen = self._ledger.choose(session_id, newest.number, reason, self._now()).chosen_number
        return self._ledger.version(session_id, chosen) if chosen is not None else None

    def adopt(self, version: Version) -> bool:
        """Choose ``version``, which was found on the chain and pays less than the newest: it is the final one of which
        this ledger, an older copy, knows nothing. False when it was decided otherwise before."""
        session_id = version.session_id
        aggregate_state = self._open.of(session_id)
        with aggregate_state.lock:
            aggregate_state.is_closed = True
            aggregate = self._ledger.aggregate(session_id)
            if aggregate is None or aggregate.status is not AggregateStatus.OPEN:
                return False
            with self._ledger.unit():
                self._ledger.store_version(version)
                self._ledger.choose(session_id, version.number, StopReason.LEDGER_RESTORED, self._now())
        return True

    def _due_sat(self, session: Session, aggregate: Aggregate) -> int:
        onchain_msat = self._ledger.onchain_credited_msat(session.session_id)
        keysend_msat = session.account.credited_msat - onchain_msat
        return final_value_sat(session.account.charged_msat, keysend_msat, aggregate.rules.floor_sat)

    def _wait_for_final(self, session: Session, due_sat: int) -> None:
        """Ask for the version that pays exactly ``due_sat``, until it is there, or the time is over, or the inputs were
        seen spent."""
        session_id = session.session_id
        aggregate_state = self._open.of(session_id)
        with aggregate_state.lock:
            aggregate_state.final_sat = due_sat
        message = pb.ChargeResponse(
            final_due=pb.FinalDue(
                value_sat=due_sat,
                charged_msat=session.account.charged_msat,
                keysend_msat=session.account.credited_msat - self._ledger.onchain_credited_msat(session_id),
            )
        )
        # A cable that was lost for long does not come back now.
        timeout_s = 0 if session.stop_reason is StopReason.CABLE_LOST else self._settings.final_timeout_s
        deadline = self._clock() + timeout_s
        is_told = False
        while not self._stopping.is_set():
            aggregate = self._ledger.aggregate(session_id)
            if aggregate is None or aggregate.status is not AggregateStatus.OPEN:
                return
            left_s = max(0.0, deadline - self._clock())
            if self._ledger.final_version(session_id) is not None or (is_told and left_s == 0):
                return
            self._tell(session_id, message)
            is_told = True
            aggregate_state.final_came.wait(min(left_s, ASK_AGAIN_S))
        # The process ends: the next one asks again.
        raise ChainUnavailable("shutting_down", "the socket is shutting down")

    def _decide(self, session: Session, due_sat: int) -> Aggregate:
        """What is taken on the chain for ``due_sat``; an earlier decision stands. No final version after it."""
        session_id = session.session_id
        aggregate_state = self._open.of(session_id)
        with aggregate_state.lock:
            aggregate_state.final_sat = 0
            newest, final = self._ledger.newest_version(session_id), self._ledger.final_version(session_id)
            assert newest is not None, "who has handed over nothing gets nothing back"
            if due_sat == 0:
                return self._ledger.void(session_id, "nothing is owed on the chain", self._now())
            if final is not None and final.value_sat == due_sat:
                return self._ledger.choose(session_id, final.number, "final", self._now())
            return self._ledger.choose(session_id, newest.number, session.stop_reason or "closed", self._now())
