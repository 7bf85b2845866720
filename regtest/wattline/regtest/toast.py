"""The demo's scene: the paper's slice of bread, 1300 W for half a minute, on nodes of either kind and with any of the
meters; and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from wattline.cli.chart import Point
from wattline.core.errors import StopError, UsageError
from wattline.core.session.state import Method
from wattline.device.simulator.profile import NOMINAL_V
from wattline.regtest.books import Books, books_of
from wattline.regtest.lightningd import find_lightningd
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.practice_network import PracticeNetwork
from wattline.regtest.scene import Json, Scene, Trade
from wattline.regtest.settlement import Settlement, confirmed

PRACTICE = "practice"
LOWEST_V = 12
CHANNEL_SAT = 1_000_000
FUNDS_SAT = 500_000
PUSH_MSAT = 300_000_000
"""What the socket's side of the channel has from the start, so that a refund can be sent at once."""
TOASTER_OHMS = NOMINAL_V**2 / 1300


class ToastMeter(StrEnum):
    """What measures on both sides."""

    INA228 = "ina228"
    INA226 = "ina226"
    INA219 = "ina219"

    @property
    def highest_v(self) -> int:
        """The highest supply that the chip measures (docs/hardware.md), as far as a toaster of 1300 W at 48 V goes."""
        return {ToastMeter.INA228: NOMINAL_V, ToastMeter.INA226: 36, ToastMeter.INA219: 26}[self]

    @property
    def usual_v(self) -> int:
        """The supply of a demo: the paper's power, or the usual voltage that the chip can measure."""
        return NOMINAL_V if self is ToastMeter.INA228 else 24


@dataclass(frozen=True, slots=True)
class ToastOrder:
    """What is to be toasted, and how."""

    node: str = PRACTICE
    """``practice`` or ``lightningd``."""
    price_msat_per_kwh: int = 300_000
    meter: ToastMeter = ToastMeter.INA228
    supply_v: int = NOMINAL_V
    method: Method = Method.KEYSEND

    def __post_init__(self) -> None:
        if not LOWEST_V <= self.supply_v <= self.meter.highest_v:
            raise UsageError(
                "demo_volts",
                f"{self.supply_v} V: with an {self.meter.upper()} the demo runs at {LOWEST_V} to "
                f"{self.meter.highest_v} V",
            )

    @property
    def power_w(self) -> int:
        """What the toaster draws when it is hot, nearly."""
        return round(self.supply_v**2 / TOASTER_OHMS)


ONCHAIN_CABLE: dict[str, dict[str, str | int]] = {
    "payment": {"method": "onchain"},
    "limits": {
        "max_prepaid_msat": 5_000,
        "max_session_msat": 100_000_000,
        "max_day_msat": 100_000_000,
        "max_price_msat_per_kwh": 10**9,
    },
}


@dataclass(frozen=True, slots=True)
class Toast:
    """The outcome of the demo; the fields that stand in its JSON object. Money in msat."""

    node: str
    method: str
    meter: str
    supply_v: int
    seconds: float
    energy_uwh_socket: int
    energy_uwh_cable: int
    energy_uwh_world: int
    """What truly flowed out of the simulated socket."""
    price_msat_per_kwh: int
    charged_msat: int
    credited_msat: int
    refunded_msat: int
    balance_msat: int
    fees_msat: int
    """Routing fees of the increments and of the refund."""
    payments: int
    payment_ms_p50: int | None
    payment_ms_p99: int | None
    max_unpaid_msat: int
    """The most that was ever charged and not credited."""
    max_prepaid_msat: int
    """The most that the cable ever had prepaid and in flight."""
    relay_closed: int
    """How often the relay closed."""
    relay_opened: int
    relay_final: str
    stop_reason: str
    """Of the cable; ``done`` is the good one."""
    session_id: str
    books_agree: bool
    """Both nodes' own records (listinvoices, listsendpays) and both ledgers say the same, to the msat."""
    books: Books = field(repr=False)
    course: tuple[Point, ...] = field(repr=False)
    """Power and balance over time; not in the JSON object."""
    settlement: Settlement | None = None
    """Of a session that was paid on-chain; in the JSON object its fields stand among the others."""

    @property
    def is_good(self) -> bool:
        return self.stop_reason in ("done", "operator") and self.books_agree and self.relay_final == "open"

    def to_json(self) -> Json:
        values = {name: value for name, value in asdict(self).items() if name not in ("course", "settlement")}
        return values | (asdict(self.settlement) if self.settlement is not None else {})


def toast(
    order: ToastOrder,
    buy: Callable[[Scene, Path], Json],
    say: Callable[[str], None],
) -> Toast:
    """Set the scene, let ``buy`` run the cable of the given configuration, and compare all books.

    ``buy`` returns the cable's summary, ``say`` hears what is being done. Raises WattlineError when something is
    missing."""
    node = order.node
    is_onchain = order.method is Method.ONCHAIN
    is_practice = node == PRACTICE
    if is_practice:
        say("these are PRACTICE NODES: not Lightning, they hold no money; a real one is shown by --node lightningd")
    else:
        # Nobody shall wait for a bitcoind and then hear that there is no lightningd.
        find_lightningd()
    if is_onchain or not is_practice:
        say("starting bitcoind on regtest")
    with (
        PracticeNetwork(bitcoind=is_onchain) if is_practice else RegtestNetwork() as network,
        Scene(network, _trade(order)) as scene,
    ):
        say(f"starting two {node} nodes, the socket's with the plugin")
        socket, cable = scene.start_node(), network.node("cable")
        if is_onchain:
            say(f"no channel between them: the cable has one output of {FUNDS_SAT:,} sat on the chain")
            network.fund_wallet(cable, FUNDS_SAT)
        else:
            say(f"opening a channel of {CHANNEL_SAT:,} sat between them, money on both sides")
            network.open_channel(cable, socket, CHANNEL_SAT, push_msat=PUSH_MSAT)
        scene.wait_running()
        config = scene.write_cable_config(cable, changes=ONCHAIN_CABLE if is_onchain else None)
        say(f"a toaster is plugged in, {order.power_w} W at {order.supply_v} V; the cable buys")
        summary = buy(scene, config)
        if not summary:
            raise StopError("cable_failed", "the cable ended without a summary; what it said stands above")
        session_id = str(summary["session_id"])
        settlement = None
        if is_onchain and session_id:
            say("a block is mined, with the one transaction of this session in it")
            settlement = confirmed(scene, network, session_id)
        session = scene.session(session_id) if session_id else {}
        books = books_of(
            session_id, socket, cable, scene.config.with_name("socket.sqlite3"), config.with_suffix(".sqlite3")
        )
        switchings = scene.world.history(0)
        return Toast(
            node=node,
            method=order.method,
            meter=order.meter,
            supply_v=order.supply_v,
            seconds=summary["seconds"],
            energy_uwh_socket=int(session.get("energy_uwh", 0)),
            energy_uwh_cable=summary["energy_uwh_cable"],
            energy_uwh_world=scene.world.energy_uwh(0),
            price_msat_per_kwh=order.price_msat_per_kwh,
            charged_msat=int(session.get("charged_msat", 0)),
            credited_msat=int(session.get("credited_msat", 0)),
            refunded_msat=int(session.get("refunded_msat", 0)),
            balance_msat=int(session.get("balance_msat", 0)),
            fees_msat=summary["fees_msat"] + int(session.get("refund_fee_msat", 0)),
            payments=int(session.get("payments", 0)),
            payment_ms_p50=summary["payment_ms_p50"],
            payment_ms_p99=summary["payment_ms_p99"],
            max_unpaid_msat=int(session.get("max_unpaid_msat", 0)),
            max_prepaid_msat=summary["max_prepaid_msat"],
            relay_closed=sum(switching.closed for switching in switchings),
            relay_opened=sum(not switching.closed for switching in switchings),
            relay_final="closed" if scene.world.relay_closed(0) else "open",
            stop_reason=summary["stop_reason"],
            session_id=session_id,
            books_agree=books.agree and (settlement is None or settlement.agrees),
            books=books,
            course=tuple(Point(*point) for point in summary["course"]),
            settlement=settlement,
        )


def _trade(order: ToastOrder) -> Trade:
    return Trade(
        energy_msat_per_kwh=order.price_msat_per_kwh,
        session={"min_refund_msat": 100},
        onchain={} if order.method is Method.ONCHAIN else None,
        meter=order.meter,
        supply_v=order.supply_v,
    )
