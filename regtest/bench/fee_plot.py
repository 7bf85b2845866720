"""The fees as a picture: one small plot per session and price, both axes logarithmic. Written by hand as SVG, so that
the picture needs no library and a new run changes little of the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from bench.fee_case import Case, Load, Outcome, Price, Way

from wattline.core.aggregate import MSAT_PER_SAT

COLOURS = {Way.NAIVE: "#c2410c", Way.AGGREGATE: "#1d4ed8", Way.KEYSEND: "#15803d"}
NAMES = {
    Way.NAIVE: "one transaction per micropayment",
    Way.AGGREGATE: "the aggregate: one transaction",
    Way.KEYSEND: "keysend over one router",
}
PANEL_WIDTH, PANEL_HEIGHT = 230, 190
LEFT, TOP, GAP_X, GAP_Y = 76, 92, 28, 74
BOTTOM, RIGHT = 60, 24
LOWEST_SAT, HIGHEST_SAT = 0.5, 6e6
STRIP = 34
"""At the top of a panel, for what cannot be paid."""
INK, FAINT = "#1f2937", "#e5e7eb"


def plot(outcomes: Sequence[Outcome], note: str) -> str:
    """An SVG picture of all outcomes; ``note`` stands below it."""
    prices = list(dict.fromkeys(outcome.case.price for outcome in outcomes))
    loads = list(dict.fromkeys(outcome.case.load for outcome in outcomes))
    width = LEFT + len(loads) * (PANEL_WIDTH + GAP_X) - GAP_X + RIGHT
    height = TOP + len(prices) * (PANEL_HEIGHT + GAP_Y) - GAP_Y + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f'<g font-family="Helvetica, Arial, sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 24, "What a session costs in fees", size=16, weight="bold"),
        *_legend(),
    ]
    for row, price in enumerate(prices):
        for column, load in enumerate(loads):
            x, y = LEFT + column * (PANEL_WIDTH + GAP_X), TOP + row * (PANEL_HEIGHT + GAP_Y)
            chosen = [item for item in outcomes if (item.case.price, item.case.load) == (price, load)]
            parts += [f'<g transform="translate({x} {y})">', *_panel(price, load, chosen, column == 0), "</g>"]
    middle_y = TOP + (height - TOP - BOTTOM) / 2
    parts.append(f'<text transform="translate(16 {middle_y:g}) rotate(-90)" text-anchor="middle">total fee, sat</text>')
    parts.append(_text(LEFT, height - 12, note, size=10, fill="#6b7280"))
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _panel(price: Price, load: Load, outcomes: Sequence[Outcome], has_scale: bool) -> Iterator[str]:
    cases = list(dict.fromkeys(outcome.case for outcome in outcomes))
    yield _text(0, -20, f"{load.name}, {load.told}", weight="bold")
    yield _text(0, -6, f"{price.told}; worth {_short(cases[0].value_msat / MSAT_PER_SAT)} sat", fill="#6b7280")
    yield f'<rect width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}" fill="none" stroke="#9ca3af"/>'
    for exponent in range(7):
        y = _y(10**exponent)
        yield f'<path d="M0 {y:.1f}H{PANEL_WIDTH}" stroke="{FAINT}"/>'
        if has_scale:
            yield _text(-8, y + 4, f"{10**exponent:,}", anchor="end")
    for case in cases:
        x = _x(case, cases)
        yield f'<path d="M{x:.1f} {STRIP}V{PANEL_HEIGHT}" stroke="{FAINT}"/>'
        yield _text(x, PANEL_HEIGHT + 15, f"{case.payments:,}", anchor="middle")
    yield _text(PANEL_WIDTH / 2, PANEL_HEIGHT + 30, "micropayments", anchor="middle")
    worth_y = _y(cases[0].value_msat / MSAT_PER_SAT)
    yield f'<path d="M0 {worth_y:.1f}H{PANEL_WIDTH}" stroke="{INK}" stroke-dasharray="2 4"/>'
    for way in Way:
        yield from _line(way, [outcome for outcome in outcomes if outcome.way is way], cases)


def _line(way: Way, outcomes: Sequence[Outcome], cases: Sequence[Case]) -> Iterator[str]:
    colour = COLOURS[way]
    paid = [(_x(item.case, cases), _y(item.fee_msat / MSAT_PER_SAT)) for item in outcomes if not item.refused]
    if len(paid) > 1:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in paid)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in paid:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    strip_y = 11 if way is Way.NAIVE else 25
    for item in outcomes:
        if item.refused:
            x = _x(item.case, cases)
            yield f'<path d="M{x - 4:.1f} {strip_y - 4}l8 8m0 -8l-8 8" stroke="{colour}" stroke-width="2"/>'


def _legend() -> Iterator[str]:
    x = LEFT
    for way in Way:
        yield f'<path d="M{x} 44h18" stroke="{COLOURS[way]}" stroke-width="2"/>'
        yield f'<circle cx="{x + 9}" cy="44" r="3.5" fill="{COLOURS[way]}"/>'
        yield _text(x + 24, 48, NAMES[way])
        x += 24 + 6 * len(NAMES[way]) + 8
    yield f'<path d="M{x} 40l8 8m0 -8l-8 8" stroke="{INK}" stroke-width="2"/>'
    yield _text(x + 14, 48, "cannot pay")
    x += 14 + 6 * len("cannot pay") + 12
    yield f'<path d="M{x} 44h18" stroke="{INK}" stroke-dasharray="2 4"/>'
    yield _text(x + 24, 48, "worth")


def _x(case: Case, cases: Sequence[Case]) -> float:
    most = max(other.payments for other in cases)
    margin = 22
    share = math.log(case.payments) / math.log(most) if most > 1 else 0.5
    return margin + share * (PANEL_WIDTH - 2 * margin)


def _y(value_sat: float) -> float:
    share = math.log(max(value_sat, LOWEST_SAT) / LOWEST_SAT) / math.log(HIGHEST_SAT / LOWEST_SAT)
    return PANEL_HEIGHT - min(share, 1.0) * (PANEL_HEIGHT - STRIP)


def _short(value_sat: float) -> str:
    return f"{value_sat:,.0f}" if value_sat >= 100 else f"{value_sat:.2f}".rstrip("0").rstrip(".")


def _text(x: float, y: float, text: str, *, size: int = 0, weight: str = "", anchor: str = "", fill: str = "") -> str:
    values = {"font-size": size, "font-weight": weight, "text-anchor": anchor, "fill": fill}
    attributes = "".join(f' {name}="{value}"' for name, value in values.items() if value)
    return f'<text x="{x:g}" y="{y:g}"{attributes}>{escape(text)}</text>'
