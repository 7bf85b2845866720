"""The sessions that pay on the chain, each with what two threads must not do at once."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class Desk:
    """One session. Its lock is taken before the ledger's, never within a unit of work."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    is_closed: bool = False
    """Nothing is credited any more."""
    final_sat: int = 0
    """What the final version has to pay; 0 while none is wanted."""
    final_came: threading.Event = field(default_factory=threading.Event)


class OpenAggregates:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._desks: dict[str, Desk] = {}

    def of(self, session_id: str) -> Desk:
        with self._lock:
            return self._desks.setdefault(session_id, Desk())

    def forget(self, session_id: str) -> None:
        """The session is over."""
        with self._lock:
            self._desks.pop(session_id, None)
