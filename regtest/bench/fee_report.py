"""The outcomes as tables: for the terminal, and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.fee_case import Case, Outcome, Price, Way
from rich.table import Table

HEADS = ("session", "worth, sat", "payments", "way", "fee, sat", "fee, %", "vB", "txs", "blocks", "s", "per s")
SAT_DIGITS = 3


def table(price: Price, outcomes: Sequence[Outcome]) -> Table:
    """What was measured at one price."""
    result = Table(title=price.told, title_justify="left", pad_edge=False)
    for head in HEADS:
        is_text = head in ("session", "way")
        result.add_column(head, justify="left" if is_text else "right", no_wrap=True)
    last: Case | None = None
    for outcome in _at(price, outcomes):
        if last is not None and outcome.case != last:
            result.add_section()
        result.add_row(*_cells(outcome, is_first=outcome.case != last))
        last = outcome.case
    return result


def markdown(prices: Sequence[Price], outcomes: Sequence[Outcome]) -> str:
    """The same, without the columns that matter little."""
    lines = []
    for price in prices:
        lines += [f"**{price.told}**", ""]
        lines += ["| session | worth, sat | micropayments | one tx each | aggregate | keysend over a router |"]
        lines += ["|---|--:|--:|--:|--:|--:|"]
        by_case: dict[Case, dict[Way, Outcome]] = {}
        for outcome in _at(price, outcomes):
            by_case.setdefault(outcome.case, {})[outcome.way] = outcome
        for case, ways in by_case.items():
            cells = [_short(ways[way]) for way in Way]
            lines.append(f"| {case.load.name} | {sat(case.value_msat)} | {case.payments:,} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def refusals(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Why something could not be paid, one line each."""
    for outcome in outcomes:
        if outcome.refused:
            case = outcome.case
            yield f"{case.price.name}, {case.load.name}, {case.payments:,} × {outcome.way}: {outcome.refused}"


def ratios(outcomes: Sequence[Outcome]) -> Iterator[tuple[Case, float]]:
    """Which part of the naive way's fees the aggregate cost, where both could pay."""
    naive = {outcome.case: outcome for outcome in outcomes if outcome.way is Way.NAIVE and not outcome.refused}
    for outcome in outcomes:
        if outcome.way is Way.AGGREGATE and not outcome.refused and outcome.case in naive:
            yield outcome.case, outcome.fee_msat / naive[outcome.case].fee_msat


def increments_per_s(outcomes: Sequence[Outcome]) -> float:
    """Of all aggregates of the longest sessions, one version after the other; 0 when there are none."""
    paid = [outcome for outcome in outcomes if outcome.way is Way.AGGREGATE and not outcome.refused]
    most = max((outcome.case.payments for outcome in paid), default=0)
    longest = [outcome for outcome in paid if outcome.case.payments == most]
    paying_s = sum(outcome.paying_s for outcome in longest)
    return most * len(longest) / paying_s if paying_s else 0.0


def sat(amount_msat: int) -> str:
    """In satoshi, with the part of one that is left."""
    text = f"{amount_msat / 1000:,.{SAT_DIGITS}f}"
    return text.rstrip("0").rstrip(".")


def _at(price: Price, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.case.price == price]


def _cells(outcome: Outcome, *, is_first: bool) -> list[str]:
    case = outcome.case
    worth = [case.load.name, sat(case.value_msat), f"{case.payments:,}"] if is_first else ["", "", ""]
    if outcome.refused:
        return [*worth, outcome.way, "cannot pay"]
    return [
        *worth,
        outcome.way,
        sat(outcome.fee_msat),
        f"{outcome.fee_percent:,.2f}",
        f"{outcome.vbytes:,}",
        f"{outcome.transactions:,}",
        f"{outcome.blocks:,}",
        f"{outcome.paying_s:,.2f}",
        f"{outcome.per_s:,.1f}",
    ]


def _short(outcome: Outcome) -> str:
    if outcome.refused:
        return "cannot pay"
    chain = f", {outcome.vbytes:,} vB" if outcome.vbytes else ""
    return f"{sat(outcome.fee_msat)} sat{chain}, {outcome.paying_s:,.1f} s"
