"""Waiting for a thing with a deadline; what is missing is named when it does not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from wattline.core.errors import RetryError

T = TypeVar("T")

SHORTEST_INTERVAL_S = 0.01
LONGEST_INTERVAL_S = 0.15
"""Between two probes: a tenth of the time waited so far, within these. What is soon there is seen at once, and what
takes long costs the machine little meanwhile."""
DEADLINE_S = 60.0
"""Enough for a real node on a small, busy machine; a wait that succeeds ends within one interval of the thing."""


class DeadlineError(RetryError):
    """The thing waited for did not come in time; the message says what was missing and what was seen last."""


def wait_until(what: str, probe: Callable[[], T | None], timeout_s: float = DEADLINE_S) -> T:
    """The first result of ``probe`` that is true. A RetryError of the probe counts as "not yet".

    Raises DeadlineError after ``timeout_s``, naming ``what`` and the last thing seen.
    """
    begun = time.monotonic()
    deadline = begun + timeout_s
    while True:
        seen: object
        try:
            result = probe()
            if result:
                return result
            seen = result
        except RetryError as error:
            seen = error.message
        now = time.monotonic()
        left = deadline - now
        if left <= 0:
            raise DeadlineError("deadline", f"waited {timeout_s:g} s in vain for: {what} (last seen: {seen!r})")
        time.sleep(min(max(SHORTEST_INTERVAL_S, min(LONGEST_INTERVAL_S, (now - begun) / 10)), left))
