"""The relays in the guard's hands: who holds which until when, and opening them come what may.

No I/O but that of the relays, and no clock but the one given: the process around it is
:mod:`wattline.device.controller.guard`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wattline.device.controller.client import RelayState
from wattline.device.relays.opening import RelaySettings
from wattline.device.relays.relay import Relay, RelayError

log = logging.getLogger(__name__)

LONGEST_LEASE_MS = 1000
OPENING_MARGIN_MS = 20
"""A relay is opened so long before its lease ends, for switching and for the scheduler of the machine take time."""
RETRY_MS = 100
PATROL_MS = 1000
"""How often a relay that should be open is looked at: an expander can be disturbed."""
CLOCK_SLACK_MS = 5
WRONG_CHIP = "relay_wrong_chip"


@dataclass(slots=True)
class _Contact:
    settings: RelaySettings
    relay: Relay | None = None
    holder: object | None = None
    lease_ends_ms: int | None = None
    closed: bool = True
    confirmed: bool = False
    seen_ms: int = 0
    fault: str = ""
    hopeless: bool = False
    """Another chip than the configuration says is there: going on as configured opens nothing."""
    look_again_ms: int = 0
    """When an unconfirmed relay is opened again, or an open one is looked at."""


class Contacts:
    """All relays of one guard."""

    def __init__(
        self,
        relays: Mapping[str, RelaySettings],
        open_relay: Callable[[RelaySettings], Relay],
        clock_ms: Callable[[], int],
    ) -> None:
        """Nothing is switched yet: call ``open_all`` first."""
        self._open_relay = open_relay
        self._clock_ms = clock_ms
        self._contacts = {outlet_id: _Contact(settings) for outlet_id, settings in relays.items()}

    @property
    def all_open(self) -> bool:
        """Every relay is confirmed open."""
        return all(c.confirmed and not c.closed for c in self._contacts.values())

    @property
    def all_done(self) -> bool:
        """Every relay is confirmed open, or not to be switched by this configuration: nothing is left to go on for."""
        return all(c.hopeless or (c.confirmed and not c.closed) for c in self._contacts.values())

    def states(self) -> tuple[RelayState, ...]:
        return tuple(self._state(outlet_id, contact) for outlet_id, contact in self._contacts.items())

    def hold(self, outlet_id: str, holder: object, asked_ms: int, lease_ms: int) -> RelayState:
        """Close, until ``lease_ms`` after the client asked: time spent on the way here is not given on top.

        Raises RelayError; the relay is open then, or being opened.
        """
        contact = self._contact(outlet_id)
        now = self._clock_ms()
        if not 0 < lease_ms <= LONGEST_LEASE_MS:
            raise RelayError("lease_too_long", f"a lease is 1 to {LONGEST_LEASE_MS} ms, not {lease_ms}")
        if asked_ms > now + CLOCK_SLACK_MS:
            raise RelayError("bad_request", f"asked at {asked_ms} ms, which is not before now ({now} ms)")
        ends_ms = min(asked_ms, now) + lease_ms
        if ends_ms - OPENING_MARGIN_MS <= now:
            raise RelayError("lease_over", f"{outlet_id}: the lease of {lease_ms} ms had run out on its way")
        self._check_opened(outlet_id, contact)
        if contact.relay is None:
            raise RelayError("relay_bus_error", f"{outlet_id}: {contact.fault}")
        contact.holder, contact.lease_ends_ms = holder, ends_ms
        try:
            contact.relay.set_closed(True)
        except RelayError as error:
            log.error("%s: cannot be closed: %s", outlet_id, error)
            self._open(outlet_id, contact)
            raise
        self._saw(contact, closed=True)
        return self._state(outlet_id, contact)

    def open(self, outlet_id: str) -> RelayState:
        """Open now. Raises RelayError when that is not confirmed; it is tried again for ever."""
        contact = self._contact(outlet_id)
        self._open(outlet_id, contact)
        self._check_opened(outlet_id, contact)
        return self._state(outlet_id, contact)

    def open_all(self) -> None:
        """Open every relay, whoever holds it."""
        for outlet_id, contact in self._contacts.items():
            self._open(outlet_id, contact)

    def release(self, holder: object) -> None:
        """``holder`` is gone: open what it holds."""
        for outlet_id, contact in self._contacts.items():
            if contact.holder is holder:
                self._open(outlet_id, contact)

    def tend(self) -> None:
        """Open what is due, try again what failed, look after what should be open."""
        for outlet_id, contact in self._contacts.items():
            now = self._clock_ms()
            if contact.lease_ends_ms is not None:
                if now >= contact.lease_ends_ms - OPENING_MARGIN_MS:
                    log.info("%s: the lease is over", outlet_id)
                    self._open(outlet_id, contact)
            elif now >= contact.look_again_ms:
                if contact.confirmed:
                    self._look(outlet_id, contact)
                else:
                    self._open(outlet_id, contact)

    def next_ms(self) -> int:
        """When ``tend`` has something to do next."""
        return min(
            c.look_again_ms if c.lease_ends_ms is None else c.lease_ends_ms - OPENING_MARGIN_MS
            for c in self._contacts.values()
        )

    @staticmethod
    def _check_opened(outlet_id: str, contact: _Contact) -> None:
        if not contact.confirmed:
            code = WRONG_CHIP if contact.hopeless else "relay_stuck"
            raise RelayError(code, f"{outlet_id}: it cannot be opened: {contact.fault}")

    def _contact(self, outlet_id: str) -> _Contact:
        contact = self._contacts.get(outlet_id)
        if contact is None:
            raise RelayError("unknown_outlet", f"no outlet {outlet_id!r}; there are {', '.join(self._contacts)}")
        return contact

    def _open(self, outlet_id: str, contact: _Contact) -> None:
        contact.holder = contact.lease_ends_ms = None
        try:
            if contact.relay is None:
                contact.relay = self._open_relay(contact.settings)
            contact.relay.set_closed(False)
        except RelayError as error:
            if contact.fault != error.message:
                log.error("%s: cannot be opened, trying again: %s", outlet_id, error)
            contact.fault, contact.closed, contact.confirmed = error.message, True, False
            contact.hopeless = error.code == WRONG_CHIP
            contact.look_again_ms = self._clock_ms() + RETRY_MS
            return
        if contact.fault:
            log.info("%s: is open now", outlet_id)
        self._saw(contact, closed=False)

    def _look(self, outlet_id: str, contact: _Contact) -> None:
        try:
            closed = contact.relay is None or contact.relay.is_closed()
        except RelayError as error:
            closed = True
            log.warning("%s: cannot be looked at: %s", outlet_id, error)
        if closed:
            log.warning("%s: is not open though nobody holds it; opening it", outlet_id)
            self._open(outlet_id, contact)
        else:
            self._saw(contact, closed=False)

    def _saw(self, contact: _Contact, closed: bool) -> None:
        now = self._clock_ms()
        contact.closed, contact.confirmed, contact.fault, contact.hopeless = closed, True, "", False
        contact.seen_ms, contact.look_again_ms = now, now + PATROL_MS

    @staticmethod
    def _state(outlet_id: str, contact: _Contact) -> RelayState:
        return RelayState(
            outlet_id=outlet_id,
            closed=contact.closed,
            confirmed=contact.confirmed,
            at_ms=contact.seen_ms,
            lease_ends_ms=contact.lease_ends_ms,
            fault=contact.fault,
        )
