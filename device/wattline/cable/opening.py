"""Before a session: what is needed around the cable, and the socket found, checked and agreed upon."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from wattline.cable.memory import OutgoingRecord, SessionMemory
from wattline.cable.offer import METHODS, OpenedSocket, check_method, check_prices, choose_outlet, open_socket
from wattline.cable.purse import OrderPayer
from wattline.cable.settings import CableSettings
from wattline.ledger import CableSession
from wattline.lightning.node import ChannelBalance, Journal, NodeInfo, Signer
from wattline.lightning.signing import sign
from wattline.meter import Meter
from wattline.v1 import charging_pb2 as pb


class CableNode(Signer, Journal, Protocol):
    """The cable's own Lightning node, apart from its paying side."""

    def check_version(self) -> NodeInfo:
        """Raises StopError ``node_too_old``, NodeUnavailable, NodeRefused."""

    def channels(self) -> Sequence[ChannelBalance]: ...


MeterOpener = Callable[[int | None], Meter]
"""Opens the meter; its argument is the outlet's rated power in mW, None when unknown. Raises MeterError."""


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
    now: Callable[[], float]
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A socket whose offer was checked, and the session to open or to resume there. The caller closes the channel."""

    opened: OpenedSocket
    remembered: CableSession
    opening: pb.Open
    node: NodeInfo


def agree(settings: CableSettings, equipment: Equipment) -> Agreement:
    """Find the socket, check its offer against the limits and choose an outlet; remembers a new token durably.
    Raises SocketUnreachable, NotWattline, OfferError, NodeUnavailable, NodeRefused, StopError ``node_too_old``."""
    node = equipment.node.check_version()
    address = settings.socket.parsed
    opened = open_socket(address, equipment.node, node.network, equipment.now)
    try:
        offer = opened.offer
        check_method(offer, settings.payment.method)
        check_prices(offer.tariff, settings.limits)
        outlet = choose_outlet(offer, settings.socket.outlet_id)
        remembered = CableSession(
            token=secrets.token_bytes(32).hex(),
            address=address.target,
            node_id=offer.node_id,
            outlet_id=outlet.outlet_id,
            tariff=offer.tariff,
            rated_power_mw=outlet.max_power_mw,
            created_at=int(equipment.now()),
        )
        opening = _opening(settings, equipment, remembered, node)
        equipment.memory.save(remembered)
    except BaseException:
        opened.channel.close()
        raise
    return Agreement(opened, remembered, opening, node)


def agree_again(settings: CableSettings, equipment: Equipment, remembered: CableSession) -> Agreement:
    """The same for a session that is remembered: the offer only has to come from the same node, the prices are those
    that were agreed upon. Raises as :func:`agree`; OfferError ``socket_not_pinned`` when another node answers."""
    node = equipment.node.check_version()
    address = settings.socket.parsed
    pinned = type(address)(address.host, address.port, remembered.node_id)
    opened = open_socket(pinned, equipment.node, node.network, equipment.now)
    try:
        opening = _opening(settings, equipment, remembered, node)
    except BaseException:
        opened.channel.close()
        raise
    return Agreement(opened, remembered, opening, node)


def _opening(settings: CableSettings, equipment: Equipment, remembered: CableSession, node: NodeInfo) -> pb.Open:
    opening = pb.Open(
        token=bytes.fromhex(remembered.token),
        outlet_id=remembered.outlet_id,
        tariff_id=remembered.tariff.tariff_id,
        method=METHODS[settings.payment.method],
        cable_node_id=node.node_id,
    )
    if settings.node.identify:
        opening.signature = sign(equipment.node, "open", opening.SerializeToString(deterministic=True))
    return opening
