"""What can have been delivered while nobody looked: the cable was down, or its machine slept.

Pure. A socket that keeps the rules stops at the credit that it holds. So all that it has delivered by the time somebody
looks again comes to no more than was paid by then or was in doubt, energy and time together: that much the caps
believe, and what is claimed beyond it is untrue, as far as two honest meters and a relay's way can be apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wattline.cable.reconciliation import Tolerance
from wattline.tariff import Tariff, left_ms, worth_msat

OVERDRAFT_MS = 5_000
"""By so much, at the rated power, an honest socket may overdraw: a meter interval, or the lease of a remote relay."""


def longest_paid_ms(tariff: Tariff, tolerance: Tolerance, rated_power_mw: int, paid_msat: int, own_uwh: int) -> int:
    """Longer an honest socket cannot have delivered for ``paid_msat``, when the own meter has counted ``own_uwh``."""
    least_uwh = max(0, own_uwh - tolerance.allowed_uwh(own_uwh))
    return left_ms(tariff, paid_msat + worth_msat(tariff, rated_power_mw, OVERDRAFT_MS), least_uwh, 0, 0)


@dataclass(frozen=True, slots=True)
class Unseen:
    """The newest time that nobody looked, and what is believed of it. Before any: nothing was delivered."""

    tariff: Tariff
    most_ms: int = 0
    """What would be believed by its end if all of it was delivery."""
    paid_msat: int = 0
    """The most that the socket can have got by its end, payments in doubt included."""
    own_uwh: int = 0
    """By the own meter at its end, with what two honest meters drift apart."""
    seen_ms: int = 0
    """What the own meter had seen by its end of this run; what it sees later comes on top."""
    underway: frozenset[int] = frozenset()
    """The payments over Lightning that were not resolved at its end."""

    def believed_ms(self, seen_ms: int) -> int:
        """The longest that delivery can have lasted, as far as the caps believe it, when the own meter has seen
        ``seen_ms`` in this run."""
        paid_for_ms = left_ms(self.tariff, self.paid_msat, self.own_uwh, 0, 0)
        return min(self.most_ms, paid_for_ms) + seen_ms - self.seen_ms

    def failed(self, sequence: int, amount_msat: int) -> Unseen:
        """A payment came back: nothing was delivered for it."""
        if sequence not in self.underway:
            return self
        return replace(self, paid_msat=self.paid_msat - amount_msat, underway=self.underway - {sequence})
