"""The exceptions of wattline, split by what the caller does next.

Every error has a stable ``code`` (lower snake case, part of the interface: it stands in logs, in JSON and on the wire)
and a message of one line that names what is wrong and what is allowed.
"""

from __future__ import annotations


class WattlineError(Exception):
    """Root of all errors that wattline raises on purpose."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class RetryError(WattlineError):
    """Passing trouble: the same call may succeed later (node restarting, bus busy, no route just now)."""


class StopError(WattlineError):
    """The call will not succeed however often it is made: stop, open the relay, tell the person."""


class UsageError(StopError):
    """A person's mistake in a command or a configuration file; nothing was changed (exit status 2)."""
