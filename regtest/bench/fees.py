"""What a session's micropayments cost in fees, three ways, measured on real nodes (bitcoind, Core Lightning).

    python regtest/bench/fees.py --json fees.json --plot docs/onchain-fees.svg --markdown fees.md

The sessions are toast, phone and an EV, each at an everyday price and at one at which even a thousandth of the EV's is
far above dust; each is cut into 1, 10, 100 and 1000 micropayments of the same size. These are paid

(a) by one on-chain transaction each: lightningd's ``withdraw`` to the socket's address, a block after every 20 of them;
(b) by the aggregate: the real socket over gRPC, every version signed by lightningd, checked against bitcoind, written
    to the ledger and credited before the next one is made; one broadcast, one confirmation;
(c) by keysend over a router that takes Core Lightning's default fees (1 sat and 10 ppm): wattline's own payer, intents
    on disk, sixteen payments under way at a time.

Measured are the fees (from bitcoind's mempool, from what left the cable's wallet), virtual bytes on the chain, and the
time from the first micropayment until the socket (for a: the mempool) has the last. That the money arrived is seen in
the socket's own wallet or in the receipt. All that goes on the chain pays 4 sat/vB: other fee rates scale it.

Not measured: energy, meter and relay. A session is worth what its energy would cost at the price, and that is set as
its session fee, which is due when all of it is paid; the relay closes, and nothing draws power. So the settlement of
(b) is its newest version. The cable is worked by hand and opens whatever it costs: a real one refuses a session whose
miner fee exceeds its max_fee_ratio, and makes keysend payments larger where they are too dear. Nor are the minutes that
blocks take on Bitcoin (the column ``blocks`` says how many), and opening and closing the channels of (c), which serve
many sessions: their size is told below the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.fee_case import COUNTS, LOADS, PRICES, Case, Load, Outcome
from bench.fee_plot import plot
from bench.fee_report import increments_per_s, markdown, ratios, refusals, table
from bench.fee_ways import FEERATE_PER_KW, Ways
from rich.console import Console

from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.errors import WattlineError

ENOUGH_PER_S = 20.0
"""Increments of the aggregate, one after the other, on a machine that does nothing else."""
ROUTER_SAT = 1_000_000
"""Room for fees and reserves in the channels."""
DUST_SAT = 15
"""A thousandth of what an EV's charge may cost every day."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 when the aggregate was too slow or something is missing."""
    options = _parser().parse_args(arguments)
    out, log = Console(width=options.width), Console(stderr=True)
    try:
        result = measure(options.sessions, options.counts, lambda text: log.print(f"[dim]{text}", highlight=False))
    except WattlineError as error:
        log.print(f"{error.code}: {error.message}", markup=False)
        return 1
    outcomes: list[Outcome] = result.pop("outcomes")
    for price in PRICES:
        out.print(table(price, outcomes))
    for text in notes(result, outcomes):
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        rows = [outcome.to_json() for outcome in outcomes]
        options.json.write_text(json.dumps({**result, "outcomes": rows}, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        note = f"Measured on regtest with Core Lightning; on the chain {FEERATE_PER_KW * 4 // 1000} sat/vB."
        options.plot.write_text(plot(outcomes, note), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(PRICES, outcomes), encoding="utf-8")
    return 0 if result["increments_per_s"] >= options.enough else 1


def measure(loads: Sequence[Load], counts: Sequence[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Run everything for these sessions and numbers of micropayments. ``outcomes`` is a list of Outcome, the rest is
    for JSON."""
    cases = [Case(price, load, count) for price in PRICES for load in loads for count in counts]
    outcomes: list[Outcome] = []
    say("starting bitcoind and four lightningds")
    with Ways(sum(case.value_sat for case in cases) + ROUTER_SAT) as ways:
        by_lightningd, by_bitcoind = ways.dust_refusals(DUST_SAT)
        base_msat, ppm = ways.router_fee()
        for case in cases:
            say(f"{case.price.name}, {case.load.name}, {case.payments:,} micropayments of {case.value_msat:,} msat")
            for way in (ways.naive, ways.aggregate, ways.keysend):
                outcomes.append(way(case))
                _check(outcomes[-1])
        opening_vb, closing_vb = ways.channel_vbytes()
    return {
        "feerate_per_kw": FEERATE_PER_KW,
        "router_base_msat": base_msat,
        "router_ppm": ppm,
        "channel_opening_vbytes": opening_vb,
        "channel_closing_vbytes": closing_vb,
        "dust": {"value_sat": DUST_SAT, "lightningd": by_lightningd, "bitcoind": by_bitcoind},
        "increments_per_s": round(increments_per_s(outcomes), 1),
        "outcomes": outcomes,
    }


def notes(result: dict[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    """What the tables do not say."""
    dust = result["dust"]
    lines = []
    lines.append(
        f"fee rate on the chain: {result['feerate_per_kw'] * 4 / 1000:g} sat/vB; router: "
        f"{result['router_base_msat']} msat and {result['router_ppm']} ppm a payment"
    )
    lines += [
        f"{case.price.name}, {case.load.name}: {case.payments:,} micropayments by the aggregate cost "
        f"1/{1 / ratio:,.1f} of the naive way's fees"
        for case, ratio in ratios(outcomes)
        if case.payments > 1
    ]
    lines.append(f"aggregate: {result['increments_per_s']} increments a second, one after the other")
    lines.append(
        f"keysend: opening the cable's channel took {result['channel_opening_vbytes']} vB, closing it takes "
        f"{result['channel_closing_vbytes']} vB, once for all its sessions; over a channel straight to the socket "
        "there is no routing fee"
    )
    lines.append(
        f"{dust['value_sat']} sat on the chain: lightningd: {dust['lightningd']}; bitcoind: {dust['bitcoind']}"
    )
    return [*lines, "cannot pay:", *(f"  {text}" for text in refusals(outcomes))]


def _check(outcome: Outcome) -> None:
    """What was paid is what the session is worth, in the whole satoshi of the chain where it was paid there."""
    case = outcome.case
    expected = {
        "one tx each": sum(case.payments_sat()) * MSAT_PER_SAT,
        "aggregate": case.value_sat * MSAT_PER_SAT,
        "keysend": case.value_msat,
    }[outcome.way]
    assert outcome.refused or outcome.paid_msat == expected, outcome


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fees of a session's micropayments, three ways, on real nodes.")
    parser.add_argument("--counts", type=_counts, default=COUNTS, help="numbers of micropayments, as in 1,10,100")
    parser.add_argument("--sessions", type=_loads, default=LOADS, help="which of toast,phone,EV")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the plot (SVG)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table of the documentation")
    parser.add_argument(
        "--enough",
        type=float,
        default=ENOUGH_PER_S,
        metavar="PER_S",
        help="increments of the aggregate per second below which the exit status is 1 (default: %(default)g)",
    )
    parser.add_argument("--width", type=int, default=116, help="of the tables, columns")
    return parser


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(sorted({int(part) for part in text.split(",")}))
    if counts[0] < 1:
        raise argparse.ArgumentTypeError(f"from 1 on: {text}")
    return counts


def _loads(text: str) -> tuple[Load, ...]:
    by_name = {load.name: load for load in LOADS}
    try:
        return tuple(by_name[name] for name in text.split(","))
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"no such session: {error}; there are {', '.join(by_name)}") from error


if __name__ == "__main__":
    sys.exit(main())
