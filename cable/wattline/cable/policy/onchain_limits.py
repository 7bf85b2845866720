"""How much may be paid on-chain: the caps of both sides, in whole satoshi. Pure.

The socket's rules for an aggregate, read off the wire and held against the cable's own limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.cable.policy.account import Account
from wattline.cable.policy.budget import Bound, Room
from wattline.cable.policy.events import OnchainTerms
from wattline.cable.policy.rhythm import Pace
from wattline.cable.settings import OnchainSettings
from wattline.core.aggregate import MSAT_PER_SAT, SMALLEST_OUTPUT_SAT, OnchainRules
from wattline.core.errors import StopError
from wattline.v1 import charging_pb2 as pb


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A version that is to be signed, by what it pays in all: whatever the socket says of earlier ones does
    not change that."""

    value_sat: int
    most_sat: int
    """The largest value that the cable's own caps allow any version now; whoever signs holds the value against it."""


@dataclass(frozen=True, slots=True)
class OnchainLimits:
    """Of one session. Together they hold what the socket could have, refused versions included, to what it has
    delivered for, the floor and max_prepaid_sat; what was prepaid over Lightning before is used up first, and has its
    own cap."""

    terms: OnchainTerms
    settings: OnchainSettings
    max_session_msat: int
    max_day_msat: int

    @property
    def max_prepaid_msat(self) -> int:
        """The floor, which the first version pays in advance, and max_prepaid_sat beside it."""
        return (self.terms.floor_sat + self.settings.max_prepaid_sat) * MSAT_PER_SAT

    def pace(self, account: Account) -> Pace:
        """The first version pays the floor at least."""
        return self.settings.pace(0 if account.onchain_settled_msat else self.terms.floor_sat)

    def ceiling(self, account: Account, charged_low_msat: int, day_msat: int) -> Room:
        """The largest value of any version now (msat, 0 when none may be signed), and the cap that says so. Nothing
        that the socket says of versions is in it: they take each other's place, so a larger one needs no more room by
        what the smaller ones paid.

        ``charged_low_msat`` is the charge as far as the cable believes it, ``day_msat`` what left or may leave the
        wallet within a day."""
        owed_msat = max(0, charged_low_msat - account.keysend_handed_over_msat)
        # What was sent has the miner's fee in it; routing fees there are none.
        besides_msat = account.sent_msat - account.onchain_exposed_msat
        # Of a session older than a day, what was paid before counts no more.
        day_besides_msat = max(day_msat - account.onchain_exposed_msat, -account.onchain_handed_over_msat)
        ceilings = (
            Room(owed_msat + self.max_prepaid_msat, Bound.PREPAID),
            Room(self.max_session_msat - besides_msat, Bound.SESSION),
            Room(self.max_day_msat - day_besides_msat, Bound.DAY),
        )
        lowest = min(ceilings, key=lambda item: item.amount_msat)
        return Room(max(0, lowest.amount_msat), lowest.bound)

    def room(self, account: Account, charged_low_msat: int, day_msat: int) -> Room:
        """By how much the value may grow now, by the same figures."""
        handed_over_msat = account.onchain_handed_over_msat
        ceiling = self.ceiling(account, charged_low_msat, day_msat)
        by_cable = Room(max(0, ceiling.amount_msat - handed_over_msat), ceiling.bound)
        # The socket's cap is on all unused credit, whatever it was paid by.
        unused_msat = account.handed_over_msat - charged_low_msat
        by_socket = Room(max(0, self.terms.credit_cap_sat * MSAT_PER_SAT - unused_msat), Bound.PREPAID)
        by_value = Room(max(0, self.terms.most_sat * MSAT_PER_SAT - handed_over_msat), Bound.EXPOSURE)
        return min(by_cable, by_socket, by_value, key=lambda item: item.amount_msat)

    def version(self, account: Account, amount_msat: int, charged_low_msat: int, day_msat: int) -> WantedVersion:
        """The one that pays ``amount_msat`` more than what is handed over; by the same figures."""
        most_sat = self.ceiling(account, charged_low_msat, day_msat).amount_msat // MSAT_PER_SAT
        return WantedVersion((account.onchain_handed_over_msat + amount_msat) // MSAT_PER_SAT, most_sat)


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
