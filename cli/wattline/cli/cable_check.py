"""Everything that a session would need, tried without paying: ``wattline cable check``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from wattline.cable.link.transport import OpenedSocket, open_socket
from wattline.cable.opening import (
    MeterOpener,
    check_onchain,
    choose_method,
    largest_payment_msat,
    smallest_payment_msat,
)
from wattline.cable.pay.keysend import KEYSEND_OFF, NO_WAY_BACK, can_come_back, owed
from wattline.cable.pay.settlement import check_honest, warning_of
from wattline.cable.policy.offer import (
    Offer,
    OfferedOutlet,
    check_keeps,
    check_keysend,
    check_method,
    check_prices,
    choose_outlet,
    clocks_apart,
)
from wattline.cable.policy.onchain import Scope
from wattline.cable.policy.rhythm import Conditions, Latency, Load, target_msat
from wattline.cable.settings import CableSettings
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.errors import WattlineError
from wattline.core.ledger.cable import CableAggregateStore
from wattline.core.lightning.node import CableNode, NodeInfo
from wattline.core.lightning.onchain import PayingFunds
from wattline.core.lightning.routes import WaysOut, ways_out
from wattline.core.tariff import worth_msat
from wattline.core.text import power, sat

MS_PER_HOUR = 3_600_000


class Severity(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


_SEVERITY = (Severity.OK, Severity.WARNING, Severity.PROBLEM)
NOTHING_PAID = "nothing can be paid"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check."""

    severity: Severity
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.subject:<8} {self.text}"


def check(
    settings: CableSettings,
    node: CableNode,
    open_meter: MeterOpener,
    funds: PayingFunds,
    memory: CableAggregateStore | None = None,
) -> Iterator[Finding]:
    """Findings, one after the other as they are known. ``funds`` is the on-chain wallet, looked at where the method is
    not keysend alone; ``memory`` what is on record of earlier sessions. Raises nothing: what fails is a problem."""
    info: NodeInfo | None = None
    try:
        info = node.check_version()
        yield Finding(
            Severity.OK, "node", f"{info.node_id} on {info.network}, {info.version}, block {info.blockheight}"
        )
    except WattlineError as error:
        yield _problem("node", error)
    opened: OpenedSocket | None = None
    if info is not None:
        try:
            opened = open_socket(settings.socket.parsed, node, info.network)
        except WattlineError as error:
            yield _problem("socket", error)
    outlet: OfferedOutlet | None = None
    if opened is not None:
        opened.channel.close()
        yield from _socket(settings, opened.offer)
        yield from _history(memory, opened.offer.node_id)
        apart = clocks_apart(opened.offer, time.time())
        if apart is not None:
            yield Finding(Severity.WARNING, "clock", f"{apart}; nothing is measured by either, but records are dated")
        try:
            outlet = choose_outlet(opened.offer, settings.socket.outlet_id)
            yield Finding(Severity.OK, "outlet", f"{outlet.outlet_id}, rated {power(outlet.max_power_mw)}, available")
        except WattlineError as error:
            yield _problem("outlet", error)
        if outlet is not None:
            yield from _costs(settings, opened.offer, outlet, _begins_onchain(settings, node, opened.offer))
        yield from _payment(settings, node, opened.offer, outlet, info, funds)
    yield from _meter(open_meter, outlet.max_power_mw if outlet is not None else None)


def _socket(settings: CableSettings, offer: Offer) -> Iterator[Finding]:
    if settings.socket.parsed.node_id is None:
        yield Finding(
            Severity.WARNING,
            "socket",
            f"any_node is on: node {offer.node_id} is trusted only because it answered at {settings.socket.address}",
        )
    else:
        yield Finding(
            Severity.OK, "socket", f"{offer.node_id} answers at {settings.socket.parsed.target}, offer signed"
        )
    try:
        check_method(offer, settings.payment.method)
    except WattlineError as error:
        yield _problem("method", error)
    tariff = offer.tariff
    words = (
        f"{sat(tariff.energy_msat_per_kwh)} per kWh, {sat(tariff.time_msat_per_hour)} per hour, "
        f"{sat(tariff.session_fee_msat)} per session"
    )
    try:
        check_prices(tariff, settings.limits.prices)
        yield Finding(Severity.OK, "price", words)
    except WattlineError as error:
        yield _problem("price", error)


def _history(memory: CableAggregateStore | None, node_id: str) -> Iterator[Finding]:
    """Whether the socket took more on-chain than was due before."""
    try:
        if memory is not None:
            check_honest(memory, node_id)
            owing = warning_of(memory, node_id)
            if owing is not None:
                yield Finding(Severity.WARNING, "history", owing)
    except WattlineError as error:
        yield _problem("history", error)


def _begins_onchain(settings: CableSettings, node: CableNode, offer: Offer) -> bool:
    """Whether a session would be paid on-chain from its beginning. Raises nothing: a node that fails is a problem of
    its own."""
    try:
        return choose_method(settings, node, offer) == "onchain"
    except WattlineError:
        return False


def _costs(settings: CableSettings, offer: Offer, outlet: OfferedOutlet, begins_onchain: bool) -> Iterator[Finding]:
    hour_msat = worth_msat(offer.tariff, outlet.max_power_mw, MS_PER_HOUR) + offer.tariff.session_fee_msat
    yield Finding(Severity.OK, "cost", f"an hour at rated power costs {sat(hour_msat)}")
    load = Load(offer.tariff, outlet.max_power_mw, outlet.max_power_mw, offer.tariff.session_fee_msat)
    wanted_msat = target_msat(load, Conditions(Latency.FIRST_MS, offer.statement_interval_ms))
    cap_msat, key = settings.limits.max_prepaid_msat, "max_prepaid_msat"
    if begins_onchain and offer.onchain is not None:
        cap_msat = (offer.onchain.floor_sat + settings.onchain.max_prepaid_sat) * MSAT_PER_SAT
        key = "onchain.max_prepaid_sat beside the floor"
    if cap_msat < wanted_msat:
        yield Finding(
            Severity.WARNING,
            "prepaid",
            f"at rated power up to {sat(wanted_msat)} would be kept paid in advance; {key} allows "
            f"{sat(cap_msat)}: the power may pause",
        )
    if begins_onchain:
        return
    if offer.credit_cap_msat and offer.credit_cap_msat < cap_msat:
        yield Finding(Severity.OK, "prepaid", f"the socket takes at most {sat(offer.credit_cap_msat)} in advance")
    if offer.min_increment_msat > settings.payment.max_increment_msat:
        yield Finding(
            Severity.WARNING,
            "payment",
            f"the socket wishes for payments of {sat(offer.min_increment_msat)}; max_increment_msat is "
            f"{sat(settings.payment.max_increment_msat)}",
        )


def _payment(
    settings: CableSettings,
    node: CableNode,
    offer: Offer,
    outlet: OfferedOutlet | None,
    info: NodeInfo | None,
    funds: PayingFunds,
) -> Iterator[Finding]:
    """By the configured method; with ``auto`` one way of paying is enough."""
    method = settings.payment.method
    if method == "keysend":
        yield from _ways(settings, node, offer, outlet, NOTHING_PAID)
        return
    onchain = _onchain(settings, offer, outlet, info, funds)
    otherwise = "nothing over Lightning; it begins on-chain" if onchain.severity is Severity.OK else NOTHING_PAID
    ways = [] if method == "onchain" else list(_ways(settings, node, offer, outlet, otherwise))
    if method == "auto" and onchain.severity is Severity.OK:
        ways = [replace(way, severity=min(way.severity, Severity.WARNING, key=_SEVERITY.index)) for way in ways]
    elif method == "auto" and all(way.severity is not Severity.PROBLEM for way in ways):
        onchain = replace(onchain, severity=Severity.WARNING)
    yield from ways
    yield onchain


def _onchain(
    settings: CableSettings,
    offer: Offer,
    outlet: OfferedOutlet | None,
    info: NodeInfo | None,
    funds: PayingFunds,
) -> Finding:
    try:
        rated_power_mw = outlet.max_power_mw if outlet is not None else 0
        limits = settings.limits
        scope = Scope.within(offer.tariff, rated_power_mw, limits.max_session_msat, limits.max_day_msat, None)
        chosen = check_onchain(settings.onchain.limits, funds, offer, info.blockheight if info else 0, scope)
    except WattlineError as error:
        return _problem("on-chain", error)
    count = len(chosen.outputs)
    return Finding(
        Severity.OK,
        "on-chain",
        f"{count} confirmed output{'' if count == 1 else 's'} of {chosen.funds_sat} sat; a session costs a miner fee "
        f"of about {chosen.fee_sat} sat and may come to {chosen.most_sat} sat",
    )


def _ways(
    settings: CableSettings, node: CableNode, offer: Offer, outlet: OfferedOutlet | None, without_channel: str
) -> Iterator[Finding]:
    """Over Lightning; ``without_channel``: what it means when there is none."""
    payment, caps = settings.payment, settings.limits.caps
    amount_msat = smallest_payment_msat(settings, offer)
    try:
        ways = ways_out(node, offer.node_id, amount_msat)
    except WattlineError as error:
        yield _problem("channel", error)
        return
    if not ways.channels:
        yield Finding(
            Severity.PROBLEM,
            "channel",
            f"no_channel: the node has no usable channel (open, peer connected): {without_channel}",
        )
        return
    try:
        if outlet is not None:
            check_keysend(settings.limits.caps, settings.payment.pace, offer, outlet.max_power_mw)
    except WattlineError as error:
        yield _problem("prepaid", error)
    kind = "a channel straight to the socket" if ways.direct else "no channel straight to the socket"
    reach = f"{kind}; one payment can carry up to {sat(ways.spendable_msat)}"
    if ways.spendable_msat >= amount_msat:
        yield Finding(Severity.OK, "channel", reach)
    else:
        yield Finding(
            Severity.PROBLEM, "channel", f"channel_too_small: {reach}, but the smallest payment is {sat(amount_msat)}"
        )
    if ways.least_msat > amount_msat:
        yield _minimum(settings, ways)
        amount_msat = ways.least_msat
        ways = ways_out(node, offer.node_id, amount_msat)
    yield _fee(ways, amount_msat, caps.maxfee_msat(amount_msat), payment.max_increment_msat, caps.max_fee_ppm)
    try:
        check_keeps(offer, settings.limits.prices)
    except WattlineError as error:
        yield _problem("refund", error)
        return
    if not node.takes_keysend():
        yield Finding(Severity.PROBLEM, "refund", KEYSEND_OFF)
    elif not can_come_back(ways.receivable_msat, offer):
        yield Finding(Severity.PROBLEM, "refund", f"{NO_WAY_BACK}: {owed(settings.limits.max_prepaid_msat)}")
    else:
        is_much = offer.min_refund_msat > settings.limits.max_prepaid_msat
        yield Finding(
            Severity.WARNING if is_much else Severity.OK,
            "refund",
            f"up to {sat(ways.receivable_msat)} can come back; the socket keeps less than {sat(offer.min_refund_msat)}"
            + (", so whatever is left of limits.max_prepaid_msat" if is_much else ""),
        )


def _minimum(settings: CableSettings, ways: WaysOut) -> Finding:
    least, most_msat = sat(ways.least_msat), largest_payment_msat(settings)
    if ways.least_msat <= most_msat:
        return Finding(
            Severity.WARNING, "channel", f"a channel on the way carries no less than {least}; no payment is smaller"
        )
    return Finding(
        Severity.PROBLEM,
        "channel",
        f"channel_minimum: a channel on the way carries no less than {least}, and max_increment_msat and "
        f"max_prepaid_msat allow {sat(most_msat)}",
    )


def _fee(ways: WaysOut, amount_msat: int, limit_msat: int, max_increment_msat: int, max_fee_ppm: int) -> Finding:
    fee_msat = ways.fee_msat
    if fee_msat is None:
        return Finding(
            Severity.PROBLEM, "route", f"no_route: for {sat(amount_msat)} none is found: {ways.no_route_reason}"
        )
    if fee_msat <= limit_msat:
        return Finding(Severity.OK, "route", f"a payment of {sat(amount_msat)} costs a fee of {sat(fee_msat)}")
    least_msat = -(-fee_msat * 1_000_000 // max_fee_ppm) if max_fee_ppm else None
    if least_msat is not None and least_msat <= max_increment_msat:
        return Finding(
            Severity.WARNING,
            "route",
            f"the fee is {sat(fee_msat)}: payments will be of about {sat(least_msat)} to keep within max_fee_ratio",
        )
    return Finding(
        Severity.PROBLEM,
        "route",
        f"fee_too_high: it is {sat(fee_msat)}; within max_fee_ratio no payment up to max_increment_msat can be made",
    )


def _problem(subject: str, error: WattlineError) -> Finding:
    return Finding(Severity.PROBLEM, subject, f"{error.code}: {error.message}")


def _meter(open_meter: MeterOpener, max_power_mw: int | None) -> Iterator[Finding]:
    try:
        meter = open_meter(max_power_mw)
        try:
            reading = meter.read()
        finally:
            meter.close()
    except WattlineError as error:
        yield _problem("meter", error)
        return
    yield Finding(
        Severity.OK,
        "meter",
        f"{power(reading.power_mw)}, {reading.voltage_mv / 1000:.2f} V, {reading.current_ma / 1000:.3f} A",
    )
