"""One kept route per destination: a stream of payments to the same node need not search for its way each time."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from wattline.errors import RetryError
from wattline.lightning.node import NoRoute, Route, Wallet

FINAL_CLTV = 45
"""Blocks for the destination: 42, the highest minimum in use (plugins/keysend.c), and 3 that may be found meanwhile."""
BLOCK_CHECK_S = 5.0
"""How often the block height is asked for while payments flow."""
FEE_PROBE_MSAT = 100_000_000
"""The limit with which a route is looked for just to tell its fee."""


class FeeTooHigh(RetryError):
    """There is a way, but its fee is above the order's limit; a larger payment bears it more easily."""

    def __init__(self, fee_msat: int, limit_msat: int) -> None:
        super().__init__("fee_too_high", f"the routing fee is {fee_msat} msat, the limit {limit_msat} msat")
        self.fee_msat = fee_msat
        self.limit_msat = limit_msat


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

    A route is renewed when a payment over it failed (``drop``), when a block was found, when an amount outgrows it, and
    when its fee, that of the amount it was found for, is too much for a smaller one.
    """

    def __init__(self, wallet: Wallet, clock: Callable[[], float] = time.monotonic) -> None:
        self._wallet = wallet
        self._clock = clock
        self._lock = threading.Lock()
        self._searching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._kept: dict[str, Route] = {}
        self._height: int | None = None
        self._height_at = -math.inf

    def route(self, destination: str, amount_msat: int, maxfee_msat: int) -> Route:
        """A route for exactly ``amount_msat`` whose fee is at most ``maxfee_msat``. Raises NoRoute, FeeTooHigh,
        NodeUnavailable, NodeRefused."""
        with self._lock:
            searching = self._searching[destination]
        with searching:
            self._notice_blocks()
            with self._lock:
                kept = self._kept.get(destination)
            if kept is not None and kept.amount_msat >= amount_msat and kept.fee_msat <= maxfee_msat:
                return shrunk(kept, amount_msat)
            found = self._find(destination, amount_msat, maxfee_msat)
            with self._lock:
                self._kept[destination] = found
            return found

    def drop(self, destination: str) -> None:
        """The kept route did not carry a payment: look for another next time."""
        with self._lock:
            self._kept.pop(destination, None)

    def _find(self, destination: str, amount_msat: int, maxfee_msat: int) -> Route:
        try:
            route = self._wallet.find_route(destination, amount_msat, maxfee_msat, FINAL_CLTV)
        except NoRoute as no_route:
            if maxfee_msat >= FEE_PROBE_MSAT:
                raise
            try:
                dearer = self._wallet.find_route(destination, amount_msat, FEE_PROBE_MSAT, FINAL_CLTV)
            except NoRoute:
                raise no_route from None
            if dearer.fee_msat <= maxfee_msat:
                return dearer  # the way has opened between the two questions
            raise FeeTooHigh(dearer.fee_msat, maxfee_msat) from no_route
        if route.fee_msat > maxfee_msat:
            raise FeeTooHigh(route.fee_msat, maxfee_msat)
        if route.amount_msat != amount_msat or route.destination != destination:
            raise NoRoute("no_route", f"the node's route is not one of {amount_msat} msat to {destination}")
        return route

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
