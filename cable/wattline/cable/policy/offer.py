"""What a socket offers, and whether the cable takes it. Pure.

The order of the checks is the order in which a person would want to hear of what is wrong. What a socket wants before
it begins to deliver is held against the caps before a session is opened: what cannot begin is not paid for first.

Whether a configuration can buy anything at all is looked at when it is read, so that it is not found out by paying. The
measure is the least that any socket wants, one that asks nothing for its energy.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.cable.policy.budget import Caps, Spending, room
from wattline.cable.policy.events import (
    METHODS,
)
from wattline.cable.policy.onchain import (
    INPUT_WEIGHT,
    OUTPUT_WEIGHT,
    ChosenInputs,
    OnchainLimits,
    OnchainRefused,
    Scope,
    fee_for,
)
from wattline.cable.policy.reconciliation import Tolerance
from wattline.cable.policy.rhythm import (
    Pace,
)
from wattline.core.aggregate import MSAT_PER_SAT, SMALLEST_OUTPUT_SAT, OnchainRules
from wattline.core.errors import StopError
from wattline.core.lightning.onchain import EMPTY_TX_WEIGHT
from wattline.core.tariff import Tariff, worth_msat

BEGIN_MS = 500
"""A socket wants credit for five meter intervals before it begins, which are of 100 ms unless it is told otherwise."""
NOTHING_SPENT = Spending(0, 0, 0, 0, 0)


def begin_msat(tariff: Tariff, rated_power_mw: int) -> int:
    """The credit with which a session begins: the session fee, and BEGIN_MS at rated power."""
    return tariff.session_fee_msat + max(1, worth_msat(tariff, rated_power_mw, BEGIN_MS))


def unreachable_part(min_increment: int, max_increment: int, cap: int) -> int:
    """What of ``cap`` may stay out of reach, because no payment is smaller than ``min_increment``; 0 where one payment
    can reach all of it."""
    return 0 if max_increment >= cap else min_increment - 1


def check_keysend(limits: Caps, payment: Pace, offer: Offer, rated_power_mw: int) -> None:
    """Whether a session paid over Lightning can begin. Raises OfferError ``prepaid_limit``, ``budget_spent``."""
    need_msat = begin_msat(offer.tariff, rated_power_mw)
    wants = f"the socket wants {need_msat} msat in advance ({offer.tariff.session_fee_msat} msat of it for the session)"
    cap_msat, name = limits.max_prepaid_msat, "limits.max_prepaid_msat"
    if 0 < offer.credit_cap_msat < cap_msat:
        cap_msat, name = offer.credit_cap_msat, "its own cap on unused credit"
    if payment.min_increment_msat > cap_msat:
        raise OfferError(
            "prepaid_limit",
            f"payments of payment.min_increment_msat, {payment.min_increment_msat} msat, or more; "
            f"{name} allows {cap_msat} msat",
        )
    lost_msat = unreachable_part(payment.min_increment_msat, payment.max_increment_msat, cap_msat)
    if cap_msat - lost_msat < need_msat:
        steps = f", in payments of {payment.min_increment_msat} msat or more" if lost_msat else ""
        raise OfferError("prepaid_limit", f"{wants}; {name} allows {cap_msat} msat{steps}")
    caps = Caps(cap_msat, limits.max_session_msat, limits.max_day_msat, limits.max_fee_ppm)
    if room(caps, NOTHING_SPENT).amount_msat < max(need_msat, payment.min_increment_msat):
        raise OfferError(
            "budget_spent",
            f"{wants}; with their routing fee (limits.max_fee_ratio) that is more than limits.max_session_msat, "
            f"{limits.max_session_msat} msat",
        )


def check_onchain_begins(chosen: ChosenInputs, rules: OnchainRules, limits: OnchainLimits, scope: Scope) -> None:
    """Whether a session that is paid on-chain from ``chosen`` can begin. Raises OnchainRefused ``prepaid_limit``."""
    need_sat = max(rules.floor_sat, -(-begin_msat(scope.tariff, scope.rated_power_mw) // MSAT_PER_SAT))
    caps = (
        (rules.floor_sat + limits.max_prepaid_sat, "the floor and onchain.max_prepaid_sat allow"),
        (min(rules.credit_cap_sat, rules.exposure_cap_sat), "its own caps allow"),
        (
            max(0, scope.budget_msat // MSAT_PER_SAT - chosen.fee_sat),
            f"less the miner's fee {scope.budget_name} allows",
        ),
        (chosen.most_sat, "the wallet's outputs hold"),
    )
    cap_sat, name = min(caps, key=lambda item: item[0])
    # The first version may pay the floor and max_increment_sat, whichever is more.
    first_sat = max(rules.floor_sat, limits.max_increment_sat)
    if cap_sat - unreachable_part(limits.min_increment_sat, first_sat, cap_sat) < need_sat:
        raise OnchainRefused(
            "prepaid_limit",
            f"the socket wants {need_sat} sat in advance (at least its floor of {rules.floor_sat} sat, and "
            f"{scope.tariff.session_fee_msat} msat for the session); {name} {cap_sat} sat",
        )


def why_never(method: str, caps: Caps, pace: Pace, onchain: OnchainLimits) -> str | None:
    """Why nothing can be bought with such a configuration: the key and what is allowed; None when something can.
    ``method`` is ``keysend``, ``onchain`` or ``auto``."""
    by_lightning = _why_not_by_lightning(caps, pace.min_increment_msat) if method != "onchain" else None
    by_chain = _why_not_onchain(caps.max_session_msat, onchain) if method != "keysend" else None
    if method == "auto":
        return by_lightning if by_chain is not None else None
    return by_lightning or by_chain


def _why_not_by_lightning(caps: Caps, least_msat: int) -> str | None:
    if room(caps, NOTHING_SPENT).amount_msat >= least_msat:
        return None
    most_msat = least_msat + caps.maxfee_msat(least_msat)
    return (
        f"limits.max_session_msat: the smallest payment and its routing fee by limits.max_fee_ratio come to {most_msat}"
        f" msat, so that or more (it is {caps.max_session_msat})"
    )


def _why_not_onchain(max_session_msat: int, onchain: OnchainLimits) -> str | None:
    fee_sat = fee_for(EMPTY_TX_WEIGHT + INPUT_WEIGHT + 2 * OUTPUT_WEIGHT, onchain.min_feerate_per_kw)
    if fee_sat > onchain.max_fee_sat:
        return (
            f"onchain.max_fee_sat: the smallest transaction costs {fee_sat} sat at onchain.min_feerate_per_kw, so that"
            f" or more (it is {onchain.max_fee_sat})"
        )
    most_sat = max_session_msat // MSAT_PER_SAT - fee_sat
    wasted_sat = fee_sat + max(0, SMALLEST_OUTPUT_SAT - most_sat)
    if most_sat <= 0 or wasted_sat > onchain.max_fee_ratio * most_sat:
        need_sat = max(SMALLEST_OUTPUT_SAT, int(fee_sat / onchain.max_fee_ratio) + 1)
        return (
            "limits.max_session_msat: by onchain.max_fee_ratio the smallest transaction, with a miner's fee of"
            f" {fee_sat} sat, is worth it for {(need_sat + fee_sat) * MSAT_PER_SAT} or more (it is"
            f" {max_session_msat})"
        )
    return None


LONGEST_VALID_S = 86_400
"""No offer is made for longer."""


class OfferError(StopError):
    """An offer that the cable does not take; the code says why."""


@dataclass(frozen=True, slots=True)
class OfferedOutlet:
    outlet_id: str
    max_power_mw: int
    available: bool
    unavailable_reason: str


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer whose signature, certificate and nonce have been checked. The nonce makes it fresh: that it has ended by
    some clock means nothing."""

    node_id: str
    network: str
    tariff: Tariff
    outlets: tuple[OfferedOutlet, ...]
    methods: tuple[str, ...]
    expires_at: int
    """Unix seconds by the socket's clock."""
    credit_cap_msat: int
    min_increment_msat: int
    statement_interval_ms: int
    pause_max_s: int
    open_timeout_s: int
    cable_lost_s: int
    min_refund_msat: int
    onchain: OnchainRules | None = None
    """None when it takes nothing on-chain."""


def clocks_apart(offer: Offer, now_s: float) -> str | None:
    """For people, when the socket's clock and this machine's cannot both be right; None when they may be."""
    apart_s = int(now_s) - offer.expires_at
    if apart_s > 0:
        return f"this machine's clock is at least {apart_s} s ahead of the socket's"
    if -apart_s > LONGEST_VALID_S:
        return f"this machine's clock is at least {-apart_s - LONGEST_VALID_S} s behind the socket's"
    return None


@dataclass(frozen=True, slots=True)
class PriceLimits:
    """The highest prices that the cable agrees to, and how much unused credit a socket may keep."""

    max_price_msat_per_kwh: int
    max_time_price_msat_per_hour: int
    max_session_fee_msat: int
    most_kept_msat: int


def check_prices(tariff: Tariff, limits: PriceLimits) -> None:
    """Raises OfferError ``price_too_high`` naming both prices."""
    for what, unit, asked, limit, key in (
        ("energy", "msat/kWh", tariff.energy_msat_per_kwh, limits.max_price_msat_per_kwh, "max_price_msat_per_kwh"),
        (
            "time",
            "msat/h",
            tariff.time_msat_per_hour,
            limits.max_time_price_msat_per_hour,
            "max_time_price_msat_per_hour",
        ),
        ("a session", "msat", tariff.session_fee_msat, limits.max_session_fee_msat, "max_session_fee_msat"),
    ):
        if asked > limit:
            raise OfferError(
                "price_too_high", f"the socket asks {asked} {unit} for {what}; the limit is {limit} {unit} ({key})"
            )


def check_keeps(offer: Offer, limits: PriceLimits) -> None:
    """Raises OfferError ``socket_keeps_too_much`` naming both amounts."""
    if offer.min_refund_msat > limits.most_kept_msat:
        raise OfferError(
            "socket_keeps_too_much",
            f"the socket keeps unused credit below {offer.min_refund_msat} msat; the limit is {limits.most_kept_msat} "
            "msat (max_kept_msat; where it is left out it follows from max_prepaid_msat)",
        )


def choose_outlet(offer: Offer, wanted: str | None) -> OfferedOutlet:
    """The outlet to use. Raises OfferError ``unknown_outlet``, ``outlet_busy`` or ``outlet_faulted``."""
    if wanted is None:
        for outlet in offer.outlets:
            if outlet.available:
                return outlet
        reasons = ", ".join(f"{o.outlet_id}: {o.unavailable_reason or 'busy'}" for o in offer.outlets) or "it has none"
        raise OfferError("outlet_busy", f"no outlet of the socket is available ({reasons})")
    for outlet in offer.outlets:
        if outlet.outlet_id == wanted:
            if not outlet.available:
                reason = outlet.unavailable_reason or "busy"
                raise OfferError("outlet_busy", f"outlet {wanted} is not available: {reason}")
            return outlet
    known = ", ".join(o.outlet_id for o in offer.outlets) or "none"
    raise OfferError("unknown_outlet", f"the socket has no outlet {wanted!r}; it has: {known}")


def check_method(offer: Offer, method: str) -> None:
    """``method`` as in the configuration. Raises OfferError ``method_not_supported``."""
    wanted = METHODS if method == "auto" else (method,)
    if not any(name in offer.methods for name in wanted):
        if not offer.methods:
            raise OfferError(
                "method_not_supported",
                "the socket's node can take no payments just now; its operator sees why in wattline-status",
            )
        raise OfferError(
            "method_not_supported", f"the socket takes {', '.join(offer.methods) or 'no known method'}, not {method}"
        )


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What a session was opened under."""

    session_id: str
    node_id: str
    outlet_id: str
    tariff: Tariff
    rated_power_mw: int
    credit_cap_msat: int
    """Of the socket; 0 when it names none."""
    statement_interval_ms: int
    min_increment_msat: int
    min_refund_msat: int
    """Unused credit below this the socket keeps."""


@dataclass(frozen=True, slots=True)
class BuyerLimits:
    """What the configuration allows."""

    caps: Caps
    pace: Pace
    """Over Lightning."""
    tolerance: Tolerance
    max_failures_in_a_row: int
    """After so many failed payments the session ends."""
    min_voltage_mv: int
    """Below this on the own meter nothing is delivered."""
