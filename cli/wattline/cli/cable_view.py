"""How a running cable looks: a live picture on a terminal, log lines anywhere else."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from wattline.cable.closing import Summary
from wattline.cable.opening import Progress
from wattline.cable.policy.rhythm import Hold
from wattline.core.text import energy, power, sat

log = logging.getLogger("wattline.cable")

LINES = 6
"""Of the newest events and payments under the picture: the whole fits into 80 x 24."""
EVENT_LINES = 4
"""So many of them are kept for events, which many payments must not push out."""
COLUMNS, ROWS = 80, 24
WHOLE_LINES = 16
SHORT_LINES = 6
LOG_INTERVAL_S = 5.0
_HOLDS = {
    Hold.ENOUGH: "enough credit",
    Hold.IN_FLIGHT: "waiting for payments under way",
    Hold.PREPAID: "prepaid cap reached",
    Hold.SESSION: "session budget used up",
    Hold.DAY: "day budget used up",
    Hold.EXPOSURE: "on-chain limit reached",
    Hold.FEE: "fees too high",
    Hold.NO_ROUTE: "no route",
    Hold.MINIMUM: "a channel carries nothing as small",
    Hold.BELOW_MINIMUM: "the socket takes nothing as small",
}


def _part(amount_msat: int, cap_msat: int) -> str:
    return f"{sat(amount_msat)} of {sat(cap_msat)} ({100 * amount_msat // cap_msat} %)"


def _prepaid(snapshot: Snapshot) -> str:
    """What is prepaid; less than nothing where the socket has delivered more than was paid for."""
    if snapshot.prepaid_msat >= 0:
        return _part(snapshot.prepaid_msat, snapshot.max_prepaid_msat)
    return f"nothing: {sat(-snapshot.prepaid_msat)} delivered and not paid yet"


def picture(snapshot: Snapshot) -> RenderableType:
    """The present state, 15 lines high and at most 80 columns wide."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", width=10, no_wrap=True)
    table.add_column(width=62, no_wrap=True, overflow="ellipsis")

    def row(name: str, value: str | Text) -> None:
        # A cell that is a plain string is read as markup: a word in brackets would become a colour.
        table.add_row(name, Text(value) if isinstance(value, str) else value)

    relay = Text("closed", style="bold green") if snapshot.relay_closed else Text("open", style="bold yellow")
    lost = "" if snapshot.connected or snapshot.state == "closed" else "  connection cut"
    row("socket", f"{snapshot.socket}, outlet {snapshot.outlet_id}")
    session = f"{snapshot.session_id}  {snapshot.seconds:.0f} s  {snapshot.state}"
    row("session", Text.assemble(session, (lost, "bold red")))
    row("relay", relay)
    row(
        "power",
        f"{power(snapshot.power_mw)}  {snapshot.voltage_mv / 1000:.2f} V  {snapshot.current_ma / 1000:.3f} A"
        f"  (socket: {power(snapshot.socket_power_mw)})",
    )
    row("energy", f"{energy(snapshot.energy_uwh_cable)}  (socket: {energy(snapshot.energy_uwh_socket)})")
    row("price", f"{sat(snapshot.price_msat_per_kwh)} per kWh")
    row("charged", f"{sat(snapshot.charged_msat)} of {sat(snapshot.credited_msat)} credited")
    row("balance", sat(snapshot.balance_msat))
    doubt = f", {snapshot.in_doubt} in doubt" if snapshot.in_doubt else ""
    row(
        "payments",
        f"{snapshot.payments} arrived, {snapshot.in_flight} under way{doubt}, {snapshot.failed_payments} failed, "
        f"{snapshot.latency_ms} ms",
    )
    row("fees", sat(snapshot.fees_msat))
    row("prepaid", _prepaid(snapshot))
    row("spent", _part(snapshot.session_sent_msat, snapshot.max_session_msat))
    row("24 hours", _part(snapshot.day_sent_msat, snapshot.max_day_msat))
    row("now", snapshot.stop_reason or (_HOLDS[snapshot.hold] if snapshot.hold else "beginning"))
    return Panel(table, title="wattline cable", width=80)


def short_picture(snapshot: Snapshot) -> RenderableType:
    """What matters most, 6 lines, for a terminal that the whole does not fit into."""
    cut = "" if snapshot.connected or snapshot.state == "closed" else ", connection cut"
    now = snapshot.stop_reason or (_HOLDS[snapshot.hold] if snapshot.hold else "beginning")
    lines = (
        f"{snapshot.state}{cut}, relay {'closed' if snapshot.relay_closed else 'open'}",
        f"{power(snapshot.power_mw)}  {energy(snapshot.energy_uwh_cable)}",
        f"balance {sat(snapshot.balance_msat)}",
        f"spent   {sat(snapshot.session_sent_msat)}",
        f"{snapshot.payments} payments, {snapshot.failed_payments} failed, {snapshot.latency_ms} ms",
        f"{now} (for more: {COLUMNS} x {ROWS})",
    )
    return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


class LiveView:
    """On a terminal. Use as a context manager. Where the whole does not fit, it shows what matters most."""

    def __init__(self, console: Console) -> None:
        self._events: deque[tuple[int, str]] = deque(maxlen=LINES)
        self._payments: deque[tuple[int, str]] = deque(maxlen=LINES)
        self._count = 0
        self._console = console
        self._snapshot: Snapshot | None = None
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._whole)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, text: str) -> None:
        self._events.append(self._line(text))

    def show(self, progress: Progress) -> None:
        self.draw(snapshot_of(progress))

    def draw(self, snapshot: Snapshot) -> None:
        before, self._snapshot = self._snapshot, snapshot
        arrived = snapshot.payments - (before.payments if before is not None else 0)
        if arrived > 0:
            amount_msat = snapshot.paid_msat - (before.paid_msat if before is not None else 0)
            which = f"payment {snapshot.payments}" if arrived == 1 else f"payments up to {snapshot.payments}"
            self._payments.append(self._line(f"{which}: {sat(amount_msat)} arrived"))

    def _line(self, text: str) -> tuple[int, str]:
        self._count += 1
        return self._count, f"{time.strftime('%H:%M:%S')} {text}"

    def _newest(self, room: int) -> list[str]:
        """So many lines at the most, as they came: first of all the newest events, then payments."""
        room = min(room, LINES)
        events = list(self._events)[-min(EVENT_LINES, room) :] if room > 0 else []
        payments = list(self._payments)[-(room - len(events)) :] if room > len(events) else []
        return [text for _, text in sorted(events + payments)]

    def _whole(self) -> RenderableType:
        columns, rows = self._console.size
        is_small = columns < COLUMNS or rows < ROWS
        shown: RenderableType = Text("looking for the socket ...")
        height = 1
        if self._snapshot is not None:
            shown = short_picture(self._snapshot) if is_small else picture(self._snapshot)
            height = SHORT_LINES if is_small else WHOLE_LINES
        # One line stays free: the cursor is below the picture.
        newest = self._newest(rows - height - 1)
        return Group(shown, *(Text(line, no_wrap=True, overflow="ellipsis") for line in newest))


class LogView:
    """Anywhere else: every event a line, and the state every few seconds. Use as a context manager."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged_at: float | None = None

    def __enter__(self) -> LogView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del kind, error, traceback

    def event(self, text: str) -> None:
        log.info("%s", text)

    def show(self, progress: Progress) -> None:
        self.log(snapshot_of(progress))

    def log(self, snapshot: Snapshot) -> None:
        now = self._clock()
        if self._logged_at is not None and now - self._logged_at < LOG_INTERVAL_S:
            return
        self._logged_at = now
        log.info(
            "%s: %s, %s, %s charged, balance %s, %d payments, %d ms",
            snapshot.state,
            power(snapshot.power_mw),
            energy(snapshot.energy_uwh_cable),
            sat(snapshot.charged_msat),
            sat(snapshot.balance_msat),
            snapshot.payments,
            snapshot.latency_ms,
        )


def _refund(summary: Summary) -> str:
    """What became of the credit that was not used."""
    match summary.refund_status:
        case "sent":
            return f"{sat(summary.refunded_msat)} sent back"
        case "owed":
            return f"{sat(summary.balance_msat)} owed by the socket, which goes on trying"
        case "kept":
            return f"{sat(summary.balance_msat)} kept by the socket: less than it refunds"
        case "none":
            return "none: no credit was left"
        case _:
            return "not known: there is no receipt"


def ending(summary: Summary) -> str:
    """The summary for people, some lines."""
    lines = [f"{summary.stop_reason}: {summary.message}"]
    if summary.session_id:
        lines += [
            f"session {summary.session_id}, {summary.seconds:.0f} s at {sat(summary.price_msat_per_kwh)} per kWh",
            f"energy   {energy(summary.energy_uwh_cable)} by the cable's meter",
            f"         {energy(summary.energy_uwh_socket)} by the socket's",
            f"paid     {sat(summary.paid_msat)} in {summary.payments} payments, fees {sat(summary.fees_msat)}",
            f"charged  {sat(summary.charged_msat)}",
            f"refund   {_refund(summary)}",
        ]
    if summary.in_doubt_msat:
        lines.append(f"in doubt {sat(summary.in_doubt_msat)}: the next run asks the node about it")
    lines += [f"not true: {line}" for line in summary.objections]
    return "\n".join(lines)


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


def snapshot_of(progress: Progress) -> Snapshot:
    """The session as it is now."""
    buyer, settings, reading = progress.buyer, progress.settings, progress.reading
    statement, account, terms = buyer.statement, buyer.account, buyer.terms
    return Snapshot(
        socket=settings.socket.parsed.target,
        session_id=terms.session_id,
        outlet_id=terms.outlet_id,
        price_msat_per_kwh=terms.tariff.energy_msat_per_kwh,
        state=statement.state if statement else "",
        relay_closed=statement.relay_closed if statement else False,
        connected=progress.is_connected,
        seconds=progress.elapsed_ms / 1000,
        power_mw=reading.power_mw if reading else 0,
        voltage_mv=reading.voltage_mv if reading else 0,
        current_ma=reading.current_ma if reading else 0,
        energy_uwh_cable=buyer.track.energy_uwh,
        energy_uwh_socket=statement.energy_uwh if statement else 0,
        socket_power_mw=statement.power_mw if statement else 0,
        credited_msat=statement.credited_msat if statement else 0,
        charged_msat=statement.charged_msat if statement else 0,
        balance_msat=statement.balance_msat if statement else 0,
        paid_msat=account.settled_msat,
        in_flight_msat=account.in_flight_msat,
        in_flight=account.in_flight,
        in_doubt=len(buyer.in_doubt),
        payments=account.payments,
        failed_payments=account.failed_payments,
        latency_ms=buyer.latency.estimate_ms,
        fees_msat=account.fees_msat,
        prepaid_msat=buyer.prepaid_msat,
        max_prepaid_msat=buyer.max_prepaid_msat if buyer.method == "onchain" else settings.limits.max_prepaid_msat,
        session_sent_msat=account.sent_msat,
        max_session_msat=settings.limits.max_session_msat,
        day_sent_msat=buyer.day_sent_msat,
        max_day_msat=settings.limits.max_day_msat,
        hold=buyer.hold,
        stop_reason=buyer.stop.reason if buyer.stop else "",
    )
