"""Who watches a running cable."""

from __future__ import annotations

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
