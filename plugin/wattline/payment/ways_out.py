"""How a payment would leave the wallet: what ``wattline cable check`` shows before any money moves."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.lightning.node import ChannelBalance, NoRoute, Route, Wallet
from wattline.payment.routes import FEE_PROBE_MSAT, FINAL_CLTV, least_msat


@dataclass(frozen=True, slots=True)
class WaysOut:
    """The ways from a wallet to one destination, for payments of one size."""

    destination: str
    amount_msat: int
    channels: tuple[ChannelBalance, ...]
    """The usable ones, those straight to the destination first, then by spendable amount."""
    route: Route | None
    """The way that one payment would take now; None when no single route carries it."""
    no_route_reason: str
    """For people; empty when there is a route."""
    least_msat: int
    """The smallest payment that has a way: more than ``amount_msat`` where a channel carries no less."""

    @property
    def direct(self) -> bool:
        """Whether a usable channel leads straight to the destination (then payments cost no routing fee)."""
        return any(channel.peer_id == self.destination for channel in self.channels)

    @property
    def spendable_msat(self) -> int:
        """The most that one payment can carry out of the wallet: a payment has one part, so one channel counts."""
        return max((channel.spendable_msat for channel in self.channels), default=0)

    @property
    def receivable_msat(self) -> int:
        """The most that can come back in one payment; 0 means that no refund can arrive yet."""
        return max((channel.receivable_msat for channel in self.channels), default=0)

    @property
    def fee_msat(self) -> int | None:
        """The routing fee of one payment; None without a route."""
        return None if self.route is None else self.route.fee_msat


def ways_out(wallet: Wallet, destination: str, amount_msat: int) -> WaysOut:
    """The ways for a payment of ``amount_msat`` to ``destination``, whatever its fee. Raises NodeUnavailable,
    NodeRefused."""
    channels = sorted(wallet.channels(), key=lambda channel: (channel.peer_id != destination, -channel.spendable_msat))
    route: Route | None = None
    reason, larger_msat = "", None
    try:
        route = wallet.find_route(destination, amount_msat, FEE_PROBE_MSAT, FINAL_CLTV)
    except NoRoute as error:
        reason = error.message
        larger_msat = least_msat(wallet, destination, amount_msat) if channels else None
    return WaysOut(destination, amount_msat, tuple(channels), route, reason, larger_msat or amount_msat)
