"""The smallest increment that a socket takes: what one session is asked for, and what it may be held to.

Pure; points in time are seconds of any one monotonic clock.
"""

from __future__ import annotations

from collections import deque

BELOW_MIN_INCREMENT = "below_min_increment"
"""The code with which a payment or a version is refused that is smaller than its session was told."""
WINDOW_S = 60.0
"""A payment is taken when it is as large as the smallest increment that its session was told within this time."""
RATE_WINDOW_S = 5.0
"""Payments are counted over this time."""
CEILING_DIVISOR = 4
"""So many payments of the size asked for fit into the credit cap, however many come."""


class ToldIncrements:
    """What one session was told, kept by both sides. Times never go back."""

    def __init__(self) -> None:
        self._current_msat: int | None = None
        self._earlier: deque[tuple[int, float]] = deque()
        """Smaller ones than the current one, each with the time at which it was replaced; growing in both."""

    def tell(self, increment_msat: int, at_s: float) -> None:
        """From ``at_s`` on the session is asked for ``increment_msat``."""
        before_msat, self._current_msat = self._current_msat, increment_msat
        if before_msat is not None and before_msat < increment_msat:
            self._earlier.append((before_msat, at_s))
        while self._earlier and self._earlier[-1][0] >= increment_msat:
            self._earlier.pop()

    def least_msat(self, at_s: float, window_s: float = WINDOW_S) -> int:
        """The smallest that was in force at any time since ``window_s`` ago; 0 when nothing was ever told. What was
        told last stays in force, however long ago that was."""
        while self._earlier and self._earlier[0][1] < at_s - window_s:
            self._earlier.popleft()
        return self._earlier[0][0] if self._earlier else self._current_msat or 0


class Crowd:
    """How many payments come, and what is asked of whom for it: fewer and larger ones of those who send more than their
    share. What one sends, or fails to, raises nobody else's increment as long as he stays within his own share."""

    def __init__(self, base_msat: int, max_payments_per_s: int) -> None:
        self._base_msat = base_msat
        self._max_per_s = max_payments_per_s
        self._arrivals: dict[str, deque[float]] = {}

    def arrived(self, session_id: str, at_s: float) -> None:
        """A payment was credited."""
        arrivals = self._arrivals.setdefault(session_id, deque(maxlen=int(100 * self._max_per_s * RATE_WINDOW_S)))
        arrivals.append(at_s)

    def forget(self, session_id: str) -> None:
        self._arrivals.pop(session_id, None)

    def wish_msat(self, session_id: str | None, at_s: float, credit_cap_msat: int) -> int:
        """What a session (None: one that is not open yet) is asked for now. A session that keeps within an equal share
        of what the socket likes to handle is asked for the base, and so is everybody while the sum is within it."""
        counts = {each: self._count(arrivals, at_s) for each, arrivals in self._arrivals.items()}
        own = counts.get(session_id, 0) if session_id is not None else 0
        most = self._max_per_s * RATE_WINDOW_S
        payers = sum(1 for count in counts.values() if count)
        if own == 0 or sum(counts.values()) <= most:
            return self._base_msat
        crowding = max(1, -int(-own * payers // most))
        return max(self._base_msat, min(self._base_msat * crowding, credit_cap_msat // CEILING_DIVISOR))

    @staticmethod
    def _count(arrivals: deque[float], at_s: float) -> int:
        while arrivals and arrivals[0] < at_s - RATE_WINDOW_S:
            arrivals.popleft()
        return len(arrivals)
