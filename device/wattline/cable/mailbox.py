"""What happened, on its way from the threads that hear of it to the one that decides.

Of what the socket says, only the newest of each kind waits: however much it sends, this never holds more than a message
of every kind. Nothing is lost by that: statements are cumulative, one version at a time is under way, a request that
comes again replaces the one before, and refused payments are counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import replace

from wattline.cable.connection import Cut, Lost, StreamEvent, Unbelievable
from wattline.cable.messages import (
    FinalDue,
    OnchainInvitation,
    Opened,
    PaymentRefused,
    Refusal,
    SignedReceipt,
    Statement,
    TariffChange,
    VersionAccepted,
    VersionRefused,
)
from wattline.cable.onchain_event import OnchainEvent
from wattline.cable.purse import PaymentEvent
from wattline.meter import MeterError, Reading

Happening = Reading | MeterError | StreamEvent | PaymentEvent | OnchainEvent


class Mailbox:
    """In the order in which things happened; what replaces something older stands where the newer one would. ``put``
    may be called from any thread."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._waiting: dict[Hashable, tuple[int, Happening]] = {}
        self._count = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, happening: Happening) -> None:
        """It has happened now."""
        with self._changed:
            self._count += 1
            slot = _slot(happening)
            if slot is None:
                slot = self._count  # of our own: each of them counts
            before = self._waiting.pop(slot, None)
            if isinstance(happening, PaymentRefused) and before is not None:
                older = before[1]
                assert isinstance(older, PaymentRefused)
                happening = replace(happening, more=older.more + 1)
            self._waiting[slot] = (self._clock_ms(), happening)
            self._changed.notify()

    def take(self, timeout_s: float) -> tuple[int, Happening] | None:
        """The oldest one and when it happened; None when there is none for ``timeout_s``."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout_s)
            if not self._waiting:
                return None
            return self._waiting.pop(next(iter(self._waiting)))


def _slot(happening: Happening) -> Hashable | None:
    """Which of the socket's kinds it is; None for what is our own."""
    match happening:
        case VersionRefused(number=number):
            return VersionRefused, number == 0
        case VersionAccepted(is_final=is_final):
            return VersionAccepted, is_final
        case (
            Opened()
            | Statement()
            | TariffChange()
            | PaymentRefused()
            | Refusal()
            | SignedReceipt()
            | OnchainInvitation()
            | FinalDue()
            | Cut()
            | Lost()
            | Unbelievable()
        ):
            return type(happening).__name__
        case _:
            return None
