"""Before a session: what the cable works with, the ledger made whole, and a socket found, checked and agreed upon.

How a session is paid is chosen before it is opened.

The ledger may be an older copy of itself, lightningd's record never is. So what the node has sent since the copy was
made is read back before anything is paid: numbers, sums and the budget of the day go on from what left the wallet.
Whose a payment is, its label says. One of a session that the ledger knows is ours. Of sessions begun after the copy it
knows nothing: theirs count as ours only when it was seen to be a copy, because other cables may pay from the same node.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wattline.cable.link.transport import METHOD_NUMBERS, OpenedSocket, open_socket
from wattline.cable.pay.keysend import PURPOSE
from wattline.cable.pay.settlement import check_honest
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.events import MethodName
from wattline.cable.policy.offer import (
    Offer,
    OfferError,
    check_keeps,
    check_keysend,
    check_method,
    check_onchain_begins,
    check_prices,
    choose_outlet,
)
from wattline.cable.policy.onchain import ChosenInputs, OnchainLimits, Scope, fund
from wattline.cable.policy.reconciliation import (
    lost_s,
)
from wattline.cable.settings import CableSettings
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.clock import WallWatch
from wattline.core.errors import RetryError
from wattline.core.ledger.cable import CableSession
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.outgoing import AlreadyPaying, Intent, Outgoing
from wattline.core.lightning.node import CableNode, NodeInfo, NoRoute, SendStatus, sign
from wattline.core.lightning.notes import LabelledPayment
from wattline.core.lightning.onchain import PayingFunds
from wattline.core.lightning.routes import FEE_PROBE_MSAT, FINAL_CLTV, least_msat
from wattline.core.payer import Payer
from wattline.core.record import Record, RecordError, parse_record
from wattline.device.meters.reading import Meter, Reading
from wattline.v1 import charging_pb2 as pb


def smallest_payment_msat(settings: CableSettings, offer: Offer) -> int:
    """The smallest payment over Lightning that both sides wish for."""
    payment = settings.payment
    return max(payment.min_increment_msat, min(offer.min_increment_msat, payment.max_increment_msat))


def largest_payment_msat(settings: CableSettings) -> int:
    """The largest single payment over Lightning that the configuration allows."""
    return min(settings.payment.max_increment_msat, settings.limits.max_prepaid_msat)


def choose_method(settings: CableSettings, node: CableNode, offer: Offer) -> MethodName:
    """The configured method; with ``auto`` over Lightning when a channel is usable and the smallest payment has a way,
    else on-chain. Raises NodeUnavailable, NodeRefused."""
    if settings.payment.method != "auto":
        return settings.payment.method
    if "onchain" not in offer.methods or offer.onchain is None:
        return "keysend"
    if "keysend" not in offer.methods or not node.channels():
        return "onchain"
    amount_msat = smallest_payment_msat(settings, offer)
    try:
        node.find_route(offer.node_id, amount_msat, FEE_PROBE_MSAT, FINAL_CLTV)
    except NoRoute:
        larger_msat = least_msat(node, offer.node_id, amount_msat)
        return "keysend" if larger_msat is not None and larger_msat <= largest_payment_msat(settings) else "onchain"
    return "keysend"


def check_onchain(limits: OnchainLimits, funds: PayingFunds, offer: Offer, height: int, scope: Scope) -> ChosenInputs:
    """What a session on-chain within ``scope`` would be paid from, as far as it can be known before. ``height`` is the
    chain's.

    Raises OfferError ``method_not_supported``, OnchainRefused (:func:`wattline.cable.policy.onchain.fund`, and
    :func:`wattline.cable.policy.offer.check_onchain_begins`), NodeUnavailable, NodeRefused."""
    if offer.onchain is None:
        raise OfferError("method_not_supported", "the socket names no rules for on-chain payments")
    chosen = fund(funds.outputs(), height, funds.feerate_per_kw(), offer.onchain, limits, scope)
    check_onchain_begins(chosen, offer.onchain, limits, scope)
    return chosen


@dataclass(frozen=True, slots=True)
class Progress:
    """How a session stands, for whoever shows it: to be read at once, what is in it goes on changing."""

    buyer: Buyer
    settings: CableSettings
    reading: Reading | None
    """The newest of the own meter."""
    is_connected: bool
    elapsed_ms: int
    """Since the open of the session."""


class Listener(Protocol):
    """A live view. Called from the deciding thread only; must not block."""

    def event(self, text: str) -> None:
        """Something worth a line happened."""

    def show(self, progress: Progress) -> None:
        """The present state, several times a second."""


class LineLimit:
    """Passes on at most LINES lines at once and one more every LINE_MS; how many it left out, the next one says. For
    lines that somebody else causes, who may do so without end."""

    LINES = 30
    LINE_MS = 2_000

    def __init__(self, tell: Callable[[str], None], clock_ms: Callable[[], int]) -> None:
        self._tell = tell
        self._clock_ms = clock_ms
        self._full_ms = clock_ms()
        """When all LINES may be said again."""
        self._left_out = 0

    def __call__(self, text: str) -> None:
        now_ms = self._clock_ms()
        full_ms = max(self._full_ms, now_ms) + self.LINE_MS
        if full_ms - now_ms > self.LINES * self.LINE_MS:
            self._left_out += 1
            return
        left_out, self._left_out, self._full_ms = self._left_out, 0, full_ms
        self._tell(f"{text} ({left_out} lines left out before)" if left_out else text)


MOST_MSAT = 2**63 - 1
"""What the ledger can hold."""

SentSince = Callable[[int], Sequence[LabelledPayment]]
"""What the own node has sent from a Unix second on, by its own record. Raises NodeUnavailable, NodeRefused."""
MeterOpener = Callable[[int | None], Meter]
"""Opens the meter; its argument is the outlet's rated power in mW, None when unknown. Raises MeterError."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a cable works with. Clocks are here so that nothing else asks for the time."""

    node: CableNode
    payer: Payer
    ledger: Ledger
    """The cable's own."""
    funds: PayingFunds
    """The node's on-chain wallet."""
    open_meter: MeterOpener
    clock_ms: Callable[[], int]
    """Monotonic."""
    sent_since: SentSince | None = None
    """None: that the ledger is an older copy is not noticed."""
    wall: WallWatch = field(default_factory=WallWatch)
    """For dates alone: no duration comes from it."""

    def now(self) -> float:
        """Unix seconds, for records."""
        return self.wall.clock.wall()

    def session_sent_msat(self, session_id: str) -> int:
        """What left or may leave the wallet for a session, over Lightning and on-chain together."""
        return self.ledger.outgoing.sent_msat(session_id) + self.ledger.cable_aggregates.sent_msat(session_id)

    def day_sent_msat(self) -> int:
        """The same for all sessions, within the last 24 hours."""
        now = self.wall.now()
        outgoing, aggregates = self.ledger.outgoing, self.ledger.cable_aggregates
        return outgoing.sent_msat(day_before=now) + aggregates.sent_msat(day_before=now)


@dataclass(frozen=True, slots=True)
class Agreement:
    """A socket whose offer was checked, and the session to open or to resume there. The caller closes the channel."""

    opened: OpenedSocket
    remembered: CableSession
    opening: pb.Open
    node: NodeInfo
    method: MethodName = "keysend"
    """How the session begins to be paid."""


def agree(settings: CableSettings, equipment: Equipment, for_ms: int | None = None) -> Agreement:
    """Find the socket, check its offer against the limits and choose an outlet; remembers a new token durably.
    ``for_ms``: how long the session will last at the most, None when that is open; on-chain it has to be worth the fee.
    Raises SocketUnreachable, NotWattline, OfferError, OnchainRefused, NodeUnavailable, NodeRefused, StopError
    ``node_too_old``."""
    node = equipment.node.check_version()
    address = settings.socket.parsed
    opened = open_socket(address, equipment.node, node.network)
    try:
        offer = opened.offer
        check_honest(equipment.ledger.cable_aggregates, offer.node_id)
        check_method(offer, settings.payment.method)
        check_prices(offer.tariff, settings.limits.prices)
        check_keeps(offer, settings.limits.prices)
        outlet = choose_outlet(offer, settings.socket.outlet_id)
        method = choose_method(settings, equipment.node, offer)
        if method == "keysend":
            check_keysend(settings.limits.caps, settings.payment.pace, offer, outlet.max_power_mw)
        else:
            scope = Scope.within(
                offer.tariff,
                outlet.max_power_mw,
                settings.limits.max_session_msat,
                settings.limits.max_day_msat - equipment.day_sent_msat(),
                for_ms,
            )
            check_onchain(settings.onchain.limits, equipment.funds, offer, node.blockheight, scope)
        remembered = CableSession(
            token=secrets.token_bytes(32).hex(),
            address=address.target,
            node_id=offer.node_id,
            outlet_id=outlet.outlet_id,
            tariff=offer.tariff,
            rated_power_mw=outlet.max_power_mw,
            created_at=int(equipment.now()),
            min_refund_msat=min(offer.min_refund_msat, MOST_MSAT),
            cable_lost_s=lost_s(offer.cable_lost_s),
        )
        opening = _opening(settings, equipment, remembered, node, method)
        equipment.ledger.cable_sessions.save(remembered)
    except BaseException:
        opened.channel.close()
        raise
    return Agreement(opened, remembered, opening, node, method)


def agree_again(settings: CableSettings, equipment: Equipment, remembered: CableSession) -> Agreement:
    """The same for a session that is remembered: the offer only has to come from the same node, the prices are those
    that were agreed upon. Raises as :func:`agree`; OfferError ``socket_not_pinned`` when another node answers."""
    node = equipment.node.check_version()
    address = settings.socket.parsed
    pinned = type(address)(address.host, address.port, remembered.node_id)
    opened = open_socket(pinned, equipment.node, node.network)
    try:
        method = choose_method(settings, equipment.node, opened.offer)
        opening = _opening(settings, equipment, remembered, node, method)
    except BaseException:
        opened.channel.close()
        raise
    return Agreement(opened, remembered, opening, node, method)


def _opening(
    settings: CableSettings, equipment: Equipment, remembered: CableSession, node: NodeInfo, method: MethodName
) -> pb.Open:
    opening = pb.Open(
        token=bytes.fromhex(remembered.token),
        outlet_id=remembered.outlet_id,
        tariff_id=remembered.tariff.tariff_id,
        method=METHOD_NUMBERS[method],
        cable_node_id=node.node_id,
        socket_node_id=remembered.node_id,
    )
    if settings.node.identify or settings.payment.method != "keysend":
        opening.signature = sign(equipment.node, "open", opening.SerializeToString(deterministic=True))
    return opening


def held_msat(outgoing: Outgoing, session_id: str | None) -> int:
    """What payments of other sessions than this one would bring to their sockets, msat, of which the own node does not
    know yet what becomes of them: whoever holds one (BOLT #2 gives him hours) may still take it."""
    return sum(
        intent.amount_msat
        for intent in outgoing.pending()
        if intent.purpose == PURPOSE and intent.session_id != session_id
    )


def without_held(settings: CableSettings, held_msat: int) -> CableSettings:
    """The settings of a session beside which so much is still on its way: the caps on what is prepaid hold for all
    sessions together."""
    limits, onchain = settings.limits, settings.onchain
    prepaid_msat = max(0, limits.max_prepaid_msat - held_msat)
    prepaid_sat = max(0, onchain.max_prepaid_sat - -(-held_msat // MSAT_PER_SAT))
    return settings.model_copy(
        update={
            "limits": limits.model_copy(update={"max_prepaid_msat": prepaid_msat}),
            "onchain": onchain.model_copy(update={"max_prepaid_sat": prepaid_sat}),
        }
    )


CLOCK_MARGIN_S = 600
"""So far the clock may have been set back between the ledger's row of a payment and the node's."""


class PaymentUnknown(RetryError):
    """The node is making a payment that the ledger does not know: what it takes is not known yet. Code
    ``payment_unknown``."""


def recollect(
    sent_since: SentSince,
    ledger: Ledger,
    unfinished: CableSession | None,
    day_begins: int,
) -> int:
    """Write down what is missing; how many payments that were. ``day_begins``: Unix seconds; of what is older only the
    ``unfinished`` session's counts. May be done again. Raises PaymentUnknown, NodeUnavailable, NodeRefused, and the
    ledger's errors."""
    outgoing = ledger.outgoing
    newest_at = outgoing.newest_at(PURPOSE)
    if newest_at is None:
        if unfinished is None:
            return 0  # it has never bought anything
        newest_at = unfinished.created_at
    since = newest_at - CLOCK_MARGIN_S
    rows = sent_since(since if unfinished is not None else max(since, day_begins))
    missing = [
        (row, record)
        for row in rows
        if row.sent.status is not SendStatus.FAILED  # that money is back
        and (record := _increment(row.label)) is not None
        and outgoing.intent(row.sent.payment_hash) is None
    ]
    sessions = {
        session_id: ledger.cable_sessions.of(session_id) for session_id in {record.session_id for _, record in missing}
    }
    if not any(sessions.values()):
        return 0
    # What is still under way comes last: all else is written down by then.
    missing.sort(key=lambda found: found[0].sent.status is SendStatus.PENDING)
    for row, record in missing:
        _adopt(row, record, outgoing, sessions[record.session_id])
    return len(missing)


def _increment(label: str) -> Record | None:
    """What a payment was for; None when it was for no session, or is a socket's refund."""
    try:
        record = parse_record(label)
    except RecordError:
        return None
    return record if record.sequence > 0 else None


def _adopt(row: LabelledPayment, record: Record, outgoing: Outgoing, session: CableSession | None) -> None:
    sent = row.sent
    destination = row.destination or (session.node_id if session is not None else "")
    if sent.status is SendStatus.PENDING or sent.preimage is None or not destination:
        raise PaymentUnknown(
            "payment_unknown", f"payment {sent.payment_hash} ({row.label}) is {sent.status}, and not in the ledger"
        )
    amount_msat = sent.amount_msat if sent.amount_msat is not None else sent.amount_sent_msat
    intent = Intent(
        payment_hash=sent.payment_hash,
        preimage=sent.preimage,
        purpose=PURPOSE,
        session_id=record.session_id,
        sequence=record.sequence,
        destination=destination,
        amount_msat=amount_msat,
        maxfee_msat=max(0, sent.amount_sent_msat - amount_msat),
        record=row.label,
        label=row.label,
        created_at=row.created_at,
    )
    try:
        outgoing.add(intent)
    except AlreadyPaying as error:
        raise PaymentUnknown(
            "payment_unknown", f"{row.label} was paid by {sent.payment_hash}, and another one for it is in doubt"
        ) from error
    # Should the process die in between, it is one in doubt, and the payer asks the node for it.
    outgoing.complete(intent.payment_hash, sent.amount_sent_msat, row.created_at)
