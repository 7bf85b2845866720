"""That the run shall end: by a person, a signal, or because its time is up. Set from any thread or a signal handler."""

from __future__ import annotations


class StopWish:
    """The first wish stands. Plain attributes only, so that a signal handler may set it."""

    def __init__(self, for_ms: int | None = None) -> None:
        """``for_ms``: how long the run shall last, counted from :meth:`begin`; None: until stopped."""
        self.reason = ""
        self.message = ""
        self._for_ms = for_ms
        self._until_ms: int | None = None

    def begin(self, now_ms: int) -> None:
        """The time begins to run."""
        if self._for_ms is not None and self._until_ms is None:
            self._until_ms = now_ms + self._for_ms

    def want(self, reason: str, message: str) -> None:
        if not self.reason:
            self.message = message
            self.reason = reason

    def is_time_up(self, now_ms: int) -> bool:
        return self._until_ms is not None and now_ms >= self._until_ms

    def left_ms(self, now_ms: int) -> int | None:
        """How long the run will last at the most; None when that is open."""
        if self._until_ms is not None:
            return max(0, self._until_ms - now_ms)
        return self._for_ms
