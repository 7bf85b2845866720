"""The end of a session: payments settle, the socket is asked to close, its receipt and refund are checked."""

from __future__ import annotations

from wattline.cable.link.connection import Connection
from wattline.cable.link.messages import SignedReceipt
from wattline.cable.link.opening import Equipment
from wattline.cable.link.receipt import OnchainKnown, Receipt, RefundSearch, objections, verify_receipt
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.reconciliation import Known, Tolerance
from wattline.cable.restoring import RestoredPayments
from wattline.cable.summary import Listener
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.errors import WattlineError
from wattline.core.ledger.cable import CableAggregate, CableSession

SETTLE_MS = 10_000
"""How long the end waits for payments under way before it asks the socket to close."""
RECEIPT_MS = 60_000
"""How long after that the receipt may take (the socket waits for payments and sends the refund first)."""
HURRY_MS = 20_000
"""How long all of it may take once a person (a signal) has asked for the end, whatever the socket does."""
CUT_HURRY_MS = 3_000
"""The same while the stream to the socket is cut."""
REFUND_MS = 10_000
"""How long after the receipt the refund may take to stand in the own node's invoices."""


class Closing:
    """Kept by the deciding thread from the stop on."""

    def __init__(self, equipment: Equipment, listener: Listener, tolerance: Tolerance) -> None:
        self._equipment = equipment
        self._listener = listener
        self._tolerance = tolerance
        self._stopped_ms: int | None = None
        self._hurried_ms: int | None = None
        self._is_asked = False
        self._refund: RefundSearch | None = None
        self._refund_until_ms = 0
        self.receipt: Receipt | None = None
        """Signed by the socket's node, for this session."""
        self.objections: list[str] = []
        self.refund_seen: bool | None = None
        """None when there is none to look for, or not known yet."""

    def begin(self, now_ms: int) -> bool:
        """The session stops; True the first time."""
        if self._stopped_ms is not None:
            return False
        self._stopped_ms = now_ms
        return True

    def hurry(self, now_ms: int) -> None:
        """A person waits for the end."""
        if self._hurried_ms is None:
            self._hurried_ms = now_ms

    def ask(self, buyer: Buyer, connection: Connection, now_ms: int) -> None:
        """Ask the socket to close, once per stream: at once when it is not trusted, else when nothing is under way."""
        if self._is_asked or self._stopped_ms is None or buyer.stop is None:
            return
        settled = buyer.account.in_flight == 0 or now_ms - self._stopped_ms >= SETTLE_MS
        if settled or buyer.stop.at_once:
            self._is_asked = connection.close(buyer.stop.reason)

    def on_stream_renewed(self) -> None:
        """What was said into the stream that broke may not have been heard."""
        self._is_asked = False

    def on_receipt(self, buyer: Buyer, signed: SignedReceipt, now_ms: int) -> bool:
        """Take the receipt; False when it is not genuine, which ends the session as well."""
        try:
            receipt = verify_receipt(signed, self._equipment.node, buyer.terms.node_id, buyer.terms.session_id)
        except WattlineError as error:
            self.objections.append(error.message)
            buyer.end(error.code, error.message)
            return False
        buyer.end("socket_closed", f"the socket ended the session: {receipt.stop_reason or 'no reason given'}")
        if receipt.from_restored_ledger:
            self._listener.event(
                "the socket's ledger was restored from a copy: its receipt may lack what was delivered and paid since"
            )
            if self.receipt is not None and self.receipt.charged_msat <= receipt.charged_msat:
                return True  # of two, the smaller is due
        self.receipt = receipt
        if receipt.refund_status == "sent" and receipt.refunded_by_payment_msat:
            self._refund = RefundSearch(self._equipment.node, receipt.session_id, receipt.refunded_by_payment_msat)
            self._refund_until_ms = now_ms + REFUND_MS
        self._listener.event(
            f"receipt: {receipt.charged_msat} msat charged, {receipt.refunded_msat} msat refunded "
            f"({receipt.refund_status})"
        )
        return True

    def is_over(self, buyer: Buyer, connected: bool, stream_over: bool, now_ms: int) -> bool:
        """Nothing is worth waiting for any more."""
        if self._stopped_ms is None:
            return False
        if self._hurried_ms is not None:
            patience_ms = HURRY_MS if connected or stream_over else CUT_HURRY_MS
            if now_ms - self._hurried_ms >= patience_ms:
                return True
        waited_ms = now_ms - self._stopped_ms
        if waited_ms >= SETTLE_MS + RECEIPT_MS:
            return True
        if not stream_over or (buyer.account.in_flight and waited_ms < SETTLE_MS):
            return False
        return self._refund is None or self._is_refund_decided(self._refund, now_ms)

    def fetch_receipt(self, buyer: Buyer, connection: Connection, now_ms: int) -> None:
        """Ask for a receipt that did not come by the stream."""
        if self.receipt is None:
            signed = connection.newest_receipt(buyer.terms.session_id)
            if signed is not None:
                self.on_receipt(buyer, signed, now_ms)

    def finish(self, buyer: Buyer, onchain: OnchainKnown | None, now_ms: int) -> None:
        """Hold the final account against the own one."""
        receipt = self.receipt
        if receipt is None:
            if not self.objections:
                self.objections.append("the socket gave no receipt")
            return
        self.objections += objections(
            receipt,
            buyer.known_at(now_ms),
            buyer.terms.tariff,
            self._tolerance,
            buyer.account.settled_msat,
            buyer.terms.min_refund_msat,
            buyer.account.way_msat,
            onchain,
        )
        if self._refund is not None:
            self._is_refund_decided(self._refund, now_ms)
            if self.refund_seen is not True:
                self.refund_seen = False
                self.objections.append(
                    f"by the receipt {receipt.refunded_by_payment_msat} msat were sent back, but the own node has not "
                    "got them"
                )

    def _is_refund_decided(self, search: RefundSearch, now_ms: int) -> bool:
        if self.refund_seen is None:
            try:
                if search.found():
                    self.refund_seen = True
            except WattlineError as error:
                self._listener.event(f"the own node's invoices cannot be read: {error.message}")
        return self.refund_seen is True or now_ms >= self._refund_until_ms


def objections_of_found(
    session: CableSession,
    last_uwh: int,
    receipt: Receipt,
    payments: RestoredPayments,
    row: CableAggregate | None,
    tolerance: Tolerance,
) -> list[str]:
    """The same for a session that no run saw the end of: ``session`` as it was found over, ``last_uwh`` the own energy
    that was on record before, ``row`` its aggregate."""
    onchain, onchain_msat = None, 0
    if row is not None and row.signed_sat:
        onchain_msat = row.accepted_sat * MSAT_PER_SAT
        onchain = OnchainKnown(row.floor_sat, onchain_msat, row.signed_sat * MSAT_PER_SAT, {}, row.is_final_taken)
    settled_msat = payments.settled_msat + onchain_msat
    elapsed_ms = max(0, session.saved_at - (session.opened_at or session.created_at)) * 1000
    return objections(
        receipt,
        Known(last_uwh, session.energy_uwh, elapsed_ms, settled_msat),
        session.tariff,
        tolerance,
        settled_msat,
        session.min_refund_msat,
        (payments.sent_msat - payments.settled_msat) // max(1, payments.payments),
        onchain,
    )
