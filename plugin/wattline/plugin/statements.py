"""The running account that cables are sent."""

from __future__ import annotations

import threading
import time
from collections import deque

from wattline.offering import SocketSettings
from wattline.payment.keysend import Reservations
from wattline.plugin.live_sessions import LiveSessions
from wattline.plugin.messages import statement_message
from wattline.plugin.outlet import OutletView
from wattline.plugin.streams import Streams
from wattline.session import Session
from wattline.v1 import charging_pb2 as pb

RATE_WINDOW_S = 5.0


class Statements:
    """Makes and sends statements: at a state change at once, else once per interval. Thread-safe."""

    def __init__(
        self, settings: SocketSettings, live: LiveSessions, reservations: Reservations, streams: Streams
    ) -> None:
        self._interval_s = settings.session.statement_interval_ms / 1000
        self._payment = settings.payment
        self._live = live
        self._reservations = reservations
        self._streams = streams
        self._lock = threading.Lock()
        self._sent_at: dict[str, float] = {}
        self._paid_at: deque[float] = deque(maxlen=1000)

    def of(self, view: OutletView, session: Session) -> pb.Statement:
        """The session's account as ``view`` has it."""
        return statement_message(
            view,
            session,
            self._live.next_sequence(session.session_id),
            self._reservations.in_flight_msat(session.session_id),
            self.wish_msat(),
            self._live.onchain_credited_msat(session.session_id),
        )

    def send_if_due(self, view: OutletView, session: Session, *, important: bool) -> None:
        """Tell the cable, if it is ``important`` or time; what is important is kept in the ledger, too."""
        session_id, now = session.session_id, time.monotonic()
        with self._lock:
            if not important and now - self._sent_at.get(session_id, float("-inf")) < self._interval_s:
                return
            self._sent_at[session_id] = now
        statement = self.of(view, session)
        if important:
            self._live.keep(statement)
        self._streams.send(session_id, pb.ChargeResponse(statement=statement))

    def forget(self, session_id: str) -> None:
        """The session is over."""
        with self._lock:
            self._sent_at.pop(session_id, None)

    def note_payment(self) -> None:
        """A payment has arrived; their rate makes the wish."""
        self._paid_at.append(time.monotonic())

    def wish_msat(self) -> int:
        """The smallest increment that the socket wishes: grows when more payments arrive than it likes to handle."""
        since = time.monotonic() - RATE_WINDOW_S
        rate = sum(1 for at in list(self._paid_at) if at >= since) / RATE_WINDOW_S
        crowding = max(1, -int(-rate // self._payment.max_payments_per_s))
        return self._payment.min_increment_msat * crowding
