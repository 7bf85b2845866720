"""What a socket wants before it begins to deliver, held against the caps before a session is opened: what cannot begin
is not paid for first. Pure.

Whether a configuration can buy anything at all: looked at when it is read, so that it is not found out by paying.

Pure. The measure is the least that any socket wants, one that asks nothing for its energy; what the one at hand asks is
held against the same caps before a session is opened (:mod:`wattline.cable.policy.feasible`).
"""

from __future__ import annotations

from wattline.cable.link.offer import Offer, OfferError
from wattline.cable.policy.budget import Caps, Spending, room
from wattline.cable.policy.funding import INPUT_WEIGHT, OUTPUT_WEIGHT, Funding, Scope, fee_for
from wattline.cable.policy.onchain_limits import OnchainRefused
from wattline.cable.settings import CableSettings, OnchainSettings
from wattline.core.aggregate import MSAT_PER_SAT, SMALLEST_OUTPUT_SAT, OnchainRules
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


def check_keysend(settings: CableSettings, offer: Offer, rated_power_mw: int) -> None:
    """Whether a session paid over Lightning can begin. Raises OfferError ``prepaid_limit``, ``budget_spent``."""
    limits, payment = settings.limits, settings.payment
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
    caps = Caps(cap_msat, limits.max_session_msat, limits.max_day_msat, limits.caps.max_fee_ppm)
    if room(caps, NOTHING_SPENT).amount_msat < max(need_msat, payment.min_increment_msat):
        raise OfferError(
            "budget_spent",
            f"{wants}; with their routing fee (limits.max_fee_ratio) that is more than limits.max_session_msat, "
            f"{limits.max_session_msat} msat",
        )


def check_onchain_begins(chosen: Funding, rules: OnchainRules, settings: OnchainSettings, scope: Scope) -> None:
    """Whether a session that is paid on-chain from ``chosen`` can begin. Raises OnchainRefused ``prepaid_limit``."""
    need_sat = max(rules.floor_sat, -(-begin_msat(scope.tariff, scope.rated_power_mw) // MSAT_PER_SAT))
    caps = (
        (rules.floor_sat + settings.max_prepaid_sat, "the floor and onchain.max_prepaid_sat allow"),
        (min(rules.credit_cap_sat, rules.exposure_cap_sat), "its own caps allow"),
        (
            max(0, scope.budget_msat // MSAT_PER_SAT - chosen.fee_sat),
            f"less the miner's fee {scope.budget_name} allows",
        ),
        (chosen.most_sat, "the wallet's outputs hold"),
    )
    cap_sat, name = min(caps, key=lambda item: item[0])
    # The first version may pay the floor and max_increment_sat, whichever is more.
    first_sat = max(rules.floor_sat, settings.max_increment_sat)
    if cap_sat - unreachable_part(settings.min_increment_sat, first_sat, cap_sat) < need_sat:
        raise OnchainRefused(
            "prepaid_limit",
            f"the socket wants {need_sat} sat in advance (at least its floor of {rules.floor_sat} sat, and "
            f"{scope.tariff.session_fee_msat} msat for the session); {name} {cap_sat} sat",
        )


def why_never(settings: CableSettings) -> str | None:
    """Why nothing can be bought with ``settings``: the key and what is allowed; None when something can."""
    method = settings.payment.method
    by_lightning = _why_not_by_lightning(settings) if method != "onchain" else None
    by_chain = _why_not_onchain(settings) if method != "keysend" else None
    if method == "auto":
        return by_lightning if by_chain is not None else None
    return by_lightning or by_chain


def _why_not_by_lightning(settings: CableSettings) -> str | None:
    limits, least_msat = settings.limits, settings.payment.min_increment_msat
    if room(limits.caps, NOTHING_SPENT).amount_msat >= least_msat:
        return None
    most_msat = least_msat + limits.caps.maxfee_msat(least_msat)
    return (
        f"limits.max_session_msat: the smallest payment and its routing fee by limits.max_fee_ratio come to {most_msat}"
        f" msat, so that or more (it is {limits.max_session_msat})"
    )


def _why_not_onchain(settings: CableSettings) -> str | None:
    limits, onchain = settings.limits, settings.onchain
    fee_sat = fee_for(EMPTY_TX_WEIGHT + INPUT_WEIGHT + 2 * OUTPUT_WEIGHT, onchain.min_feerate_per_kw)
    if fee_sat > onchain.max_fee_sat:
        return (
            f"onchain.max_fee_sat: the smallest transaction costs {fee_sat} sat at onchain.min_feerate_per_kw, so that"
            f" or more (it is {onchain.max_fee_sat})"
        )
    most_sat = limits.max_session_msat // MSAT_PER_SAT - fee_sat
    wasted_sat = fee_sat + max(0, SMALLEST_OUTPUT_SAT - most_sat)
    if most_sat <= 0 or wasted_sat > onchain.max_fee_ratio * most_sat:
        need_sat = max(SMALLEST_OUTPUT_SAT, int(fee_sat / onchain.max_fee_ratio) + 1)
        return (
            "limits.max_session_msat: by onchain.max_fee_ratio the smallest transaction, with a miner's fee of"
            f" {fee_sat} sat, is worth it for {(need_sat + fee_sat) * MSAT_PER_SAT} or more (it is"
            f" {limits.max_session_msat})"
        )
    return None
