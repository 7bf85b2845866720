"""The running account that cables are sent."""

from __future__ import annotations

import threading

from wattline.core.clock import Clock
from wattline.core.increments import Crowd, ToldIncrements
from wattline.core.session.session import Session
from wattline.plugin.messages import statement_message
from wattline.plugin.outlet_state import OutletView
from wattline.plugin.reservations import Reservations
from wattline.plugin.sessions import Sessions
from wattline.plugin.settings import SocketSettings
from wattline.plugin.streams import Streams
from wattline.v1 import charging_pb2 as pb


class Statements:
    """Makes and sends statements: at a state change at once, else once per interval. Thread-safe."""

    def __init__(
        self,
        settings: SocketSettings,
        sessions: Sessions,
        reservations: Reservations,
        streams: Streams,
        clock: Clock,
    ) -> None:
        self._interval_s = settings.session.statement_interval_ms / 1000
        self._credit_cap_msat = settings.session.credit_cap_msat
        self._sessions = sessions
        self._reservations = reservations
        self._streams = streams
        self._lock = threading.Lock()
        self._clock = clock.monotonic
        self._sent_at: dict[str, float] = {}
        self._crowd = Crowd(settings.payment.min_increment_msat, settings.payment.max_payments_per_s)
        self._told: dict[str, ToldIncrements] = {}

    def of(self, view: OutletView, session: Session) -> pb.Statement:
        """The session's account as ``view`` has it, to be sent: what it asks for is what the session is held to."""
        session_id = session.session_id
        return statement_message(
            view,
            session,
            self._sessions.next_sequence(session_id),
            self._reservations.in_flight_msat(session_id),
            self._tell_wish(session_id),
        )

    def changed(self, view: OutletView, important: bool) -> None:
        """A session moved on, as ``view`` has it: its cable is told, if it is ``important`` or time; what is important
        is kept in the ledger, too."""
        session = view.session
        if session is None:
            return
        # Nothing of a session that has paid nothing moves on, but its end; that is written when it is over.
        if session.was_paid:
            self._sessions.mark_changed(session.session_id)
        session_id, now = session.session_id, self._clock()
        with self._lock:
            if not important and now - self._sent_at.get(session_id, float("-inf")) < self._interval_s:
                return
            self._sent_at[session_id] = now
        statement = self.of(view, session)
        if important and session.was_paid:
            self._sessions.keep(statement)
        self._streams.send(session_id, pb.ChargeResponse(statement=statement))

    def payment_refused(self, session_id: str, payment_hash: str, amount_msat: int, code: str, message: str) -> None:
        """A payment of this session failed, and what is asked of it."""
        refused = pb.PaymentRefused(
            payment_hash=payment_hash,
            amount_msat=amount_msat,
            code=code,
            message=message,
            min_increment_msat=self.least_msat(session_id),
        )
        self._streams.send(session_id, pb.ChargeResponse(payment_refused=refused))

    def finish(self, session_id: str, last: pb.ChargeResponse | None) -> None:
        """The session is over; ``last``: what its cable is told, None: nothing."""
        self.forget(session_id)
        if last is not None:
            self._streams.finish(session_id, last)

    def has_reader(self, session_id: str) -> bool:
        """Its cable is there."""
        return self._streams.is_attached(session_id)

    def forget(self, session_id: str) -> None:
        """The session is over."""
        with self._lock:
            self._sent_at.pop(session_id, None)
            self._told.pop(session_id, None)
            self._crowd.forget(session_id)

    def restored(self, session_id: str) -> None:
        """What an earlier process has told the session is not known here: for a minute everything is taken."""
        with self._lock:
            self._told.setdefault(session_id, ToldIncrements()).tell(0, self._clock())

    def note_payment(self, session_id: str) -> None:
        """A payment has arrived; their rate makes the wish."""
        with self._lock:
            self._crowd.arrived(session_id, self._clock())

    def wish_msat(self, session_id: str | None = None) -> int:
        """The smallest increment that the socket wishes from this session, or from one that is not open yet."""
        with self._lock:
            return self._crowd.wish_msat(session_id, self._clock(), self._credit_cap_msat)

    def least_msat(self, session_id: str) -> int:
        """The smallest payment that this session is taken: the smallest that it was told within the last minute. 0 for
        one that nothing was told yet."""
        with self._lock:
            told = self._told.get(session_id)
            return told.least_msat(self._clock()) if told is not None else 0

    def _tell_wish(self, session_id: str) -> int:
        with self._lock:
            now = self._clock()
            wish_msat = self._crowd.wish_msat(session_id, now, self._credit_cap_msat)
            told = self._told.get(session_id)
            if told is None:
                told = self._told[session_id] = ToldIncrements()
            told.tell(wish_msat, now)
            return wish_msat
