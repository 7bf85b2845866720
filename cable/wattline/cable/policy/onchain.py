"""What the cable decides on-chain: how much may be paid by the caps of both sides, which outputs of the wallet pay for
a session, at which miner fee, and whether that is worth it. In whole satoshi. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wattline.cable.policy.budget import Bound, PaymentAccount, Room
from wattline.cable.policy.events import FinalDue, OnchainTerms, WantedVersion
from wattline.cable.policy.rhythm import Pace
from wattline.core.aggregate import MSAT_PER_SAT, SMALLEST_OUTPUT_SAT, OnchainRules, final_value_sat
from wattline.core.errors import StopError
from wattline.core.lightning.onchain import EMPTY_TX_WEIGHT, WalletOutput
from wattline.core.tariff import Tariff, lasts_ms, worth_msat
from wattline.core.version_check import WEIGHT_PER_VBYTE


@dataclass(frozen=True, slots=True)
class OnchainLimits:
    """What the configuration allows a session that is paid on-chain; each field as in :data:`onchain` of cable.toml."""

    max_prepaid_sat: int
    max_floor_sat: int
    min_increment_sat: int
    max_increment_sat: int
    pace_ms: int
    min_feerate_per_kw: int
    max_feerate_per_kw: int
    max_fee_ratio: float
    max_fee_sat: int
    min_confirmations: int

    def pace(self, floor_sat: int = 0) -> Pace:
        """In whole sats; ``floor_sat`` for the first version, which pays that much at least."""
        least_sat = max(self.min_increment_sat, floor_sat)
        most_sat = max(self.max_increment_sat, least_sat)
        return Pace(least_sat * MSAT_PER_SAT, most_sat * MSAT_PER_SAT, 1, self.pace_ms, MSAT_PER_SAT)


@dataclass(frozen=True, slots=True)
class OnchainBudget:
    """Of one session. Together they hold what the socket could have, refused versions included, to what it has
    delivered for, the floor and max_prepaid_sat; what was prepaid over Lightning before is used up first, and has its
    own cap."""

    terms: OnchainTerms
    limits: OnchainLimits
    max_session_msat: int
    max_day_msat: int

    @property
    def max_prepaid_msat(self) -> int:
        """The floor, which the first version pays in advance, and max_prepaid_sat beside it."""
        return (self.terms.floor_sat + self.limits.max_prepaid_sat) * MSAT_PER_SAT

    def pace(self, account: PaymentAccount) -> Pace:
        """The first version pays the floor at least."""
        return self.limits.pace(0 if account.onchain_settled_msat else self.terms.floor_sat)

    def ceiling(self, account: PaymentAccount, charged_low_msat: int, day_msat: int) -> Room:
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

    def room(self, account: PaymentAccount, charged_low_msat: int, day_msat: int) -> Room:
        """By how much the value may grow now, by the same figures."""
        handed_over_msat = account.onchain_handed_over_msat
        ceiling = self.ceiling(account, charged_low_msat, day_msat)
        by_cable = Room(max(0, ceiling.amount_msat - handed_over_msat), ceiling.bound)
        # The socket's cap is on all unused credit, whatever it was paid by.
        unused_msat = account.handed_over_msat - charged_low_msat
        by_socket = Room(max(0, self.terms.credit_cap_sat * MSAT_PER_SAT - unused_msat), Bound.PREPAID)
        by_value = Room(max(0, self.terms.most_sat * MSAT_PER_SAT - handed_over_msat), Bound.EXPOSURE)
        return min(by_cable, by_socket, by_value, key=lambda item: item.amount_msat)

    def version(self, account: PaymentAccount, amount_msat: int, charged_low_msat: int, day_msat: int) -> WantedVersion:
        """The one that pays ``amount_msat`` more than what is handed over; by the same figures."""
        most_sat = self.ceiling(account, charged_low_msat, day_msat).amount_msat // MSAT_PER_SAT
        return WantedVersion((account.onchain_handed_over_msat + amount_msat) // MSAT_PER_SAT, most_sat)


FEERATE_HEADROOM_PERCENT = 95
"""The node's estimate of a weight is never too low, so the true fee rate may be somewhat above the one aimed at: this
much of the socket's highest is aimed at at the most."""


class OnchainRefused(StopError):
    """The session cannot be paid on-chain, and nothing was handed over; the code says why."""


@dataclass(frozen=True, slots=True)
class FeerateBounds:
    """Satoshi per 1000 weight units, both included."""

    lowest_per_kw: int
    highest_per_kw: int

    def clamp(self, feerate_per_kw: int) -> int:
        return min(max(feerate_per_kw, self.lowest_per_kw), self.highest_per_kw)


def check_rules(rules: OnchainRules, limits: OnchainLimits) -> FeerateBounds:
    """The fee rates that both sides take. Raises OnchainRefused ``onchain_floor_too_high``, ``onchain_rules_invalid``
    or ``onchain_feerate``."""
    if rules.floor_sat > limits.max_floor_sat:
        raise OnchainRefused(
            "onchain_floor_too_high",
            f"the socket wants {rules.floor_sat} sat on-chain in advance; the limit is {limits.max_floor_sat} sat "
            "(onchain.max_floor_sat)",
        )
    if rules.floor_sat < SMALLEST_OUTPUT_SAT or rules.max_inputs < 1:
        raise OnchainRefused("onchain_rules_invalid", f"no transaction can be made by the socket's rules: {rules}")
    if min(rules.exposure_cap_sat, rules.credit_cap_sat) < rules.floor_sat:
        raise OnchainRefused(
            "onchain_rules_invalid", f"the socket's caps are below its own floor of {rules.floor_sat} sat: {rules}"
        )
    lowest = max(rules.min_feerate_per_kw, limits.min_feerate_per_kw)
    highest = min(rules.max_feerate_per_kw, limits.max_feerate_per_kw)
    aimed = min(rules.max_feerate_per_kw * FEERATE_HEADROOM_PERCENT // 100, limits.max_feerate_per_kw)
    if lowest > highest:
        raise OnchainRefused(
            "onchain_feerate",
            f"no fee rate suits both: the socket takes {rules.min_feerate_per_kw} to {rules.max_feerate_per_kw} "
            f"sat/kw, the cable {limits.min_feerate_per_kw} to {limits.max_feerate_per_kw} sat/kw "
            "(onchain.min_feerate_per_kw, onchain.max_feerate_per_kw)",
        )
    return FeerateBounds(lowest, max(lowest, aimed))


INPUT_WEIGHT = 272
"""Of a P2WPKH input with its witness, the heaviest of the kinds that the wallet gives; a P2TR input weighs 230."""
OUTPUT_WEIGHT = 172
"""Of a P2TR output: value, length, 34 bytes of script."""
SESSION_LIMIT = "limits.max_session_msat"
DAY_LIMIT = "limits.max_day_msat"


@dataclass(frozen=True, slots=True)
class Scope:
    """How much a session may come to, and what says so."""

    tariff: Tariff
    rated_power_mw: int
    budget_msat: int
    """What may leave the wallet for it, the miner's fee included."""
    for_ms: int | None = None
    """How long it will last at the most; None when that is open."""
    budget_name: str = SESSION_LIMIT
    """What the budget follows from."""

    @classmethod
    def within(cls, tariff: Tariff, rated_power_mw: int, session_msat: int, day_msat: int, for_ms: int | None) -> Scope:
        """By what is left of the limits on a session and on a day."""
        name = SESSION_LIMIT if session_msat <= day_msat else DAY_LIMIT
        return cls(tariff, rated_power_mw, max(0, min(session_msat, day_msat)), for_ms, name)

    @property
    def charge_msat(self) -> int | None:
        """The most that it can be charged; None when its end is open."""
        if self.for_ms is None:
            return None
        return worth_msat(self.tariff, self.rated_power_mw, self.for_ms) + self.tariff.session_fee_msat

    def most_sat(self, rules: OnchainRules, fee_sat: int) -> int:
        """The largest value that the session can need, rounded up to whole sats; what the wallet holds is another
        matter."""
        return self.bound(rules, fee_sat)[0]

    def bound(self, rules: OnchainRules, fee_sat: int) -> tuple[int, str]:
        """The same, and what says that it is not more."""
        bounds = [
            (max(0, self.budget_msat // MSAT_PER_SAT - fee_sat), f"{self.budget_name}, the miner's fee included"),
            (rules.exposure_cap_sat, "the socket's exposure cap"),
        ]
        if self.charge_msat is not None:
            bounds.append(
                (-(-self.charge_msat // MSAT_PER_SAT), f"its length of {(self.for_ms or 0) // 1000} s (--for)")
            )
        return min(bounds, key=lambda item: item[0])


@dataclass(frozen=True, slots=True)
class ChosenInputs:
    """What was chosen."""

    outputs: tuple[WalletOutput, ...]
    fee_sat: int
    feerate_per_kw: int
    """What was aimed at."""

    @property
    def funds_sat(self) -> int:
        return sum(output.value_sat for output in self.outputs)

    @property
    def most_sat(self) -> int:
        """The largest value that a version can have: something is always left for change."""
        return self.funds_sat - self.fee_sat - SMALLEST_OUTPUT_SAT

    def weighed(self, inputs_weight: int, script: str) -> ChosenInputs:
        """With the fee for what the inputs really weigh and for the socket's own script."""
        weight = inputs_weight + OUTPUT_WEIGHT + WEIGHT_PER_VBYTE * (9 + len(script) // 2)
        return replace(self, fee_sat=fee_for(weight, self.feerate_per_kw))


def fee_for(weight: int, feerate_per_kw: int) -> int:
    """The miner's fee, rounded up, at least 1 sat for every (whole) virtual byte: what the network relays."""
    vsize = -(-weight // WEIGHT_PER_VBYTE)
    return max(-(-vsize * WEIGHT_PER_VBYTE * feerate_per_kw // 1000), vsize)


def fund(
    outputs: Sequence[WalletOutput],
    height: int,
    feerate_per_kw: int,
    rules: OnchainRules,
    limits: OnchainLimits,
    scope: Scope,
) -> ChosenInputs:
    """Choose inputs for a session within ``scope``: confirmed ones, the fewest that are enough for all that it may come
    to, of those the smallest sum; where nothing is enough, the largest, and their value then bounds the session.

    ``height`` is that of the chain, ``feerate_per_kw`` the node's own estimate: what is aimed at, or the lowest that
    both sides take, whichever is higher, and nothing above. Raises OnchainRefused ``no_onchain_funds``,
    ``onchain_fee_too_high``, ``onchain_not_worth``, and as :func:`check_rules`.
    """
    bounds = check_rules(rules, limits)
    chosen = _choose(outputs, height, bounds.clamp(feerate_per_kw), rules, limits, scope)
    check_worth(chosen, rules, limits, scope)
    return chosen


def _choose(
    outputs: Sequence[WalletOutput],
    height: int,
    feerate_per_kw: int,
    rules: OnchainRules,
    limits: OnchainLimits,
    scope: Scope,
) -> ChosenInputs:
    confirmations = max(limits.min_confirmations, rules.input_confirmations)
    usable = [item for item in outputs if 0 < item.blockheight <= height - confirmations + 1]
    usable.sort(key=lambda item: (-item.value_sat, item.outpoint))
    best: ChosenInputs | None = None
    for count in range(1, min(rules.max_inputs, len(usable)) + 1):
        fee_sat = fee_for(EMPTY_TX_WEIGHT + count * INPUT_WEIGHT + 2 * OUTPUT_WEIGHT, feerate_per_kw)
        if count > 1 and fee_sat > limits.max_fee_sat:
            break  # what one or some hold bounds the session then
        largest = ChosenInputs(tuple(usable[:count]), fee_sat, feerate_per_kw)
        check_fee(largest, limits)
        if largest.most_sat >= max(scope.most_sat(rules, fee_sat), rules.floor_sat):
            wanted_sat = max(scope.most_sat(rules, fee_sat), rules.floor_sat) + fee_sat + SMALLEST_OUTPUT_SAT
            return replace(largest, outputs=_smaller(usable, count, wanted_sat))
        if best is None or largest.most_sat > best.most_sat:
            best = largest
    if best is None:
        raise OnchainRefused(
            "no_onchain_funds",
            f"the node's wallet has no free output with {confirmations} confirmations, so nothing can be paid on-chain;"
            " send some to an address of `lightning-cli newaddr` and wait for a block",
        )
    if best.most_sat < rules.floor_sat:
        raise OnchainRefused(
            "no_onchain_funds",
            f"the wallet's {len(best.outputs)} largest free outputs hold {best.funds_sat} sat; the socket's floor of "
            f"{rules.floor_sat} sat, a fee of {best.fee_sat} sat and change of {SMALLEST_OUTPUT_SAT} sat need more",
        )
    return best


def _smaller(usable: list[WalletOutput], count: int, wanted_sat: int) -> tuple[WalletOutput, ...]:
    """``count`` of the outputs (largest first) that are still enough: each of the largest is exchanged for the smallest
    one with which the sum stays large enough."""
    chosen = list(usable[:count])
    spare = list(usable[count:])
    for place in range(count):
        total_sat = sum(item.value_sat for item in chosen)
        for candidate in reversed(spare):
            if total_sat - chosen[place].value_sat + candidate.value_sat >= wanted_sat:
                spare.remove(candidate)
                chosen[place] = candidate
                break
    return tuple(chosen)


def check_fee(chosen: ChosenInputs, limits: OnchainLimits) -> None:
    """The miner's fee is lost to whatever session, so it has a limit of its own. Raises OnchainRefused
    ``onchain_fee_too_high``."""
    if chosen.fee_sat > limits.max_fee_sat:
        raise OnchainRefused(
            "onchain_fee_too_high",
            f"a miner fee of {chosen.fee_sat} sat, at {chosen.feerate_per_kw} sat/kw, exceeds {limits.max_fee_sat} "
            "sat (onchain.max_fee_sat)",
        )


def check_worth(chosen: ChosenInputs, rules: OnchainRules, limits: OnchainLimits, scope: Scope) -> None:
    """What a session costs besides its energy, the miner's fee and what the floor exceeds the energy by, must stay
    within max_fee_ratio of the most that it can come to. Raises OnchainRefused ``onchain_not_worth``."""
    fee_sat, ratio = chosen.fee_sat, limits.max_fee_ratio
    most_sat, name = min(
        scope.bound(rules, fee_sat), (chosen.most_sat, "what the wallet's outputs hold"), key=lambda item: item[0]
    )
    wasted_sat = fee_sat + max(0, rules.floor_sat - most_sat)
    if most_sat > 0 and wasted_sat <= ratio * most_sat:
        return
    need_sat = max(rules.floor_sat, _ceil(fee_sat / ratio))
    lasts_s = lasts_ms(scope.tariff, need_sat * MSAT_PER_SAT, scope.rated_power_mw) // 1000 + 1
    raise OnchainRefused(
        "onchain_not_worth",
        f"a miner fee of {fee_sat} sat, for a session that comes to {most_sat} sat at the most (by {name}) "
        f"and pays {rules.floor_sat} sat at the least, exceeds {ratio:g} of it (onchain.max_fee_ratio); worth it is a "
        f"session that may come to {need_sat} sat ({lasts_s} s at rated power)",
    )


def _ceil(value: float) -> int:
    whole = int(value)
    return whole if whole == value else whole + 1


@dataclass(frozen=True, slots=True)
class FinalKnown:
    """What the cable knows itself."""

    is_trusted: bool
    """The socket's account was true so far."""
    floor_sat: int
    handed_over_sat: int
    """The largest value that the socket may hold."""
    keysend_msat: int
    """Surely arrived over Lightning."""
    most_charge_msat: int
    """The highest charge that an honest meter can have come to."""


def refusal_of(due: FinalDue, known: FinalKnown) -> str | None:
    """Why such a version is not signed, in one line; None when it is."""
    if not known.is_trusted:
        return "the socket's account was wrong before"
    if due.charged_msat > known.most_charge_msat:
        return (
            f"the socket charges {due.charged_msat} msat; by the cable's own meter and the tolerance it can be "
            f"{known.most_charge_msat} msat at the most"
        )
    if due.keysend_msat < known.keysend_msat:
        return f"the socket counts {due.keysend_msat} msat paid by keysend; {known.keysend_msat} msat have arrived"
    value_sat = final_value_sat(due.charged_msat, due.keysend_msat, known.floor_sat)
    if due.value_sat != value_sat:
        return (
            f"the socket wants {due.value_sat} sat for a charge of {due.charged_msat} msat less {due.keysend_msat} "
            f"msat paid by keysend; that makes {value_sat} sat"
        )
    if not 0 < due.value_sat < known.handed_over_sat:
        return f"the socket wants {due.value_sat} sat in place of {known.handed_over_sat} sat: that is not less"
    return None
