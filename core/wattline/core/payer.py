"""Making each payment once, whatever dies in between: used by the cable for increments and by the socket for refunds.

The payer chooses the preimage, writes the intent with its payment_hash durably, and only then hands one htlc to the
node. From then on the node's own record of that hash decides: what it calls complete has left the wallet, what it calls
failed has not, and what it does not know was never sent.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from wattline.core.clock import Clock, Moment
from wattline.core.errors import RetryError, UsageError
from wattline.core.ledger.outgoing import Intent
from wattline.core.lightning.node import (
    NodeRefused,
    NodeUnavailable,
    Route,
    SendFailure,
    SendStatus,
    SentPayment,
    Wallet,
)
from wattline.core.lightning.onion import payment_hash_of
from wattline.core.lightning.routes import BelowMinimum, FeeTooHigh, KeptRoutes

GRACE_S = 10
"""How long a request written just before a crash may still be on its way into the node."""
ANSWER_GAP_S = 2.0
"""Between the two answers `I do not know it` that it takes to give an intent up: whatever was written to the node's
socket before the first has been read by then."""

__all__ = ["BelowMinimum", "FeeTooHigh", "IntentStore", "Outcome", "Payer"]


class IntentStore(Protocol):
    """What the payer needs of the ledger's outgoing intents. Every method has committed when it returns. A RetryError
    (the database is busy) means that nothing was changed."""

    def add(self, intent: Intent) -> None:
        """Raises when one that has not failed exists for the same purpose, session and sequence."""

    def complete(self, payment_hash: str, amount_sent_msat: int, at: int) -> None: ...

    def fail(self, payment_hash: str, failure: str, at: int) -> None: ...

    def pending(self) -> Sequence[Intent]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one payment."""

    status: SendStatus
    """COMPLETE: paid. FAILED: not paid, the money is back. PENDING: in doubt; ``Payer.resolve`` will tell."""
    payment_hash: str
    amount_msat: int
    amount_sent_msat: int
    """What left the wallet, fee included; 0 when FAILED; while PENDING what may have left it at most."""
    failure: SendFailure | None
    """Why, when FAILED."""
    duration_ms: int
    """From the call to the outcome, the search for a route included."""


class Payer:
    """Makes payments over one wallet. Thread-safe: several payments at a time."""

    def __init__(
        self,
        wallet: Wallet,
        outgoing: IntentStore,
        now: Callable[[], Moment] = lambda: Clock().moment(),
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = lambda seconds: threading.Event().wait(seconds),
    ) -> None:
        self._wallet = wallet
        self._outgoing = outgoing
        self._now = now
        self._clock = clock
        self._pause = pause
        self._routes = KeptRoutes(wallet, clock)
        self._lock = threading.Lock()
        self._claimed: set[str] = set()
        self._unknown_since: dict[str, float] = {}

    def pay(self, intent: Intent, timeout_s: float = 60.0) -> Outcome:
        """Write ``intent`` down with a preimage of its own, pay it in one part and wait for the outcome.

        Raises NoRoute, FeeTooHigh, BelowMinimum, NodeUnavailable or NodeRefused when no way was found, and the ledger's
        when it is already paid or in doubt or cannot be written down: then nothing was sent. From the intent on,
        nothing of the node's is raised, nor that the ledger is busy: what cannot be known or written now is PENDING.
        Only a ledger that is broken for good (LedgerError) is raised even then; the intent is still pending in it.
        """
        began = self._clock()
        route = self._routes.route(intent.destination, intent.amount_msat, intent.maxfee_msat)
        preimage = secrets.token_hex(32)
        now = self._now()
        intent = replace(
            intent,
            preimage=preimage,
            payment_hash=payment_hash_of(preimage),
            created_at=now.wall_s,
            created_boot_id=now.boot_id,
            created_boot_ms=now.boot_ms,
        )
        with self._claim(intent.payment_hash):
            self._outgoing.add(intent)
            return self._send(intent, route, began, timeout_s, first_time=True)

    def resolve(self, resend: bool = False, timeout_s: float = 10.0) -> list[Outcome]:
        """Ask the node about every intent left in doubt, by an earlier run or by a cut connection, and settle it.

        What is still under way is waited for, ``timeout_s`` in all. What the node does not know is sent again with the
        same payment_hash when ``resend`` says so (harmless: paid once); else it is given up, once it is old enough that
        no request of ours can still be on its way. Payments that another thread is making just now are left to it.
        Raises nothing of the node's: what stays in doubt is PENDING.
        """
        deadline = self._clock() + timeout_s
        outcomes: list[Outcome] = []
        unknown: list[Intent] = []
        for intent in self._outgoing.pending():
            with self._claim(intent.payment_hash) as claimed:
                if not claimed or not self._is_pending(intent):
                    continue
                outcome = self._look_up(intent, resend, deadline)
                if outcome is None:
                    unknown.append(intent)
                else:
                    outcomes.append(outcome)
        return outcomes + self._give_up(unknown)

    def decide(self, payment_hash: str, *, is_paid: bool, why: str) -> Outcome:
        """A person has looked what became of a payment in doubt that the node does not know (any more): then it counts
        as paid, with all of its fee limit, or as failed. What the node knows decides instead.

        Raises UsageError ``not_resolvable`` when it is not in doubt, under way, or so young that a request of ours may
        still be on its way; NodeUnavailable, NodeRefused, and the ledger's errors.
        """
        began = self._clock()
        with self._claim(payment_hash) as claimed:
            intent = next((each for each in self._outgoing.pending() if each.payment_hash == payment_hash), None)
            if intent is None or not claimed:
                what = "is not in doubt" if intent is None else "is being looked up just now; try again"
                raise UsageError("not_resolvable", f"payment {payment_hash} {what}")
            sent = self._wallet.sent(payment_hash)
            if sent is None:
                self._unknown_since.setdefault(payment_hash, began)
                if not self._is_old(intent):
                    raise UsageError("not_resolvable", f"payment {payment_hash} was only just made; try again")
                self._pause(ANSWER_GAP_S)
                sent = self._wallet.sent(payment_hash)
            if sent is not None:
                outcome = self._settled(intent, sent, None, began)
                if outcome.status is SendStatus.PENDING:
                    raise UsageError("not_resolvable", f"payment {payment_hash} is still under way at the node")
                return outcome
            if not is_paid:
                return self._fail(intent, SendFailure("given_up", why, False), began)
            most_msat = intent.amount_msat + intent.maxfee_msat
            self._outgoing.complete(payment_hash, most_msat, self._now().wall_s)
            return self._outcome(intent, SendStatus.COMPLETE, most_msat, None, began)

    # --- one payment --------------------------------------------------------------------------------------------------

    def _send(self, intent: Intent, route: Route, began: float, timeout_s: float, first_time: bool) -> Outcome:
        try:
            self._wallet.send(route, intent.payment_hash, intent.preimage, intent.record, intent.label)
        except NodeUnavailable:
            self._routes.drop(intent.destination)
            return self._doubt(intent, began)
        except NodeRefused as error:
            return self._failed(intent, SendFailure(error.code, error.message, False), began, never_sent=first_time)
        return self._wait(intent, began, timeout_s)

    def _wait(self, intent: Intent, began: float, timeout_s: float) -> Outcome:
        try:
            answer = self._wallet.wait(intent.payment_hash, timeout_s)
        except NodeUnavailable:
            self._routes.drop(intent.destination)
            return self._doubt(intent, began)
        except NodeRefused as error:
            return self._failed(intent, SendFailure(error.code, error.message, False), began, never_sent=False)
        if answer is None:
            return self._doubt(intent, began)
        if isinstance(answer, SendFailure):
            return self._failed(intent, answer, began, never_sent=False)
        return self._settled(intent, answer, None, began)

    def _failed(self, intent: Intent, failure: SendFailure, began: float, never_sent: bool) -> Outcome:
        """A failure was reported. Money is only taken for being back when the node's own record agrees; what it has no
        record of counts as failed only when ``never_sent``, that is when no earlier request can be on its way."""
        self._routes.drop(intent.destination)
        try:
            sent = self._wallet.sent(intent.payment_hash)
        except (NodeUnavailable, NodeRefused):
            return self._doubt(intent, began)
        if sent is None:
            return self._fail(intent, failure, began) if never_sent else self._doubt(intent, began)
        return self._settled(intent, sent, failure, began)

    def _settled(self, intent: Intent, sent: SentPayment, failure: SendFailure | None, began: float) -> Outcome:
        """Do as the node's record says."""
        is_ours = sent.payment_hash == intent.payment_hash and sent.preimage in (None, intent.preimage)
        if sent.status is SendStatus.PENDING or not is_ours:
            return self._doubt(intent, began)
        if sent.status is SendStatus.FAILED:
            known = failure or SendFailure("unknown", "the node's record says that it failed", False)
            return self._fail(intent, known, began)
        try:
            self._outgoing.complete(intent.payment_hash, sent.amount_sent_msat, self._now().wall_s)
        except RetryError:
            return self._doubt(intent, began)
        return self._outcome(intent, SendStatus.COMPLETE, sent.amount_sent_msat, None, began)

    def _fail(self, intent: Intent, failure: SendFailure, began: float) -> Outcome:
        try:
            self._outgoing.fail(intent.payment_hash, f"{failure.code}: {failure.message}", self._now().wall_s)
        except RetryError:
            return self._doubt(intent, began)
        return self._outcome(intent, SendStatus.FAILED, 0, failure, began)

    def _doubt(self, intent: Intent, began: float) -> Outcome:
        return self._outcome(intent, SendStatus.PENDING, intent.amount_msat + intent.maxfee_msat, None, began)

    def _outcome(
        self, intent: Intent, status: SendStatus, amount_sent_msat: int, failure: SendFailure | None, began: float
    ) -> Outcome:
        duration_ms = int((self._clock() - began) * 1000)
        return Outcome(status, intent.payment_hash, intent.amount_msat, amount_sent_msat, failure, duration_ms)

    # --- what was left in doubt ---------------------------------------------------------------------------------------

    def _look_up(self, intent: Intent, resend: bool, deadline: float) -> Outcome | None:
        """Its outcome; None when the node answers that it does not know it and it is not to be sent again."""
        began = self._clock()
        left_s = max(0.0, deadline - began)
        try:
            sent = self._wallet.sent(intent.payment_hash)
        except (NodeUnavailable, NodeRefused):
            return self._doubt(intent, began)
        if sent is None:
            self._unknown_since.setdefault(intent.payment_hash, began)
            return self._send_again(intent, began, left_s) if resend else None
        if sent.status is SendStatus.PENDING:
            return self._wait(intent, began, left_s)
        return self._settled(intent, sent, None, began)

    def _send_again(self, intent: Intent, began: float, timeout_s: float) -> Outcome:
        try:
            route = self._routes.route(intent.destination, intent.amount_msat, intent.maxfee_msat)
        except (RetryError, NodeRefused):
            return self._doubt(intent, began)
        return self._send(intent, route, began, timeout_s, first_time=False)

    def _give_up(self, unknown: list[Intent]) -> list[Outcome]:
        """Intents that the node did not know: asked a second time, and failed when they are old enough."""
        began = self._clock()
        old = [intent for intent in unknown if self._is_old(intent) and not self._may_be_forgotten(intent)]
        outcomes = [self._doubt(intent, began) for intent in unknown if intent not in old]
        if old:
            self._pause(ANSWER_GAP_S)
        for intent in old:
            with self._claim(intent.payment_hash) as claimed:
                if not claimed or not self._is_pending(intent):
                    continue
                never_sent = SendFailure("never_sent", "the node has no record of it", False)
                outcome = self._failed(intent, never_sent, began, never_sent=True)
                if outcome.status is not SendStatus.PENDING:
                    self._unknown_since.pop(intent.payment_hash, None)
                outcomes.append(outcome)
        return outcomes

    def _is_old(self, intent: Intent) -> bool:
        # By the wall clock, or, should that have been set back, by our own watch since the node first said so.
        watched_s = self._clock() - self._unknown_since.get(intent.payment_hash, self._clock())
        return self._age_s(intent) >= GRACE_S or watched_s >= GRACE_S

    def _age_s(self, intent: Intent) -> int:
        """Exact within a boot of the machine; else by the wall clock, and negative where that was set back since."""
        now = self._now()
        passed_ms = intent.created.passed_ms(now)
        return now.wall_s - intent.created_at if passed_ms is None else passed_ms // 1000

    def _may_be_forgotten(self, intent: Intent) -> bool:
        """The node may have paid it and deleted the record since (autoclean): then that it knows nothing says nothing,
        and the intent stays in doubt until a person has looked."""
        try:
            kept_s = self._wallet.forgets_sent_after_s()
        except (NodeUnavailable, NodeRefused):
            return True
        # Dated in the future: the clock was set back since, so it may be far older than it seems.
        return kept_s is not None and not 0 <= self._age_s(intent) < kept_s

    def _is_pending(self, intent: Intent) -> bool:
        """Whether it is still unresolved, now that it is ours alone."""
        return any(other.payment_hash == intent.payment_hash for other in self._outgoing.pending())

    @contextmanager
    def _claim(self, payment_hash: str) -> Iterator[bool]:
        """One thread at a time works on a payment; False when another one does."""
        with self._lock:
            claimed = payment_hash not in self._claimed
            self._claimed.add(payment_hash)
        try:
            yield claimed
        finally:
            if claimed:
                with self._lock:
                    self._claimed.discard(payment_hash)
