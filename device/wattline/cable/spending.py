"""What was paid before: by earlier runs of the same session, and by all sessions of the last 24 hours."""

from __future__ import annotations

import time
from collections.abc import Callable

from wattline.cable.account import Account
from wattline.cable.memory import SentRecord
from wattline.errors import RetryError

REFRESH_S = 60.0


class DaySpending:
    """What left or may leave the wallet within 24 hours, in msat.

    The ledger is asked once a minute; in between the session's own account tells what was added. A payment that is
    begun but not yet on record counts already."""

    def __init__(
        self,
        outgoing: SentRecord,
        session_id: str,
        day_begins_s: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``day_begins_s``: from which Unix second on records are of the last 24 hours; ``clock``: monotonic, in s."""
        self._outgoing = outgoing
        self._session_id = session_id
        self._day_begins_s = day_begins_s
        self._clock = clock
        self._asked_at: float | None = None
        self._day_msat = 0
        self._session_then_msat = 0

    def __call__(self, account: Account) -> int:
        if self._asked_at is None or self._clock() - self._asked_at >= REFRESH_S:
            try:
                self._ask(account)
            except RetryError:
                # Busy: what was asked last is still right for payments of this session, which are counted here.
                if self._asked_at is None:
                    raise
        return max(0, self._day_msat + account.sent_msat - self._session_then_msat)

    def _ask(self, account: Account) -> None:
        recorded = self._outgoing.sent_msat(session_id=self._session_id)
        day = self._outgoing.sent_msat(since=self._day_begins_s())
        self._session_then_msat = account.sent_msat
        self._day_msat = day + max(0, account.sent_msat - recorded)
        self._asked_at = self._clock()
