"""Who watches a running cable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from wattline.cable.summary import Snapshot


class Listener(Protocol):
    """A live view. Called from the deciding thread only; must not block."""

    def event(self, text: str) -> None:
        """Something worth a line happened."""

    def show(self, snapshot: Snapshot) -> None:
        """The present state, several times a second."""


class Silence:
    """Nobody watches."""

    def event(self, text: str) -> None:
        del text

    def show(self, snapshot: Snapshot) -> None:
        del snapshot


class Sparing:
    """Passes on at most LINES lines at once and one more every LINE_MS; how many it left out, the next one says. For
    lines that somebody else causes, who may do so without end."""

    LINES = 30
    LINE_MS = 2_000

    def __init__(self, listener: Listener, clock_ms: Callable[[], int]) -> None:
        self._listener = listener
        self._clock_ms = clock_ms
        self._full_ms = clock_ms()
        """When all LINES may be said again."""
        self._left_out = 0

    def event(self, text: str) -> None:
        now_ms = self._clock_ms()
        full_ms = max(self._full_ms, now_ms) + self.LINE_MS
        if full_ms - now_ms > self.LINES * self.LINE_MS:
            self._left_out += 1
            return
        left_out, self._left_out, self._full_ms = self._left_out, 0, full_ms
        self._listener.event(f"{text} ({left_out} lines left out before)" if left_out else text)

    def show(self, snapshot: Snapshot) -> None:
        self._listener.show(snapshot)
