"""One kept route per destination: a stream of payments to the same node need not search for its way each time.

How a payment would leave the wallet: what ``wattline cable check`` shows before any money moves.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from wattline.core.errors import RetryError
from wattline.core.lightning.node import ChannelBalance, NoRoute, Route, Wallet

FINAL_CLTV = 45
"""Blocks for the destination: 42, the highest minimum in use (plugins/keysend.c), and 3 that may be found meanwhile."""
BLOCK_CHECK_S = 5.0
"""How often the block height is asked for while payments flow."""
FEE_PROBE_MSAT = 100_000_000
"""The limit with which a route is looked for just to tell its fee."""
DOUBLINGS = 10
"""How far above an amount without a route the smallest one with a route is looked for."""
LOOK_AGAIN_S = 5.0
"""How often that is done for one destination."""


class FeeTooHigh(RetryError):
    """There is a way, but its fee is above the order's limit; a larger payment bears it more easily."""

    def __init__(self, fee_msat: int, limit_msat: int) -> None:
        super().__init__("fee_too_high", f"the routing fee is {fee_msat} msat, the limit {limit_msat} msat")
        self.fee_msat = fee_msat
        self.limit_msat = limit_msat


class BelowMinimum(RetryError):
    """No route for so little: a channel on the way carries nothing below its ``htlc_minimum_msat`` (BOLT #7). A larger
    payment passes."""

    def __init__(self, amount_msat: int, least_msat: int) -> None:
        super().__init__(
            "channel_minimum", f"a channel on the way carries no {amount_msat} msat, but {least_msat} msat and more"
        )
        self.least_msat = least_msat


def least_msat(wallet: Wallet, destination: str, amount_msat: int) -> int | None:
    """For an amount without a route: about the smallest larger one that has one, whatever its fee. None when the amount
    is too large, not too small, or nothing gets through. Raises NodeUnavailable, NodeRefused."""

    def passes(tried_msat: int) -> bool:
        try:
            wallet.find_route(destination, tried_msat, FEE_PROBE_MSAT, FINAL_CLTV)
        except NoRoute:
            return False
        return True

    if amount_msat > 1 and passes(amount_msat // 2):
        return None
    low_msat, high_msat = amount_msat, amount_msat * 2
    for _ in range(DOUBLINGS):
        if passes(high_msat):
            break
        low_msat, high_msat = high_msat, high_msat * 2
    else:
        return None
    while high_msat - low_msat > 1:
        middle_msat = (low_msat + high_msat) // 2
        low_msat, high_msat = (low_msat, middle_msat) if passes(middle_msat) else (middle_msat, high_msat)
    return high_msat


def shrunk(route: Route, amount_msat: int) -> Route:
    """``route`` carrying ``amount_msat``, at most its own amount. Every hop carries as much less, so every node still
    gets the fee of the larger amount, which covers the smaller one's. Raises ValueError for a larger amount."""
    less_msat = route.amount_msat - amount_msat
    if not 0 <= less_msat < route.amount_msat:
        raise ValueError(f"a route for {route.amount_msat} msat cannot be shrunk to {amount_msat} msat")
    hops = tuple(
        replace(
            hop,
            amount_in_msat=hop.amount_in_msat - less_msat,
            amount_out_msat=hop.amount_out_msat - less_msat,
        )
        for hop in route.hops
    )
    return Route(route.destination, amount_msat, hops)


class KeptRoutes:
    """The routes of one wallet. Thread-safe; one search per destination at a time.

    A route is renewed when a payment over it failed (``drop``), when a block was found, when an amount outgrows it or
    is smaller than any that had one, and when its fee, that of the amount it was found for, is too much for a smaller
    one.
    """

    def __init__(self, wallet: Wallet, clock: Callable[[], float] = time.monotonic) -> None:
        self._wallet = wallet
        self._clock = clock
        self._lock = threading.Lock()
        self._searching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._kept: dict[str, Route] = {}
        self._least: dict[str, int] = {}
        """The smallest amount for which one was found since: a channel may carry nothing below its minimum."""
        self._looked_at: dict[str, float] = {}
        """When the smallest amount was looked for last, by destination."""
        self._height: int | None = None
        self._height_at = -math.inf

    def route(self, destination: str, amount_msat: int, maxfee_msat: int) -> Route:
        """A route for exactly ``amount_msat`` whose fee is at most ``maxfee_msat``. Raises NoRoute, FeeTooHigh,
        BelowMinimum, NodeUnavailable, NodeRefused."""
        with self._lock:
            searching = self._searching[destination]
        with searching:
            self._notice_blocks()
            with self._lock:
                kept = self._kept.get(destination)
                least = self._least.get(destination, amount_msat)
            fits = kept is not None and kept.amount_msat >= amount_msat and kept.fee_msat <= maxfee_msat
            if kept is not None and fits and amount_msat >= least:
                return shrunk(kept, amount_msat)
            found = self._find(destination, amount_msat, maxfee_msat)
            with self._lock:
                self._least[destination] = min(amount_msat, self._least.get(destination, amount_msat))
                if not fits:
                    self._kept[destination] = found
            return found

    def drop(self, destination: str) -> None:
        """The kept route did not carry a payment: look for another next time."""
        with self._lock:
            self._kept.pop(destination, None)
            self._least.pop(destination, None)

    def _find(self, destination: str, amount_msat: int, maxfee_msat: int) -> Route:
        try:
            route = self._wallet.find_route(destination, amount_msat, maxfee_msat, FINAL_CLTV)
        except NoRoute as no_route:
            try:
                dearer = self._wallet.find_route(destination, amount_msat, FEE_PROBE_MSAT, FINAL_CLTV)
            except NoRoute:
                self._look_for_larger(destination, amount_msat)
                raise no_route from None
            if dearer.fee_msat <= maxfee_msat:
                return dearer  # the way has opened between the two questions
            raise FeeTooHigh(dearer.fee_msat, maxfee_msat) from no_route
        if route.fee_msat > maxfee_msat:
            raise FeeTooHigh(route.fee_msat, maxfee_msat)
        if route.amount_msat != amount_msat or route.destination != destination:
            raise NoRoute("no_route", f"the node's route is not one of {amount_msat} msat to {destination}")
        return route

    def _look_for_larger(self, destination: str, amount_msat: int) -> None:
        """Raises BelowMinimum when a larger payment has a route."""
        now = self._clock()
        if now - self._looked_at.get(destination, -math.inf) < LOOK_AGAIN_S:
            return
        self._looked_at[destination] = now
        least = least_msat(self._wallet, destination, amount_msat)
        if least is not None:
            del self._looked_at[destination]
            raise BelowMinimum(amount_msat, least)

    def _notice_blocks(self) -> None:
        with self._lock:
            if self._clock() - self._height_at <= BLOCK_CHECK_S:
                return
            self._height_at = self._clock()
        height = self._wallet.info().blockheight
        with self._lock:
            if height != self._height:
                self._height = height
                self._kept.clear()
                self._least.clear()


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
