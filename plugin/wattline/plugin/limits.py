"""How much a stranger may ask for: what costs him nothing must cost the socket nothing.

Everything is counted per key (a peer's address, a node id, a session) in tables that are bounded; a key that has not
been heard of for a while is forgotten. Who has paid is not limited here.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from wattline.core.session.session import Session
from wattline.plugin.settings import LimitSettings

log = logging.getLogger(__name__)

MAX_KEYS = 4096
MAX_PAYERS = 1000
"""So many node ids that have paid are remembered."""
NEW_CLAIMS_PART = 4
"""This part of an address's opens may claim to be one that has paid and was not seen there yet."""
BURST_SHARE = 2 / 3
"""This part of what is allowed in a minute may come at once."""
LINE_EVERY_S = 60.0
MAX_LINES = 256
"""Kinds of lines that are counted at once; what comes beyond is counted as one."""


class Buckets:
    """Token buckets, one per key, filled evenly. Thread-safe."""

    def __init__(self, per_minute: int, clock: Callable[[], float], max_keys: int = MAX_KEYS) -> None:
        self._per_s = per_minute / 60
        self._burst = max(1.0, per_minute * BURST_SHARE)
        self._clock = clock
        self._max_keys = max_keys
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By key: what is left, and when that was; the one heard of last at the end."""

    def take(self, *keys: str) -> float:
        """Take one token of each key, or none at all: then after so many seconds there may be one, else 0."""
        with self._lock:
            now = self._clock()
            left = {key: self._filled(key, now) for key in keys}
            wait_s = max((1 - tokens) / self._per_s for tokens in left.values()) if left else 0.0
            if wait_s > 0:
                return wait_s
            for key, tokens in left.items():
                self._left[key] = (tokens - 1, now)
                self._left.move_to_end(key)
            while len(self._left) > self._max_keys:
                self._left.popitem(last=False)
            return 0.0

    def give_back(self, *keys: str) -> None:
        """It was paid for after all."""
        with self._lock:
            for key in keys:
                if key in self._left:
                    now = self._clock()
                    self._left[key] = (min(self._burst, self._filled(key, now) + 1), now)

    def __len__(self) -> int:
        return len(self._left)

    def _filled(self, key: str, now: float) -> float:
        tokens, at = self._left.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - at) * self._per_s)


class CountedLog:
    """Lines that somebody else can bring about: the first of a kind at once, then one a minute with a count.
    Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """By kind: when the last line was written, and how many were left out since; the oldest first."""

    def info(self, kind: str, message: str, *arguments: object) -> None:
        """``kind`` says which lines are counted together; the line that is written is the newest one's."""
        with self._lock:
            now = self._clock()
            if kind not in self._lines and len(self._lines) >= MAX_LINES:
                oldest, (at, _) = next(iter(self._lines.items()))
                if at > now - LINE_EVERY_S:
                    kind = "others"
                else:
                    del self._lines[oldest]
            at, left_out = self._lines.get(kind, (-math.inf, 0))
            if at > now - LINE_EVERY_S:
                self._lines[kind] = (at, left_out + 1)
                return
            self._lines[kind] = (now, 0)
            self._lines.move_to_end(kind)
        if left_out:
            log.info(message + " (and %d more of this kind since the last such line)", *arguments, left_out)
        else:
            log.info(message, *arguments)


class UnpaidOpens:
    """Sessions that have paid nothing yet, and which of them goes when there are too many: one of the address that has
    most of them, the oldest there. So nobody's open is pushed out by another address's flood while fewer addresses than
    there is room have one open. Not thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._opens: dict[str, str] = {}
        """Address by session_id, the oldest first."""

    def add(self, session_id: str, address: str) -> None:
        self._opens[session_id] = address

    def keep(self, session_ids: Iterable[str]) -> list[tuple[str, str]]:
        """All others have been paid or are over: those, with their addresses."""
        known = set(session_ids)
        gone = [(each, address) for each, address in self._opens.items() if each not in known]
        for session_id, _ in gone:
            del self._opens[session_id]
        return gone

    def address_of(self, session_id: str) -> str | None:
        return self._opens.get(session_id)

    def surplus(self) -> list[str]:
        """When there are too many: all but the newest, those to go first in front. Empty: there is room."""
        if len(self._opens) <= self._most:
            return []
        counts = Counter(self._opens.values())
        ages = {session_id: number for number, session_id in enumerate(self._opens)}
        newest = next(reversed(self._opens))
        others = [each for each in self._opens if each != newest]
        return sorted(others, key=lambda each: (-counts[self._opens[each]], ages[each]))

    def __len__(self) -> int:
        return len(self._opens)


class Limits:
    """All of them. Thread-safe."""

    def __init__(self, settings: LimitSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._opens = Buckets(settings.opens_per_minute, clock)
        self._offers = Buckets(settings.offers_per_minute, clock)
        self._onchain = Buckets(settings.onchain_refusals_per_minute, clock)
        self._claims = Buckets(settings.opens_per_minute, clock)
        self._new_claims = Buckets(max(1, settings.opens_per_minute // NEW_CLAIMS_PART), clock)
        self.unpaid = UnpaidOpens(settings.unpaid_sessions)
        """Changed by one opener at a time."""
        self._lock = threading.Lock()
        self._payers: OrderedDict[str, None] = OrderedDict()
        """Node ids that have paid here, the one that did last at the end."""
        self._known: OrderedDict[str, None] = OrderedDict()
        """Addresses, each with such a node id that has signed an open there; the one that did last at the end."""

    def offer(self, address: str) -> float:
        """Seconds to wait before an offer (or a receipt) may be signed for this address; 0: now."""
        return self._offers.take(address)

    def open(self, address: str, node_id: str, *, claims_to_be: bool) -> float:
        """The same before a session may be opened; ``claims_to_be``: the open carries a signature, which nobody has
        checked yet. Who claims to be a node that has paid here before has a budget of its own, whatever others do at
        its address; until it has signed an open there, it shares a small one with whoever else claims so. A node id
        that is only claimed counts for this address alone: nobody uses up another's."""
        pair = f"{address} {node_id}"
        if claims_to_be and self.has_paid(node_id):
            with self._lock:
                is_known = pair in self._known
            if not (self._claims.take(pair) if is_known else self._new_claims.take(address)):
                return 0.0
        return self._opens.take(address, pair)

    def proven(self, address: str, node_id: str) -> float:
        """The same when the open is signed by that node."""
        if not self.has_paid(node_id):
            return self._opens.take(node_id)
        with self._lock:
            _remember(self._known, f"{address} {node_id}")
        return 0.0

    def onchain(self, address: str | None, session_id: str, *, has_paid: bool) -> float:
        """The same before something that a session asks for on the chain is looked at, which may be refused."""
        return self._onchain.take(*([session_id] if has_paid or address is None else [session_id, address]))

    def accepted(self, address: str | None, session_id: str) -> None:
        """It was not refused."""
        self._onchain.give_back(session_id, *([] if address is None else [address]))

    def paid(self, address: str, node_id: str) -> None:
        """A session was paid for: its open was no stranger's."""
        self._opens.give_back(address, node_id, f"{address} {node_id}")
        with self._lock:
            _remember(self._payers, node_id)

    def has_paid(self, node_id: str) -> bool:
        with self._lock:
            return node_id in self._payers


def has_cost(session: Session) -> bool:
    """Its cable has bought something: as long as nothing is charged, all that was paid or handed over comes back."""
    return session.account.charged_msat > 0


def again(wait_s: float) -> str:
    """For people: when to come back."""
    return f"try again in {math.ceil(wait_s)} s"


def _remember(names: OrderedDict[str, None], name: str) -> None:
    names[name] = None
    names.move_to_end(name)
    while len(names) > MAX_PAYERS:
        names.popitem(last=False)


def address_of(peer: str) -> str:
    """The part by which a peer is counted, of gRPC's ``ipv4:192.0.2.1:4711`` or ``ipv6:%5B2001:db8::1%5D:4711``: an
    IPv4 address, the /64 of an IPv6 one (a host has all of it to itself), or whatever it is."""
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{kind}:{rest}"[:64]
    if address.version == 6 and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address if address.version == 4 else ipaddress.ip_network(f"{address}/64", strict=False))
