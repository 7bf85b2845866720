"""What is of the last 24 hours, reckoned by the boots of the machine: for budgets of a day.

Pure. Within one boot durations are exact. Across boots only the wall clock tells how long the machine was off, as far
as it was set: a machine without a clock chip starts in 1970, or where it was left. Where it was not, only the time
counts that the machine has provably been running since, so that never less counts than what is provably of the last
day, and nothing for longer than a day of running.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wattline.core.clock import DAY_S, Moment

DAY_MS = DAY_S * 1000
EARLIEST_S = 1_600_000_000
"""A clock that says less (2020) was not set."""


@dataclass(frozen=True, slots=True)
class LastDay:
    """Which records are of the last 24 hours."""

    after_ms: Mapping[str, int]
    """Of a boot, what was later than this many ms after its start. Nothing of a boot that is not named."""
    begins_s: int
    """Of records without a boot: Unix seconds."""
    counts_undated: bool
    """Whether records without a boot count that were dated by a clock that was not set."""

    def has(self, made: Moment) -> bool:
        """Whether a record of that moment counts."""
        if not made.boot_id:
            return made.wall_s >= self.begins_s or (self.counts_undated and made.wall_s < EARLIEST_S)
        return made.boot_id in self.after_ms and made.boot_ms > self.after_ms[made.boot_id]


def last_day(boots: Sequence[Moment], now: Moment) -> LastDay:
    """By the newest moment on record of each boot, in the order of the boots."""
    earlier = [boot for boot in boots if boot.boot_id != now.boot_id]
    after_ms = {now.boot_id: now.boot_ms - DAY_MS} if now.boot_id else {}
    since_ms, reckoned_s = now.boot_ms, now.wall_s
    while earlier and since_ms < DAY_MS:
        boot = earlier.pop()
        if _was_set(boot, earlier, now):
            since_ms = max(since_ms, (now.wall_s - boot.wall_s) * 1000)
            reckoned_s = max(reckoned_s, boot.wall_s + since_ms // 1000)
        after_ms[boot.boot_id] = boot.boot_ms + since_ms - DAY_MS
        since_ms += boot.boot_ms
    return LastDay(after_ms, reckoned_s - DAY_S, counts_undated=now.boot_ms < DAY_MS)


def _was_set(boot: Moment, earlier: Sequence[Moment], now: Moment) -> bool:
    """Not when it is behind a boot before it. Of one that is in the future, this clock or that one is wrong."""
    return (
        boot.wall_s >= max((each.wall_s for each in earlier if each.wall_s <= now.wall_s), default=EARLIEST_S)
        and boot.wall_s >= EARLIEST_S
    )
