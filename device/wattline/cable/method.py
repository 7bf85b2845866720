"""How a session is to be paid: chosen before it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wattline.cable.beginning import check_onchain_begins
from wattline.cable.funding import Funding, Scope, fund
from wattline.cable.offer import Offer, OfferError
from wattline.cable.onchain_rules import OnchainRefused
from wattline.cable.purse import MethodName
from wattline.cable.settings import CableSettings
from wattline.lightning.node import ChannelBalance, NoRoute, Route
from wattline.lightning.onchain import PayingFunds
from wattline.payment.routes import FEE_PROBE_MSAT, FINAL_CLTV, least_msat


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

    Raises OfferError ``method_not_supported``, OnchainRefused (:func:`wattline.cable.funding.fund`, and
    :func:`wattline.cable.beginning.check_onchain_begins`), NodeUnavailable, NodeRefused."""
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
