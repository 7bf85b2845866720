"""Who has an outlet: any number of sessions that have paid nothing yet may wait for it, and the first credit takes it.

Pure. The shell feeds it with what its sessions become, and carries out what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from wattline.core.errors import StopError
from wattline.core.session.session import Session


class OutletTakenError(StopError):
    """The outlet is another session's. Code ``outlet_busy``."""

    def __init__(self, session: Session) -> None:
        super().__init__("outlet_busy", f"outlet {session.outlet_id} is taken by another session, which has paid")


def needs_outlet(session: Session) -> bool:
    """Energy flows for it, has flowed, or may at any moment: nobody else can have its outlet."""
    return session.started or (session.state.is_live and session.account.payments > 0)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The sessions of one outlet. Raises StopError ``occupancy_invalid`` when one stands there twice."""

    paying: Session | None = None
    """The one that has it."""
    waiting: tuple[Session, ...] = ()
    """Those that have not paid (yet), in the order of their opens: OPEN ones, and some that are just ending."""

    def __post_init__(self) -> None:
        ids = [each.session_id for each in self.waiting] + ([self.paying.session_id] if self.paying else [])
        if len(set(ids)) != len(ids):
            raise StopError("occupancy_invalid", f"a session is twice on its outlet: {', '.join(sorted(ids))}")

    def of(self, session_id: str) -> Session | None:
        """The session of that id, paying or waiting."""
        if self.paying is not None and self.paying.session_id == session_id:
            return self.paying
        return next((each for each in self.waiting if each.session_id == session_id), None)

    def may_pay(self, session_id: str, is_claiming: Callable[[str], bool]) -> bool:
        """Whether a payment of this session could be used now. ``is_claiming`` says of a session whether a first
        payment of it is on its way and keeps others from the outlet: they keep their money as long as it is live."""
        if self.paying is not None:
            return self.paying.session_id == session_id
        if self.of(session_id) is None:
            return False
        others = (each for each in self.waiting if each.session_id != session_id and each.state.is_live)
        return not any(is_claiming(each.session_id) for each in others)

    def joined(self, session: Session) -> Occupancy:
        """With one more that waits."""
        return replace(self, waiting=(*self.waiting, session))

    def taken(self, session_id: str) -> tuple[Occupancy, tuple[str, ...]]:
        """The first credit of this session is here: it has the outlet. Those that are live and have waited in vain are
        the second value. Again for the same session changes nothing. Raises OutletTakenError, and StopError
        ``unknown_session`` for one that does not wait here."""
        if self.paying is not None:
            if self.paying.session_id == session_id:
                return self, ()
            raise OutletTakenError(self.paying)
        session = self.of(session_id)
        if session is None:
            raise StopError("unknown_session", f"session {session_id} does not wait for this outlet")
        others = tuple(each for each in self.waiting if each is not session)
        return Occupancy(session, others), tuple(each.session_id for each in others if each.state.is_live)

    def became(self, session: Session) -> Occupancy:
        """With what a session of it has become."""
        if self.paying is not None and self.paying.session_id == session.session_id:
            return replace(self, paying=session)
        waiting = tuple(session if each.session_id == session.session_id else each for each in self.waiting)
        return replace(self, waiting=waiting)

    def without(self, session_id: str) -> Occupancy:
        """When it has left."""
        if self.paying is not None and self.paying.session_id == session_id:
            return replace(self, paying=None)
        return replace(self, waiting=tuple(each for each in self.waiting if each.session_id != session_id))
