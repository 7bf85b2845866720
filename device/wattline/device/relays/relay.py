"""A relay as the guard sees it, and what can go wrong with it."""

from __future__ import annotations

from typing import Protocol

from wattline.core.errors import StopError


class RelayError(StopError):
    """A relay is not, or not certainly, in the state that was asked for.

    Codes of the hardware: ``relay_bus_error`` (the chip does not answer), ``relay_no_line`` (no such GPIO line, or
    somebody else has it), ``relay_stuck`` (read back, it is not where it was put), ``relay_wrong_chip`` (another kind
    of chip than ``driver`` says), ``relay_taken`` (another guard drives it), ``relay_lock_unusable`` (whether one does
    cannot be told). Codes of the guard: ``guard_lost`` (it is gone; every lease ends by itself),
    ``guard_busy`` (another client holds relays), ``guard_leaving`` (it is ending), ``guard_start`` (it could not be
    started), ``bad_request``, ``unknown_outlet``, ``lease_too_long``, ``lease_over`` (the request came after its own
    lease had run out).
    """


class Relay(Protocol):
    """One switched contact. Closed means that current flows. Not to be shared by threads."""

    def set_closed(self, closed: bool) -> None:
        """Switch, and read back where the hardware can. Raises RelayError: then its state is unknown."""

    def is_closed(self) -> bool:
        """The state read back from the hardware. Raises RelayError."""

    def close(self) -> None:
        """Let go of the hardware. This does not open the contact: call ``set_closed(False)`` before."""
