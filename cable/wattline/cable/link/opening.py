"""Before a session: what is needed around the cable, and the socket found, checked and agreed upon.

How a session is to be paid: chosen before it is opened.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wattline.cable.link.offer import (
    METHODS,
    Offer,
    OfferError,
    OpenedSocket,
    check_keeps,
    check_method,
    check_prices,
    choose_outlet,
    open_socket,
)
from wattline.cable.memory import AggregateMemory, AllSent, OutgoingRecord, SessionMemory
from wattline.cable.pay.keysend import OrderPayer
from wattline.cable.pay.onchain_end import check_honest
from wattline.cable.policy.account import SentRecord
from wattline.cable.policy.events import MethodName
from wattline.cable.policy.feasible import check_keysend, check_onchain_begins
from wattline.cable.policy.funding import Funding, Scope, fund
from wattline.cable.policy.onchain_limits import OnchainRefused
from wattline.cable.policy.reconciliation import lost_s
from wattline.cable.recollection import SentPayments
from wattline.cable.settings import CableSettings
from wattline.core.clock import WallWatch
from wattline.core.ledger.cable import CableSession
from wattline.core.lightning.node import ChannelBalance, Journal, NodeInfo, NoRoute, Route, Signer
from wattline.core.lightning.onchain import PayingFunds
from wattline.core.lightning.routes import FEE_PROBE_MSAT, FINAL_CLTV, least_msat
from wattline.core.lightning.signing import sign
from wattline.device.meters.reading import Meter
from wattline.v1 import charging_pb2 as pb


class RoutingNode(Protocol):
    """The cable's node, as far as its ways out are looked at."""

    def channels(self) -> Sequence[ChannelBalance]: ...

    def find_route(self, destination: str, amount_msat: int, maxfee_msat: int, final_cltv: int) -> Route:
        """Raises NoRoute, NodeUnavailable."""


def smallest_payment_msat(settings: CableSettings, offer: Offer) -> int:
    """The smallest payment over Lightning that both sides wish for."""
    payment = settings.payment
    return max(payment.min_increment_msat, min(offer.min_increment_msat, payment.max_increment_msat))


def largest_payment_msat(settings: CableSettings) -> int:
    """The largest single payment over Lightning that the configuration allows."""
    return min(settings.payment.max_increment_msat, settings.limits.max_prepaid_msat)


def choose_method(settings: CableSettings, node: RoutingNode, offer: Offer) -> MethodName:
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


def check_onchain(
    settings: CableSettings,
    funds: PayingFunds | None,
    offer: Offer,
    rated_power_mw: int,
    height: int,
    day_sent_msat: int,
    for_ms: int | None,
) -> Funding:
    """What a session on-chain would be paid from, as far as it can be known before. ``height`` is the chain's,
    ``day_sent_msat`` what left the wallet within a day, ``for_ms`` how long the session will last at the most.

    Raises OfferError ``method_not_supported``, OnchainRefused (:func:`wattline.cable.policy.funding.fund`, and
    :func:`wattline.cable.policy.feasible.check_onchain_begins`), NodeUnavailable, NodeRefused."""
    if offer.onchain is None:
        raise OfferError("method_not_supported", "the socket names no rules for on-chain payments")
    if funds is None:
        raise OnchainRefused("no_onchain_funds", "this cable has no on-chain wallet")
    limits = settings.limits
    day_msat = limits.max_day_msat - day_sent_msat
    scope = Scope.within(offer.tariff, rated_power_mw, limits.max_session_msat, day_msat, for_ms)
    chosen = fund(funds.outputs(), height, funds.feerate_per_kw(), offer.onchain, settings.onchain, scope)
    check_onchain_begins(chosen, offer.onchain, settings.onchain, scope)
    return chosen


class CableNode(Signer, Journal, RoutingNode, Protocol):
    """The cable's own Lightning node, apart from its paying side."""

    def check_version(self) -> NodeInfo:
        """Raises StopError ``node_too_old``, NodeUnavailable, NodeRefused."""


MOST_MSAT = 2**63 - 1
"""What the ledger can hold."""

MeterOpener = Callable[[int | None], Meter]
"""Opens the meter; its argument is the outlet's rated power in mW, None when unknown. Raises MeterError."""


@dataclass(frozen=True, slots=True)
class OnchainEquipment:
    """What it takes to pay on-chain."""

    funds: PayingFunds
    memory: AggregateMemory


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a cable works with. Clocks are here so that nothing else asks for the time."""

    node: CableNode
    payer: OrderPayer
    outgoing: OutgoingRecord
    memory: SessionMemory
    open_meter: MeterOpener
    clock_ms: Callable[[], int]
    """Monotonic."""
    onchain: OnchainEquipment | None = None
    """None: only Lightning is used."""
    sent_payments: SentPayments | None = None
    """The node's own record. None: that the ledger is an older copy is not noticed."""
    wall: WallWatch = field(default_factory=WallWatch)
    """For dates alone: no duration comes from it."""

    def now(self) -> float:
        """Unix seconds, for records."""
        return self.wall.clock.wall()

    @property
    def sent(self) -> SentRecord:
        """All that left or may leave the wallet."""
        return self.outgoing if self.onchain is None else AllSent(self.outgoing, self.onchain.memory)


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
        if equipment.onchain is not None:
            check_honest(equipment.onchain.memory, offer.node_id)
        check_method(offer, settings.payment.method)
        check_prices(offer.tariff, settings.limits)
        check_keeps(offer, settings.limits)
        outlet = choose_outlet(offer, settings.socket.outlet_id)
        method = choose_method(settings, equipment.node, offer)
        if method == "keysend":
            check_keysend(settings, offer, outlet.max_power_mw)
        else:
            day_msat = equipment.sent.sent_msat(since=equipment.wall.day_begins_s())
            funds = equipment.onchain.funds if equipment.onchain is not None else None
            check_onchain(settings, funds, offer, outlet.max_power_mw, node.blockheight, day_msat, for_ms)
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
        equipment.memory.save(remembered)
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
        method=METHODS[method],
        cable_node_id=node.node_id,
        socket_node_id=remembered.node_id,
    )
    if settings.node.identify or settings.payment.method != "keysend":
        opening.signature = sign(equipment.node, "open", opening.SerializeToString(deterministic=True))
    return opening
