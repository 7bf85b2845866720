"""Before a session: what is needed around the cable, and the socket found, checked and agreed upon."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from wattline.cable.aggregate_end import check_honest
from wattline.cable.beginning import check_keysend
from wattline.cable.lateness import lost_s
from wattline.cable.memory import AggregateMemory, AllSent, OutgoingRecord, SentRecord, SessionMemory
from wattline.cable.method import RoutingNode, check_onchain, choose_method
from wattline.cable.offer import (
    METHODS,
    OpenedSocket,
    check_keeps,
    check_method,
    check_prices,
    choose_outlet,
    open_socket,
)
from wattline.cable.purse import MethodName, OrderPayer
from wattline.cable.recollection import SentPayments
from wattline.cable.settings import CableSettings
from wattline.clock import WallWatch
from wattline.ledger import CableSession
from wattline.lightning.node import Journal, NodeInfo, Signer
from wattline.lightning.onchain import PayingFunds
from wattline.lightning.signing import sign
from wattline.meter import Meter
from wattline.v1 import charging_pb2 as pb


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
