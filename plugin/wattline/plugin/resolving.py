"""What the operator decides where the socket cannot know: how a payment ended that nobody can look up, whether a refund
of a session is sent that an older copy of the ledger knows, which chain is the right one. Each is written down, with
the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from wattline.core.aggregate import MSAT_PER_SAT, Aggregate, AggregateStatus
from wattline.core.clock import Clock
from wattline.core.errors import UsageError
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.outgoing import Intent, Purpose
from wattline.core.ledger.payment import ORPHAN_KEPT
from wattline.core.lightning.node import SendStatus
from wattline.core.payer import Payer
from wattline.core.session.event import RefundKept, RefundSent
from wattline.core.session.state import RefundStatus, State
from wattline.plugin.older_copy import KEPT, RESOLVED, OlderCopy
from wattline.plugin.onchain.input_watch import InputWatch

CHAIN = "chain"
LONGEST_REASON = 200
ENDED = "refund_decided"
"""The event of a refund that was not held."""


class Resolution(StrEnum):
    """What is decided."""

    PAID = "paid"  # what the session is owed on the chain has come; a refund in doubt has arrived
    LOST = "lost"  # what it is owed on the chain, and was not mined, will not come
    REFUND = "refund"  # what is held is sent back
    KEEP = KEPT  # what is held is not sent back
    ACCEPT = "accept"  # the chain that bitcoind shows is the right one


class Resolving:
    """Thread-safe."""

    def __init__(
        self,
        ledger: Ledger,
        copy: OlderCopy,
        onchain: InputWatch | None,
        end: Callable[[str, RefundSent | RefundKept], None],
        clock: Clock,
        payer: Payer,
        hurry: Callable[[str], None],
    ) -> None:
        """``end``: ends a refund that is owed; ``hurry``: has it tried soon. ``payer``: of refunds."""
        self._ledger = ledger
        self._copy = copy
        self._onchain = onchain
        self._end = end
        self._now = clock.now_s
        self._payer = payer
        self._hurry = hurry

    def resolve(self, subject: str, outcome: str, reason: str) -> None:
        """``subject``: a session, or ``chain``. Raises UsageError ``not_resolvable`` where there is nothing to decide,
        and what chain and ledger raise."""
        if outcome not in set(Resolution):
            raise UsageError("not_resolvable", f"the outcome is one of {', '.join(Resolution)}")
        if not reason.strip() or len(reason) > LONGEST_REASON or not reason.isprintable():
            raise UsageError("not_resolvable", f"a reason is needed, of at most {LONGEST_REASON} printable characters")
        if (subject == CHAIN) is not (outcome == Resolution.ACCEPT):
            raise UsageError("not_resolvable", f"{Resolution.ACCEPT} is said of the {CHAIN}, all else of a session")
        if subject == CHAIN:
            if self._onchain is None:
                raise UsageError("not_resolvable", "this socket does not look at the chain")
            self._onchain.accept_chain(reason)
        elif outcome == Resolution.LOST or (outcome == Resolution.PAID and not self._in_doubt(subject)):
            self._end_aggregate(subject, Resolution(outcome), reason)
        else:
            self._end_refund(subject, Resolution(outcome), reason)

    def _end_aggregate(self, session_id: str, outcome: Resolution, reason: str) -> None:
        aggregate = self._undecided(session_id) or self._ledger.aggregate(session_id)
        if aggregate is None or aggregate.status is not AggregateStatus.SENT:
            status = aggregate.status if aggregate is not None else "not paid on-chain"
            raise UsageError(
                "not_resolvable",
                f"the payment of session {session_id} is {status}; it can be resolved once it is sent",
            )
        chosen = self._ledger.version(session_id, aggregate.chosen_number or 0)
        assert chosen is not None, "a choice names a version"
        missing_sat = max(0, chosen.value_sat - aggregate.mined_value_sat) if outcome is Resolution.LOST else 0
        status = AggregateStatus.LOST if outcome is Resolution.LOST else AggregateStatus.SETTLED
        with self._ledger.unit():
            self._ledger.lose(session_id, missing_sat * MSAT_PER_SAT)
            self._ledger.close_aggregate(session_id, status, self._now(), is_resolved=True)
            detail = {"outcome": outcome, "reason": reason, "value_sat": chosen.value_sat, "missing_sat": missing_sat}
            self._ledger.append_event(self._now(), session_id, "payment_resolved", detail)

    def _undecided(self, session_id: str) -> Aggregate | None:
        """The payment of a session that is over without a decision, for want of the chain: the newest version is taken
        for sent, as it would be. None for any other."""
        aggregate, record = self._ledger.aggregate(session_id), self._ledger.session(session_id)
        newest = self._ledger.newest_version(session_id)
        if aggregate is None or aggregate.status is not AggregateStatus.OPEN or newest is None:
            return None
        if record is None or record.session.state is not State.CLOSED:
            return None
        return self._ledger.choose(session_id, newest.number, "resolved", self._now())

    def _in_doubt(self, session_id: str) -> Sequence[Intent]:
        """What is sent back of the session, as far as it is not known whether it was."""
        refunds = (Purpose.REFUND, Purpose.ORPHAN_REFUND)
        return [
            each
            for each in self._ledger.outgoing.pending()
            if each.session_id == session_id and each.purpose in refunds
        ]

    def _end_refund(self, session_id: str, outcome: Resolution, reason: str) -> None:
        """Of a session of which something is held, in doubt, or owed: it may be less than any channel carries."""
        record = self._ledger.session(session_id)
        orphans = self._ledger.orphans_to_return(session_id)
        is_owed = record is not None and record.session.refund_status is RefundStatus.OWED
        if not is_owed and not orphans:
            raise UsageError("not_resolvable", f"no refund of session {session_id} is owed, held or in doubt")
        is_held = record is not None and self._copy.holds(Purpose.REFUND, record)
        aggregate = self._ledger.aggregate(session_id)
        if is_owed and not is_held and not orphans and aggregate is not None and aggregate.status.is_live:
            raise UsageError("not_resolvable", f"the chain has not yet paid for session {session_id}")
        refunds = self._decide(self._in_doubt(session_id), outcome, reason)
        with self._ledger.unit():
            # RESOLVED lets go of what is held: of what is not, it must not let go in a copy that is put back later.
            kind = RESOLVED if session_id in self._copy.held() else ENDED
            self._ledger.append_event(self._now(), session_id, kind, {"outcome": outcome, "reason": reason})
            for orphan in orphans if outcome is Resolution.KEEP else []:
                kept = {"payment_hash": orphan.payment_hash, "amount_msat": orphan.amount_msat}
                self._ledger.append_event(self._now(), session_id, ORPHAN_KEPT, kept)
        if is_owed and refunds:
            self._end(session_id, refunds[0])
        elif is_owed and outcome is Resolution.KEEP:
            self._end(session_id, RefundKept())
        self._hurry(session_id)
        for orphan in orphans:
            self._hurry(orphan.payment_hash)

    def _decide(self, doubts: Sequence[Intent], outcome: Resolution, reason: str) -> Sequence[RefundSent]:
        """The refunds of the session that were in doubt and have been sent: by the node's word, else by the operator's.
        What is sent again, or kept, counts as not sent before."""
        sent = []
        for intent in doubts:
            found = self._payer.decide(intent.payment_hash, is_paid=outcome is Resolution.PAID, why=reason)
            if found.status is SendStatus.COMPLETE and intent.purpose == Purpose.REFUND:
                sent.append(RefundSent(found.amount_msat, found.amount_sent_msat - found.amount_msat))
        return sent
