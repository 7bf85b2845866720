"""Whether a configuration can buy anything at all: looked at when it is read, so that it is not found out by paying.

Pure. The measure is the least that any socket wants: the smallest outlet, at the highest prices that the limits allow.
"""

from __future__ import annotations

from wattline.cable.budget import Spending, room
from wattline.cable.funding import INPUT_WEIGHT, OUTPUT_WEIGHT, fee_for
from wattline.cable.settings import CableSettings
from wattline.lightning.onchain import EMPTY_TX_WEIGHT
from wattline.payment.aggregate import MSAT_PER_SAT, SMALLEST_OUTPUT_SAT
from wattline.tariff import MAX_PRICE_MSAT, Tariff, worth_msat

SMALLEST_OUTLET_MW = 1_000
BEGIN_MS = 500
"""A socket wants credit for five meter intervals before it begins, which are of 100 ms unless it is told otherwise."""


def least_credit_msat(settings: CableSettings) -> int:
    """With less credit than this no socket begins, at the highest prices that ``settings`` allow."""
    limits = settings.limits
    tariff = Tariff.of(
        min(limits.max_price_msat_per_kwh, MAX_PRICE_MSAT),
        min(limits.max_time_price_msat_per_hour, MAX_PRICE_MSAT),
        min(limits.max_session_fee_msat, MAX_PRICE_MSAT),
    )
    return tariff.session_fee_msat + max(1, worth_msat(tariff, SMALLEST_OUTLET_MW, BEGIN_MS))


def why_never(settings: CableSettings) -> str | None:
    """Why nothing can be bought with ``settings``: the key and what is allowed; None when something can."""
    method = settings.payment.method
    by_lightning = _why_not_by_lightning(settings) if method != "onchain" else None
    by_chain = _why_not_onchain(settings) if method != "keysend" else None
    if method == "auto":
        return by_lightning if by_chain is not None else None
    return by_lightning or by_chain


def _why_not_by_lightning(settings: CableSettings) -> str | None:
    limits, payment, need_msat = settings.limits, settings.payment, least_credit_msat(settings)
    lost_msat = 0 if payment.max_increment_msat >= limits.max_prepaid_msat else payment.min_increment_msat - 1
    if limits.max_prepaid_msat - lost_msat < need_msat:
        return (
            "limits.max_prepaid_msat: at the highest prices that limits allow the smallest outlet wants"
            f" {need_msat} msat in advance, so {need_msat + lost_msat} or more (it is {limits.max_prepaid_msat})"
        )
    least_msat = max(need_msat, payment.min_increment_msat)
    nothing = Spending(0, 0, 0, 0, 0)
    if room(limits.caps, nothing).amount_msat < least_msat:
        most_msat = least_msat + limits.caps.maxfee_msat(least_msat)
        return (
            f"limits.max_session_msat: {least_msat} msat and their routing fee by limits.max_fee_ratio come to"
            f" {most_msat} msat, so that or more (it is {limits.max_session_msat})"
        )
    return None


def _why_not_onchain(settings: CableSettings) -> str | None:
    limits, onchain, need_msat = settings.limits, settings.onchain, least_credit_msat(settings)
    fee_sat = fee_for(EMPTY_TX_WEIGHT + INPUT_WEIGHT + 2 * OUTPUT_WEIGHT, onchain.min_feerate_per_kw)
    if fee_sat > onchain.max_fee_sat:
        return (
            f"onchain.max_fee_sat: the smallest transaction costs {fee_sat} sat at onchain.min_feerate_per_kw, so that"
            f" or more (it is {onchain.max_fee_sat})"
        )
    if (SMALLEST_OUTPUT_SAT + onchain.max_prepaid_sat) * MSAT_PER_SAT < need_msat:
        need_sat = -(-need_msat // MSAT_PER_SAT) - SMALLEST_OUTPUT_SAT
        return (
            f"onchain.max_prepaid_sat: at the highest prices that limits allow the smallest outlet wants {need_sat} sat"
            f" beside the floor, so that or more (it is {onchain.max_prepaid_sat})"
        )
    most_sat = limits.max_session_msat // MSAT_PER_SAT - fee_sat
    wasted_sat = fee_sat + max(0, SMALLEST_OUTPUT_SAT - most_sat)
    if most_sat <= 0 or wasted_sat > onchain.max_fee_ratio * most_sat or most_sat * MSAT_PER_SAT < need_msat:
        need_sat = max(SMALLEST_OUTPUT_SAT, int(fee_sat / onchain.max_fee_ratio) + 1, -(-need_msat // MSAT_PER_SAT))
        return (
            "limits.max_session_msat: by onchain.max_fee_ratio the smallest transaction, with a miner's fee of"
            f" {fee_sat} sat, is worth it for {(need_sat + fee_sat) * MSAT_PER_SAT} or more (it is"
            f" {limits.max_session_msat})"
        )
    return None
