"""Payments in flight: what has passed the hook and is not credited yet counts against its session's cap, and the first
one of a session keeps others from its outlet for a moment."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

LIFETIME_S = 60.0
"""How long a payment that passed the hook counts as in flight without being credited."""
CLAIM_S = 5.0
"""How long the first payment of a session may be in flight and keep others from its outlet. lightningd goes on within
milliseconds; what is not credited by then it has failed."""
CLAIM_REST_S = 60.0
"""So long after a claim that brought no credit no payment of a session claims that outlet: whoever sends payments that
lightningd fails, from however many addresses, keeps others from it for ``CLAIM_S`` of that time at the most."""
MOST_REMEMBERED = 4096
"""So many sessions that have claimed, and payments that have passed, are remembered."""


class Reservations:
    """Payments that passed the hook and are not yet credited, by payment_hash; and which sessions claim their outlets
    with the first of them. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Condition()
        self._amounts: dict[str, tuple[str, int]] = {}
        self._since: dict[str, float] = {}
        self._totals: dict[str, int] = {}
        self._claims: dict[str, tuple[str, float]] = {}
        """By session: the outlet that it claims while something of it is in flight, and since when."""
        self._rests: dict[str, tuple[str, float]] = {}
        """By outlet: the session that claimed it last and has not been credited, and until when nobody claims it."""
        self._claimed: OrderedDict[str, None] = OrderedDict()
        """Sessions that have claimed: none does so twice."""

    def reserve(
        self,
        payment_hash: str,
        session_id: str,
        amount_msat: int,
        test: Callable[[int], bool],
        outlet_id: str = "",
        *,
        is_proven: bool = False,
    ) -> bool:
        """Reserve when ``test(in_flight_msat)`` of the session's other payments agrees, in one step. The first time the
        session claims ``outlet_id`` with it, unless a claim has just failed there; always with what ``is_proven``.

        The same hash again (lightningd replays htlcs at its start) is not counted twice."""
        with self._lock:
            self._expire()
            known = self._amounts.get(payment_hash)
            if known is not None and known[0] != session_id:
                return False
            others = self._totals.get(session_id, 0) - (known[1] if known else 0)
            if not test(others):
                return False
            self._amounts[payment_hash] = (session_id, amount_msat)
            self._since.pop(payment_hash, None)  # a hash that comes again goes to the end: the oldest stands in front
            self._since[payment_hash] = self._clock()
            self._totals[session_id] = others + amount_msat
            self._claim(session_id, outlet_id, is_proven=is_proven)
            return True

    def _claim(self, session_id: str, outlet_id: str, *, is_proven: bool) -> None:
        now = self._clock()
        if session_id in self._claims:
            return
        if not is_proven:
            _, rests_until = self._rests.get(outlet_id, ("", now))
            if session_id in self._claimed or now < rests_until:
                return
            self._rests[outlet_id] = (session_id, now + CLAIM_S + CLAIM_REST_S)  # until its credit is here
        self._claimed[session_id] = None
        while len(self._claimed) > MOST_REMEMBERED:
            self._claimed.popitem(last=False)
        self._claims[session_id] = (outlet_id, now)

    def is_claiming(self, session_id: str) -> bool:
        """Something of the session is in flight, keeps others from its outlet, and has not done so for so long that it
        cannot come in any more."""
        with self._lock:
            return self._is_claiming(session_id)

    def _is_claiming(self, session_id: str) -> bool:
        claim = self._claims.get(session_id)
        return claim is not None and self._clock() < claim[1] + CLAIM_S

    def when_unclaimed(self, session_id: str, work: Callable[[], None]) -> bool:
        """Do ``work``, which must be quick, unless the session claims its outlet just now; what else of it is in flight
        is forgotten."""
        with self._lock:
            if self._is_claiming(session_id):
                return False
            work()
            self._forget(session_id)
            return True

    def when_idle(self, session_id: str, work: Callable[[], None]) -> bool:
        """Do ``work``, which must be quick, unless something of the session is in flight; nothing is reserved
        meanwhile, by anybody."""
        with self._lock:
            self._expire()
            if session_id in self._totals:
                return False
            work()
            return True

    def session_of(self, payment_hash: str) -> str | None:
        with self._lock:
            known = self._amounts.get(payment_hash)
            return known[0] if known else None

    def release(self, payment_hash: str) -> None:
        """Its credit has arrived (or it never will)."""
        with self._lock:
            session_id, _ = self._amounts.get(payment_hash, ("", 0))
            outlet_id, _ = self._claims.get(session_id, ("", 0.0))
            if self._rests.get(outlet_id, ("", 0.0))[0] == session_id:
                self._rests.pop(outlet_id, None)
            self._release(payment_hash)

    def forget(self, session_id: str) -> None:
        """Drop what is left of a session that is over."""
        with self._lock:
            self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        for payment_hash in [h for h, (owner, _) in self._amounts.items() if owner == session_id]:
            self._release(payment_hash)

    def _release(self, payment_hash: str) -> None:
        known = self._amounts.pop(payment_hash, None)
        if known is None:
            return
        del self._since[payment_hash]
        session_id, amount_msat = known
        left = self._totals[session_id] - amount_msat
        if left:
            self._totals[session_id] = left
        else:
            del self._totals[session_id]
            self._claims.pop(session_id, None)
        self._lock.notify_all()

    def _expire(self) -> None:
        """lightningd itself has failed what was neither credited nor released for so long (an expiry too near, say)."""
        oldest = self._clock() - LIFETIME_S
        while self._since and (first := next(iter(self._since.items())))[1] < oldest:
            self._release(first[0])

    def in_flight_msat(self, session_id: str) -> int:
        with self._lock:
            return self._totals.get(session_id, 0)

    def wait_drained(self, session_id: str, timeout_s: float) -> bool:
        """Wait until nothing of the session is in flight; False when the time ran out."""
        with self._lock:
            return self._lock.wait_for(lambda: session_id not in self._totals, timeout_s)
