"""What is said at the end of a session and while it runs, and who listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple, Protocol

from wattline.cable.policy.rhythm import Hold

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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The session as it is at one moment, for the live view."""

    socket: str
    session_id: str
    outlet_id: str
    price_msat_per_kwh: int
    state: str
    relay_closed: bool
    connected: bool
    seconds: float
    power_mw: int
    voltage_mv: int
    current_ma: int
    energy_uwh_cable: int
    energy_uwh_socket: int
    socket_power_mw: int
    credited_msat: int
    charged_msat: int
    balance_msat: int
    paid_msat: int
    in_flight_msat: int
    in_flight: int
    in_doubt: int
    payments: int
    failed_payments: int
    latency_ms: int
    fees_msat: int
    prepaid_msat: int
    max_prepaid_msat: int
    session_sent_msat: int
    max_session_msat: int
    day_sent_msat: int
    max_day_msat: int
    hold: Hold | None
    stop_reason: str


MAX_POINTS = 400
"""More than a terminal has columns; a session of hours keeps as many, further apart."""


class Point(NamedTuple):
    """One moment."""

    seconds: float
    """Since the open of the session."""
    power_mw: int
    """By the cable's own meter; negative when power flows back."""
    balance_msat: int
    """By the socket's newest statement."""


class Course:
    """A listener that keeps some of what it hears, and passes all of it on to another."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._points: list[Point] = []
        self._newest: Point | None = None
        self._stride = 1
        self._heard = 0

    def event(self, text: str) -> None:
        self._listener.event(text)

    def show(self, snapshot: Snapshot) -> None:
        self._keep(Point(round(snapshot.seconds, 2), snapshot.power_mw, snapshot.balance_msat))
        self._listener.show(snapshot)

    @property
    def points(self) -> tuple[Point, ...]:
        """In the order of time, evenly chosen, the newest among them; at most MAX_POINTS."""
        if self._newest is None or self._newest == self._points[-1]:
            return tuple(self._points)
        return (*self._points, self._newest)

    def _keep(self, point: Point) -> None:
        if self._heard % self._stride == 0:
            self._points.append(point)
        if len(self._points) >= MAX_POINTS:
            del self._points[1::2]
            self._stride *= 2
        self._heard += 1
        self._newest = point


class Listener(Protocol):
    """A live view. Called from the deciding thread only; must not block."""

    def event(self, text: str) -> None:
        """Something worth a line happened."""

    def show(self, snapshot: Snapshot) -> None:
        """The present state, several times a second."""


class Silence:
    """Nobody watches."""

    def event(self, text: str) -> None:
        del text

    def show(self, snapshot: Snapshot) -> None:
        del snapshot


class Sparing:
    """Passes on at most LINES lines at once and one more every LINE_MS; how many it left out, the next one says. For
    lines that somebody else causes, who may do so without end."""

    LINES = 30
    LINE_MS = 2_000

    def __init__(self, listener: Listener, clock_ms: Callable[[], int]) -> None:
        self._listener = listener
        self._clock_ms = clock_ms
        self._full_ms = clock_ms()
        """When all LINES may be said again."""
        self._left_out = 0

    def event(self, text: str) -> None:
        now_ms = self._clock_ms()
        full_ms = max(self._full_ms, now_ms) + self.LINE_MS
        if full_ms - now_ms > self.LINES * self.LINE_MS:
            self._left_out += 1
            return
        left_out, self._left_out, self._full_ms = self._left_out, 0, full_ms
        self._listener.event(f"{text} ({left_out} lines left out before)" if left_out else text)

    def show(self, snapshot: Snapshot) -> None:
        self._listener.show(snapshot)
