"""Whether a configuration can buy anything at all: looked at when it is read, so that it is not found out by paying.

Pure. The measure is the least that any socket wants, one that asks nothing for its energy; what the one at hand asks is
held against the same caps before a session is opened (:mod:`wattline.cable.beginning`).
"""

from __future__ import annotations

from wattline.cable.beginning import NOTHING_SPENT
from wattline.cable.budget import room
from wattline.cable.funding import INPUT_WEIGHT, OUTPUT_WEIGHT, fee_for
from wattline.cable.settings import CableSettings
from wattline.lightning.onchain import EMPTY_TX_WEIGHT
from wattline.payment.aggregate import MSAT_PER_SAT, SMALLEST_OUTPUT_SAT


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
