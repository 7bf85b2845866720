"""Whether a payment may be credited to a session, by either method, and its way there.

Every credit is idempotent: a keysend payment is told by its payment_hash, the chain's part by its total.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from wattline.core.aggregate import VersionRefused
from wattline.core.increments import BELOW_MIN_INCREMENT
from wattline.core.ledger.ledger import Ledger
from wattline.core.session.session import Session
from wattline.core.session.state import StopReason
from wattline.plugin.limits import CountedLog
from wattline.plugin.outlet_state import OutletView
from wattline.plugin.reservations import Reservations
from wattline.plugin.sessions import CALL_TIMEOUT_S, Sessions
from wattline.plugin.statements import Statements

OUTLET_BUSY = "outlet_busy"


class Crediting:
    """Thread-safe: sessions change in their outlet's loop only."""

    def __init__(
        self,
        ledger: Ledger,
        sessions: Sessions,
        statements: Statements,
        reservations: Reservations,
        ready: threading.Event,
        lines: CountedLog,
    ) -> None:
        """``ready``: set while sessions may be opened and paid."""
        self._ledger = ledger
        self._sessions = sessions
        self._statements = statements
        self.reservations = reservations
        self._ready = ready
        self._lines = lines

    def _obstacle(self, whole: OutletView | None, session_id: str) -> tuple[str, str] | None:
        """Why nothing may be credited to the session now, whichever way it is paid; ``whole``: its outlet."""
        view = whole.of(session_id) if whole is not None else None
        if view is None or view.session is None:
            return "unknown_session", "no such session is open here"
        session = view.session
        if session.stop_reason is StopReason.OUTLET_TAKEN:
            return OUTLET_BUSY, f"another cable has paid for outlet {view.outlet_id} first"
        if not session.state.is_live:
            return "session_closed", f"the session is {session.state}"
        if view.fault:
            return "outlet_faulted", view.fault
        return None

    def _busy(self, whole: OutletView, session_id: str) -> tuple[str, str] | None:
        """The outlet is another session's, or is about to be."""
        if whole.occupancy.may_pay(session_id, self.reservations.is_claiming):
            return None
        return OUTLET_BUSY, f"another cable's first payment for outlet {whole.outlet_id} is on its way"

    # Keysend.

    def refusal(self, session_id: str, amount_msat: int, in_flight_msat: int) -> tuple[str, str] | None:
        """Code and message when ``amount_msat`` more, on top of ``in_flight_msat`` not yet credited, cannot be used;
        None when they can."""
        if not self._ready.is_set():
            return "starting", "the socket is starting and does not take payments yet"
        if self._sessions.unsaved:
            return "ledger_failed", "the socket cannot keep its books and takes no payments"
        outlet = self._sessions.outlet_of(session_id)
        whole = outlet.view if outlet is not None else None
        obstacle = self._obstacle(whole, session_id)
        if obstacle is not None or whole is None:
            return obstacle
        busy = self._busy(whole, session_id)
        if busy is not None:
            return busy
        least_msat = self._statements.least_msat(session_id)
        if amount_msat < least_msat:
            return (
                BELOW_MIN_INCREMENT,
                f"{amount_msat} msat are less than the {least_msat} msat that this session was asked for",
            )
        session = whole.occupancy.of(session_id)
        assert session is not None, "there is no obstacle"
        unused_msat = session.account.balance_msat
        cap_msat = session.terms.credit_cap_msat
        if unused_msat + in_flight_msat + amount_msat > cap_msat:
            return (
                "over_credit_cap",
                f"{amount_msat} msat, {unused_msat} unused and {in_flight_msat} in flight exceed the cap of {cap_msat}",
            )
        return None

    def outlet_id_of(self, session_id: str) -> str:
        """Of a live session; empty when there is none of that id."""
        outlet = self._sessions.outlet_of(session_id)
        return outlet.outlet_id if outlet is not None else ""

    def was_received(self, payment_hash: str) -> bool:
        """A payment with this hash is in the ledger already."""
        return self._ledger.booked(payment_hash) is not None

    def payment_refused(self, payment_hash: str, amount_msat: int, code: str, message: str, session_id: str) -> None:
        """Tell the cable why its payment failed; ``session_id`` is empty when the payment names no known session."""
        known = session_id if session_id and self._sessions.outlet_of(session_id) else ""
        self._lines.info(
            f"payment {code} {known}", "payment %s of %d msat refused: %s: %s", payment_hash, amount_msat, code, message
        )
        if session_id:
            self._statements.payment_refused(session_id, payment_hash, amount_msat, code, message)

    def paid(self, payment_hash: str, amount_msat: int) -> str | None:
        """The fast path: lightningd says that an invoice was paid. The session that it was for, as far as the hook let
        it pass for one."""
        session_id = self.reservations.session_of(payment_hash)
        outlet = self._sessions.outlet_of(session_id) if session_id is not None else None
        if session_id is not None and outlet is not None:
            self._statements.note_payment(session_id)
            outlet.credit_reserved(session_id, payment_hash, amount_msat)
        return session_id

    def take(self, session_id: str, payment_hash: str, amount_msat: int) -> bool:
        """The journal's path: credit the session, once; False when it cannot use the payment any more (or never
        existed)."""
        outlet = self._sessions.outlet_of(session_id)
        return outlet is not None and outlet.credit(session_id, payment_hash, amount_msat).result(CALL_TIMEOUT_S)

    def booked(self, payment_hashes: Sequence[str]) -> None:
        """The ledger holds these now."""
        self._sessions.booked(payment_hashes)

    # On the chain.

    def payable(self, session_id: str) -> Session:
        """A session to which a version may be credited now. Raises VersionRefused ``session_closed``."""
        outlet = self._sessions.outlet_of(session_id)
        whole = outlet.view if outlet is not None else None
        obstacle = self._obstacle(whole, session_id)
        session = whole.occupancy.of(session_id) if whole is not None else None
        if obstacle is not None or session is None:
            raise VersionRefused("session_closed", obstacle[1] if obstacle else "the session takes no payment any more")
        return session

    def least_msat(self, session_id: str) -> int:
        """The smallest increment that the session is taken: the smallest that it was told within the last minute."""
        return self._statements.least_msat(session_id)

    def reserve_version(self, session_id: str, txid: str, amount_msat: int) -> None:
        """Before a version is stored: from now on its session's outlet is nobody else's. Released by its credit, or by
        :meth:`release_version`. Raises VersionRefused ``session_closed``."""
        refusals: list[str] = []

        def is_free(_: int) -> bool:
            outlet = self._sessions.outlet_of(session_id)
            if outlet is None:
                refusals.append("the session takes no payment any more")
            elif (busy := self._busy(outlet.view, session_id)) is not None:
                refusals.append(busy[1])
            return not refusals

        outlet_id = self.outlet_id_of(session_id)
        if not self.reservations.reserve(txid, session_id, amount_msat, is_free, outlet_id, is_proven=True):
            raise VersionRefused("session_closed", refusals[0] if refusals else "this transaction pays another session")

    def release_version(self, txid: str) -> None:
        """It was not stored, or not credited."""
        self.reservations.release(txid)

    def credit_stored(self, session_id: str, txid: str, total_msat: int) -> bool:
        """The ledger holds a version with this txid: credit what the session lacks of ``total_msat`` from the chain;
        False when it can no longer use it. May be told again."""
        outlet = self._sessions.outlet_of(session_id)
        return outlet is not None and outlet.credit_onchain(session_id, txid, total_msat).result(CALL_TIMEOUT_S)
