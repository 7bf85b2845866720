"""How late a socket's word may be: the one source for whatever waits for it or judges by it.

A statement stands in one stream behind all that was said before it, so a network that stalls makes it late without
losing it. The cable bears silence for `Lateness.silence_ms` and then takes the stream up anew, and what was said into
the old one is never heard. So nothing that is heard is older, and the cable's own figures are looked at as far back.
"""

from __future__ import annotations

from dataclasses import dataclass

SILENT_INTERVALS = 5
SILENT_MS = 5_000
MOST_SILENT_MS = 150_000
"""Two and a half of the longest interval between two statements."""
LEAST_LOST_S, MOST_LOST_S = 5, 600
NOTICED_MS = 60_000
"""A socket may take so long to see that its cable is gone: it asks every 10 s, and nobody need answer for 5 s more."""
MAKING_MS = 3_000
"""A statement may be this old before it leaves the socket and after it has arrived: meter intervals, a busy machine."""


@dataclass(frozen=True, slots=True)
class Lateness:
    """By the interval between two statements that a socket's offer names."""

    statement_interval_ms: int

    @property
    def silence_ms(self) -> int:
        """So long without a word while energy flows, and the stream is taken up anew."""
        return min(max(SILENT_MS, SILENT_INTERVALS * self.statement_interval_ms), MOST_SILENT_MS)

    @property
    def claim_age_ms(self) -> int:
        """What a statement says was true at most so long before it was read."""
        return self.silence_ms + MAKING_MS


def lost_s(cable_lost_s: int) -> int:
    """So long, as far as it is believed, a session outlives its connection where the socket's offer says
    ``cable_lost_s``: a cut stream is tried to be taken up again, and the cable, back after that, finds it over."""
    return min(max(LEAST_LOST_S, cable_lost_s), MOST_LOST_S)


def unheard_ms(cable_lost_s: int) -> int:
    """So long such a socket may deliver without a word of its cable."""
    return cable_lost_s * 1000 + NOTICED_MS


LONGEST_CLAIM_AGE_MS = MOST_SILENT_MS + MAKING_MS
