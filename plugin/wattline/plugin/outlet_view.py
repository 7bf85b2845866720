"""An outlet as others see it, and what its loop needs of others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from wattline.core.session.occupancy import Occupancy
from wattline.core.session.session import Session
from wattline.device.controller.state import RelayState
from wattline.device.meters.reading import Reading


class Condition(StrEnum):
    """What an outlet is doing, for people and for cables that ask for it."""

    STARTING = "starting"  # the meter has not been read yet
    AVAILABLE = "available"  # nobody has paid for it, meter and relay answer
    IN_USE = "in_use"  # a session that has paid has it
    FAULTED = "faulted"  # the meter or the relay cannot be trusted


@dataclass(frozen=True, slots=True)
class OutletView:
    """What the loop last knew; replaced as a whole, so that any thread may read it."""

    outlet_id: str
    condition: Condition
    fault: str
    """Empty, or what is wrong, for people."""
    relay_closed: bool
    reading: Reading | None
    session: Session | None
    """The one that has the outlet: its first payment has come."""
    meter_base_uwh: int
    """The chip's cumulative energy when the session took the outlet."""
    chip_uwh: int
    """The chip's cumulative energy of the last reading that counted for the session."""
    max_unpaid_msat: int
    """The worst (charged - credited) that this process saw in the session; 0 when it never was above."""
    waiting: tuple[Session, ...] = ()
    """Sessions that have paid nothing (yet)."""

    @property
    def occupancy(self) -> Occupancy:
        return Occupancy(self.session, self.waiting)

    def of(self, session_id: str) -> OutletView | None:
        """The outlet as one of its sessions sees it, which is ``session`` then; None when it serves no such session.
        What flows for another one is not told."""
        if self.session is not None and self.session.session_id == session_id:
            return self
        session = self.occupancy.of(session_id)
        if session is None:
            return None
        reading = self.reading if self.session is None else None
        base_uwh = reading.energy_uwh if reading is not None else 0
        return replace(
            self,
            session=session,
            waiting=(),
            relay_closed=self.relay_closed and self.session is None,
            reading=reading,
            meter_base_uwh=base_uwh,
            chip_uwh=reading.chip_uwh if reading is not None else 0,
            max_unpaid_msat=0,
        )


class Holder(Protocol):
    """Holds the relay (see :class:`wattline.plugin.guarding.RelayHolder`)."""

    def hold(self, outlet_id: str, lease_ms: int) -> RelayState: ...

    def open(self, outlet_id: str) -> RelayState: ...


class SessionSink(Protocol):
    """What the loop tells of its sessions; every call returns at once."""

    def changed(self, view: OutletView, *, important: bool) -> None:
        """The session of ``view`` moved on; ``important`` when a statement is due now."""

    def settle(self, session: Session) -> None: ...

    def refund(self, session: Session, budget_msat: int) -> None: ...

    def receipt_due(self, session: Session) -> None: ...
