"""The cable's own account of a session's payments, kept by its one deciding thread."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from wattline.cable.budget import Spending


@dataclass(frozen=True, slots=True)
class Underway:
    """A payment that is begun and not resolved."""

    amount_msat: int
    """What the socket would receive."""
    most_msat: int
    """What may leave the wallet: the amount and its fee limit."""


class Account:
    """Amounts that were begun, arrived or came back. Every payment is counted from the moment it is decided on."""

    def __init__(self, settled_msat: int = 0, sent_msat: int = 0, payments: int = 0) -> None:
        """Begin with what the ledger knows of earlier runs of the same session (all of it resolved)."""
        self.settled_msat = settled_msat
        """Arrived at the socket."""
        self.settled_sent_msat = sent_msat
        """Left the wallet for it, fees included."""
        self.payments = payments
        """How many arrived."""
        self.failed_payments = 0
        self.durations_ms: deque[int] = deque(maxlen=10_000)
        """Of the payments that arrived."""
        self._underway: dict[int, Underway] = {}
        self._arrivals: deque[tuple[int, int]] = deque()
        self._old_settled_msat = settled_msat

    @property
    def fees_msat(self) -> int:
        """Routing fees paid."""
        return self.settled_sent_msat - self.settled_msat

    @property
    def in_flight(self) -> int:
        """How many payments are not resolved."""
        return len(self._underway)

    @property
    def in_flight_msat(self) -> int:
        return sum(item.amount_msat for item in self._underway.values())

    @property
    def sent_msat(self) -> int:
        """Left or may leave the wallet."""
        return self.settled_sent_msat + sum(item.most_msat for item in self._underway.values())

    @property
    def handed_over_msat(self) -> int:
        """Arrived or on the way."""
        return self.settled_msat + self.in_flight_msat

    def begin(self, sequence: int, amount_msat: int, maxfee_msat: int) -> None:
        if sequence in self._underway:
            raise ValueError(f"payment {sequence} is under way already")
        self._underway[sequence] = Underway(amount_msat, amount_msat + maxfee_msat)

    def is_underway(self, sequence: int) -> bool:
        return sequence in self._underway

    def arrived(self, sequence: int, amount_sent_msat: int, at_ms: int, duration_ms: int | None = None) -> bool:
        """It has arrived. False (and nothing changes) when it is not under way: one payment counts once."""
        item = self._underway.pop(sequence, None)
        if item is None:
            return False
        self.settled_msat += item.amount_msat
        self.settled_sent_msat += amount_sent_msat
        self.payments += 1
        self._arrivals.append((at_ms, item.amount_msat))
        if duration_ms is not None:
            self.durations_ms.append(duration_ms)
        return True

    def came_back(self, sequence: int) -> bool:
        """It failed for good; the money is back. False when it is not under way."""
        if self._underway.pop(sequence, None) is None:
            return False
        self.failed_payments += 1
        return True

    def settled_before(self, at_ms: int) -> int:
        """What had arrived by then. Asked for with growing times only (older arrivals are folded together)."""
        while self._arrivals and self._arrivals[0][0] <= at_ms:
            self._old_settled_msat += self._arrivals.popleft()[1]
        return self._old_settled_msat

    def spending(self, charged_msat: int, day_sent_msat: int) -> Spending:
        """For :func:`wattline.cable.budget.room`; ``charged_msat`` is the lower of own and socket's charge."""
        return Spending(
            settled_msat=self.settled_msat,
            in_flight_msat=self.in_flight_msat,
            charged_msat=charged_msat,
            session_sent_msat=self.sent_msat,
            day_sent_msat=day_sent_msat,
        )
