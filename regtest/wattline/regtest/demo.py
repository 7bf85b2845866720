"""``wattline demo``: a slice of bread, paid for by its own cable."""

from __future__ import annotations

import json
import subprocess
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wattline.cli.chart import Chart
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.session.state import Method
from wattline.regtest.scene import Json, Scene
from wattline.regtest.toast import Toast, ToastMeter, ToastOrder, toast

END_TIMEOUT_S = 120.0
"""How long the cable may take to close its session after its time is up."""


class DemoNode(StrEnum):
    PRACTICE = "practice"
    LIGHTNINGD = "lightningd"


USUAL_PRICE_SAT = {Method.KEYSEND: 300, Method.ONCHAIN: 200_000}
"""Per kWh. On-chain half a minute of toast must be worth more than the smallest output and its miner's fee."""


def demo(
    node: Annotated[
        DemoNode,
        typer.Option(
            help="What the two nodes are: stand-ins that need nothing installed and hold no money, or real lightningd "
            "on regtest."
        ),
    ] = DemoNode.PRACTICE,
    method: Annotated[
        Method, typer.Option(help="How the session is paid: by Lightning, or by one on-chain transaction.")
    ] = Method.KEYSEND,
    seconds: Annotated[float, typer.Option(min=3, max=3600, help="How long the toaster is on.")] = 30.0,
    meter: Annotated[ToastMeter, typer.Option(help="The chip that measures, on both sides.")] = ToastMeter.INA228,
    volts: Annotated[
        int | None,
        typer.Option(
            help="The supply. The toaster draws 1300 W at 48 V, 325 W at 24 V.",
            show_default="48; 24 with an ina226 or ina219",
        ),
    ] = None,
    price: Annotated[
        int | None,
        typer.Option(
            min=1, max=1_000_000, help="Price of energy, sat per kWh.", show_default="300; 200000 with --method onchain"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on stdout; all else on stderr.")
    ] = False,
) -> None:
    """Toast a slice of bread: a socket, a cable, two Lightning nodes, and a load of 1300 W (simulated at the chips)."""
    price_sat = USUAL_PRICE_SAT[method] if price is None else price
    supply_v = meter.usual_v if volts is None else volts
    order = ToastOrder(node.value, price_sat * MSAT_PER_SAT, meter, supply_v, method)
    console = Console(stderr=as_json, highlight=False)
    dot, times = ("-", "x") if console.options.ascii_only else ("·", "×")

    def buy(scene: Scene, config: Path) -> Json:
        cable = scene.run_cable(config, for_s=seconds, quiet=False)
        try:
            return cable.result(seconds + END_TIMEOUT_S)[1]
        except KeyboardInterrupt:
            # The cable has had the same Ctrl-C, and ends its session; if it has begun at all.
            _, summary = cable.result(END_TIMEOUT_S)
            if not summary:
                raise
            return summary
        except subprocess.TimeoutExpired:
            cable.interrupt()
            return cable.result(END_TIMEOUT_S)[1]

    def tell(text: str) -> None:
        console.print(Text(f"{dot} {text}", style="dim"))

    if method is Method.ONCHAIN and price is None:
        tell(f"the price is {price_sat:,} sat per kWh: a session must be worth its transaction")
    result = toast(order, buy, tell)
    console.print(told(result, times))
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        console.print(Chart(result.course), end="")
    raise typer.Exit(0 if result.is_good else 1)


def told(result: Toast, times: str) -> Table:
    """The outcome in words; ``times`` is the sign for it. With the chart below it fits into 80 x 24."""
    wh, sat = 1_000_000, MSAT_PER_SAT
    table = Table(title="What happened", show_header=False, title_justify="left", box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()

    def row(name: str, text: str) -> None:
        table.add_row(name, text)

    difference = abs(result.energy_uwh_cable - result.energy_uwh_socket) / max(1, result.energy_uwh_socket)
    if result.node == DemoNode.PRACTICE:
        row(
            "practice", "these were practice nodes: not Lightning, and no money; --node lightningd shows the real thing"
        )
    row(
        "toasted for",
        f"{result.seconds:.0f} s at {result.supply_v} V on two {result.node} nodes, paid by {result.method}",
    )
    row(
        "energy",
        f"{result.energy_uwh_socket / wh:.3f} Wh by the socket's {result.meter.upper()}, "
        f"{result.energy_uwh_cable / wh:.3f} Wh by the cable's ({difference:.2%} apart)",
    )
    row(
        "price",
        f"{result.price_msat_per_kwh / sat:g} sat per kWh, so this cost {result.charged_msat / sat:.3f} sat",
    )
    speed = ""
    if result.payment_ms_p50 is not None:
        speed = f", half of them within {result.payment_ms_p50} ms, 99 % within {result.payment_ms_p99} ms"
    row("paid", f"{result.credited_msat / sat:.3f} sat in {result.payments} payments{speed}")
    row("given back", f"{result.refunded_msat / sat:.3f} sat; left over {result.balance_msat / sat:.3f} sat")
    if result.settlement is None:
        row("routing fees", f"{result.fees_msat / sat:.3f} sat")
    else:
        onchain = result.settlement
        row(
            "miner's fee",
            f"{onchain.fee_sat} sat, once for all {onchain.increments} payments: one transaction of {onchain.vsize} vB "
            f"that pays {onchain.value_sat} sat, {onchain.confirmations} confirmation",
        )
    row(
        "at risk",
        f"the cable never had more than {result.max_prepaid_msat / sat:.3f} sat prepaid, the socket never delivered "
        f"more than {result.max_unpaid_msat / sat:.3f} sat unpaid",
    )
    row("relay", f"closed {result.relay_closed}{times}, opened {result.relay_opened}{times}, now {result.relay_final}")
    agreed = "both nodes and both ledgers agree to the msat"
    if result.settlement is not None:
        agreed = "ledger, wallet and chain agree to the sat"
    row("books", agreed if result.books_agree else "DO NOT AGREE, see --json")
    row("ended", result.stop_reason)
    return table
