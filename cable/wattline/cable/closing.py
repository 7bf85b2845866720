"""The end of a session: payments settle, the socket is asked to close, its receipt and refund are checked, and what is
said of it all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from wattline.cable.link.stream import SocketStream
from wattline.cable.link.transport import verify_receipt
from wattline.cable.pay.keysend import RefundSearch
from wattline.cable.pay.settlement import agreed_sat
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.events import Receipt, SignedReceipt
from wattline.cable.policy.reconciliation import OnchainKnown, Tolerance, objections
from wattline.core.errors import WattlineError
from wattline.core.ledger.cable import CableAggregate
from wattline.core.lightning.node import CableNode

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

    def __init__(self, node: CableNode, tolerance: Tolerance, tell: Callable[[str], None]) -> None:
        self._node = node
        self._tell = tell
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

    def ask(self, buyer: Buyer, stream: SocketStream, now_ms: int) -> None:
        """Ask the socket to close, once per stream: at once when it is not trusted, else when nothing is under way."""
        if self._is_asked or self._stopped_ms is None or buyer.stop is None:
            return
        settled = buyer.account.in_flight == 0 or now_ms - self._stopped_ms >= SETTLE_MS
        if settled or buyer.stop.at_once:
            self._is_asked = stream.close(buyer.stop.reason)

    def on_stream_renewed(self) -> None:
        """What was said into the stream that broke may not have been heard."""
        self._is_asked = False

    def on_receipt(self, buyer: Buyer, signed: SignedReceipt, now_ms: int) -> bool:
        """Take the receipt; False when it is not genuine, which ends the session as well."""
        try:
            receipt = verify_receipt(signed, self._node, buyer.terms.node_id, buyer.terms.session_id)
        except WattlineError as error:
            self.objections.append(error.message)
            buyer.end(error.code, error.message)
            return False
        buyer.end("socket_closed", f"the socket ended the session: {receipt.stop_reason or 'no reason given'}")
        if receipt.from_restored_ledger:
            self._tell(
                "the socket's ledger was restored from a copy: its receipt may lack what was delivered and paid since"
            )
            if self.receipt is not None and self.receipt.charged_msat <= receipt.charged_msat:
                return True  # of two, the smaller is due
        self.receipt = receipt
        if receipt.refund_status == "sent" and receipt.refunded_by_payment_msat:
            self._refund = RefundSearch(self._node, receipt.session_id, receipt.refunded_by_payment_msat)
            self._refund_until_ms = now_ms + REFUND_MS
        self._tell(
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

    def fetch_receipt(self, buyer: Buyer, stream: SocketStream, now_ms: int) -> None:
        """Ask for a receipt that did not come by the stream."""
        if self.receipt is None:
            signed = stream.newest_receipt(buyer.terms.session_id)
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
            buyer.charge.known_at(now_ms),
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

    def summary(
        self, buyer: Buyer, objections: list[str], elapsed_ms: int, aggregate: CableAggregate | None
    ) -> Summary:
        """What is said of the session at its end; ``objections``: those to its on-chain payment."""
        found = [*self.objections, *objections]
        return summary_of(buyer, self.receipt, found, self.refund_seen, elapsed_ms, aggregate)

    def _is_refund_decided(self, search: RefundSearch, now_ms: int) -> bool:
        if self.refund_seen is None:
            try:
                if search.found():
                    self.refund_seen = True
            except WattlineError as error:
                self._tell(f"the own node's invoices cannot be read: {error.message}")
        return self.refund_seen is True or now_ms >= self._refund_until_ms


GOOD_ENDS = frozenset({"done", "operator"})
NOTHING = "nothing_delivered"
"""It ended as it was meant to, and bought nothing."""


def percentile(values: Sequence[int], percent: int) -> int | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


@dataclass(frozen=True, slots=True)
class Summary:
    """The outcome of one run; the JSON object of ``wattline cable run --json``."""

    stop_reason: str
    """``done`` and ``operator`` are good ends, of a session that delivered; every other names what went wrong."""
    message: str
    session_id: str = ""
    socket_node_id: str = ""
    outlet_id: str = ""
    seconds: float = 0.0
    """Since the open of the session."""
    energy_uwh_socket: int = 0
    energy_uwh_cable: int = 0
    delivered_ms: int = 0
    price_msat_per_kwh: int = 0
    paid_msat: int = 0
    """Arrived at the socket by the cable's own record."""
    credited_msat: int = 0
    charged_msat: int = 0
    refunded_msat: int = 0
    balance_msat: int = 0
    fees_msat: int = 0
    """Routing fees of the payments that arrived, and the miner's fee of the session's transaction."""
    in_doubt_msat: int = 0
    payments: int = 0
    failed_payments: int = 0
    payment_ms_p50: int | None = None
    payment_ms_p99: int | None = None
    max_prepaid_msat: int = 0
    """The most that was prepaid and in flight at any time."""
    socket_stop_reason: str = ""
    receipt: bool = False
    """A receipt with the socket's signature is on record."""
    refund_status: str = ""
    refund_seen: bool | None = None
    """Whether the refund stands in the own node's invoices; None when there is none to look for."""
    objections: tuple[str, ...] = ()
    """What in the socket's final account contradicts the cable's own."""
    method: str = "keysend"
    """How it was paid in the end: ``keysend`` or ``onchain``."""
    increments: int = 0
    """How many of the payments were versions of the on-chain transaction."""
    txid: str = ""
    """Of the version that the socket broadcasts; empty when nothing was owed on-chain, or when it is not known."""
    fee_sat: int = 0
    """The miner's fee of it."""
    onchain_value_sat: int = 0
    """What it pays to the socket."""
    course: tuple[tuple[float, int, int], ...] = ()
    """Power and balance over time: seconds, mW by the own meter, msat by the socket's last statement."""

    @property
    def ended_well(self) -> bool:
        """It ended as it was meant to, whatever the socket's final account says."""
        return self.stop_reason in GOOD_ENDS

    @property
    def is_good(self) -> bool:
        return self.ended_well and not self.objections

    def achieved(self, why_nothing: str = "") -> Summary:
        """This, or, where it ended well but nothing was delivered, the same with that as its end. A load that draws
        nothing was delivered to all the same: there was time with voltage."""
        if not self.ended_well or self.delivered_ms or self.energy_uwh_cable:
            return self
        why = f": {why_nothing}" if why_nothing else ""
        return replace(self, stop_reason=NOTHING, message=f"{self.message}; nothing was delivered{why}")

    def to_json(self) -> dict[str, object]:
        """All fields, tuples as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def summary_of(
    buyer: Buyer,
    receipt: Receipt | None,
    objections: Sequence[str],
    refund_seen: bool | None,
    elapsed_ms: int,
    aggregate: CableAggregate | None = None,
) -> Summary:
    """The session as it ended: the receipt's figures where there is one, else those of the last statement."""
    account, terms, statement = buyer.account, buyer.terms, buyer.statement
    final = receipt.claim if receipt is not None else statement.claim if statement is not None else None
    durations = list(account.durations_ms)
    socket_stop_reason = receipt.stop_reason if receipt is not None else statement.stop_reason if statement else ""
    value_sat = 0
    if aggregate is not None and aggregate.signed_sat:
        value_sat = receipt.onchain_value_sat if receipt is not None else agreed_sat(aggregate)
    return Summary(
        stop_reason=buyer.stop.reason if buyer.stop else "",
        message=buyer.stop.message if buyer.stop else "",
        session_id=terms.session_id,
        socket_node_id=terms.node_id,
        outlet_id=terms.outlet_id,
        seconds=elapsed_ms / 1000,
        energy_uwh_socket=final.energy_uwh if final else 0,
        energy_uwh_cable=buyer.track.energy_uwh,
        delivered_ms=final.delivered_ms if final else 0,
        price_msat_per_kwh=terms.tariff.energy_msat_per_kwh,
        paid_msat=account.settled_msat,
        credited_msat=final.credited_msat if final else 0,
        charged_msat=final.charged_msat if final else 0,
        refunded_msat=final.refunded_msat if final else 0,
        balance_msat=final.balance_msat if final else 0,
        fees_msat=account.fees_msat,
        in_doubt_msat=account.in_flight_msat,
        payments=account.payments,
        failed_payments=account.failed_payments,
        payment_ms_p50=percentile(durations, 50),
        payment_ms_p99=percentile(durations, 99),
        max_prepaid_msat=buyer.max_prepaid_seen_msat,
        socket_stop_reason=socket_stop_reason,
        receipt=receipt is not None,
        refund_status=receipt.refund_status if receipt is not None else "",
        refund_seen=refund_seen,
        objections=tuple(objections),
        method="onchain" if buyer.is_paying_onchain else "keysend",
        increments=account.increments,
        txid=receipt.onchain_txid if receipt is not None else "",
        fee_sat=aggregate.fee_sat if value_sat and aggregate is not None else 0,
        onchain_value_sat=value_sat,
    )


class StopWish:
    """The first wish stands. Plain attributes only, so that a signal handler may set it."""

    def __init__(self, for_ms: int | None = None) -> None:
        """``for_ms``: how long the run shall last, counted from :meth:`begin`; None: until stopped."""
        self.reason = ""
        self.message = ""
        self._for_ms = for_ms
        self._until_ms: int | None = None

    def begin(self, now_ms: int) -> None:
        """The time begins to run."""
        if self._for_ms is not None and self._until_ms is None:
            self._until_ms = now_ms + self._for_ms

    def want(self, reason: str, message: str) -> None:
        if not self.reason:
            self.message = message
            self.reason = reason

    def is_time_up(self, now_ms: int) -> bool:
        return self._until_ms is not None and now_ms >= self._until_ms

    def left_ms(self, now_ms: int) -> int | None:
        """How long the run will last at the most; None when that is open."""
        if self._until_ms is not None:
            return max(0, self._until_ms - now_ms)
        return self._for_ms
