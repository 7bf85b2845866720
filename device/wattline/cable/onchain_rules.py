"""The socket's rules for an aggregate, read off the wire and held against the cable's own limits."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.cable.settings import OnchainSettings
from wattline.errors import StopError
from wattline.payment.aggregate import SMALLEST_OUTPUT_SAT, OnchainRules
from wattline.v1 import charging_pb2 as pb

FEERATE_HEADROOM_PERCENT = 95
"""The node's estimate of a weight is never too low, so the true fee rate may be somewhat above the one aimed at: this
much of the socket's highest is aimed at at the most."""


class OnchainRefused(StopError):
    """The session cannot be paid on-chain, and nothing was handed over; the code says why."""


def rules_from(message: pb.OnchainRules) -> OnchainRules:
    """The rules as they stand there; :func:`check_rules` judges them."""
    return OnchainRules(
        floor_sat=message.floor_sat,
        credit_cap_sat=message.credit_cap_sat,
        exposure_cap_sat=message.exposure_cap_sat,
        min_feerate_per_kw=message.min_feerate_per_kw,
        max_feerate_per_kw=message.max_feerate_per_kw,
        max_age_s=message.max_age_s,
        input_confirmations=message.input_confirmations,
        max_inputs=message.max_inputs,
    )


@dataclass(frozen=True, slots=True)
class FeerateBounds:
    """Satoshi per 1000 weight units, both included."""

    lowest_per_kw: int
    highest_per_kw: int

    def clamp(self, feerate_per_kw: int) -> int:
        return min(max(feerate_per_kw, self.lowest_per_kw), self.highest_per_kw)


def check_rules(rules: OnchainRules, settings: OnchainSettings) -> FeerateBounds:
    """The fee rates that both sides take. Raises OnchainRefused ``onchain_floor_too_high``, ``onchain_rules_invalid``
    or ``onchain_feerate``."""
    if rules.floor_sat > settings.max_floor_sat:
        raise OnchainRefused(
            "onchain_floor_too_high",
            f"the socket wants {rules.floor_sat} sat on-chain in advance; the limit is {settings.max_floor_sat} sat "
            "(onchain.max_floor_sat)",
        )
    if rules.floor_sat < SMALLEST_OUTPUT_SAT or rules.max_inputs < 1:
        raise OnchainRefused("onchain_rules_invalid", f"no transaction can be made by the socket's rules: {rules}")
    if min(rules.exposure_cap_sat, rules.credit_cap_sat) < rules.floor_sat:
        raise OnchainRefused(
            "onchain_rules_invalid", f"the socket's caps are below its own floor of {rules.floor_sat} sat: {rules}"
        )
    lowest = max(rules.min_feerate_per_kw, settings.min_feerate_per_kw)
    highest = min(rules.max_feerate_per_kw, settings.max_feerate_per_kw)
    aimed = min(rules.max_feerate_per_kw * FEERATE_HEADROOM_PERCENT // 100, settings.max_feerate_per_kw)
    if lowest > highest:
        raise OnchainRefused(
            "onchain_feerate",
            f"no fee rate suits both: the socket takes {rules.min_feerate_per_kw} to {rules.max_feerate_per_kw} "
            f"sat/kw, the cable {settings.min_feerate_per_kw} to {settings.max_feerate_per_kw} sat/kw "
            "(onchain.min_feerate_per_kw, onchain.max_feerate_per_kw)",
        )
    return FeerateBounds(lowest, max(lowest, aimed))
