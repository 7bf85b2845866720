"""Which outputs of the wallet pay for a session, at which miner fee, and whether that is worth it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wattline.cable.policy.onchain_limits import OnchainRefused, check_rules
from wattline.cable.settings import OnchainSettings
from wattline.core.aggregate import MSAT_PER_SAT, SMALLEST_OUTPUT_SAT, OnchainRules
from wattline.core.lightning.onchain import EMPTY_TX_WEIGHT, WalletOutput
from wattline.core.tariff import Tariff, lasts_ms, worth_msat
from wattline.core.version_check import WEIGHT_PER_VBYTE

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
class Funding:
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

    def weighed(self, inputs_weight: int, script: str) -> Funding:
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
    settings: OnchainSettings,
    scope: Scope,
) -> Funding:
    """Choose inputs for a session within ``scope``: confirmed ones, the fewest that are enough for all that it may come
    to, of those the smallest sum; where nothing is enough, the largest, and their value then bounds the session.

    ``height`` is that of the chain, ``feerate_per_kw`` the node's own estimate: what is aimed at, or the lowest that
    both sides take, whichever is higher, and nothing above. Raises OnchainRefused ``no_onchain_funds``,
    ``onchain_fee_too_high``, ``onchain_not_worth``, and as :func:`check_rules`.
    """
    bounds = check_rules(rules, settings)
    chosen = _choose(outputs, height, bounds.clamp(feerate_per_kw), rules, settings, scope)
    check_worth(chosen, rules, settings, scope)
    return chosen


def _choose(
    outputs: Sequence[WalletOutput],
    height: int,
    feerate_per_kw: int,
    rules: OnchainRules,
    settings: OnchainSettings,
    scope: Scope,
) -> Funding:
    confirmations = max(settings.min_confirmations, rules.input_confirmations)
    usable = [item for item in outputs if 0 < item.blockheight <= height - confirmations + 1]
    usable.sort(key=lambda item: (-item.value_sat, item.outpoint))
    best: Funding | None = None
    for count in range(1, min(rules.max_inputs, len(usable)) + 1):
        fee_sat = fee_for(EMPTY_TX_WEIGHT + count * INPUT_WEIGHT + 2 * OUTPUT_WEIGHT, feerate_per_kw)
        if count > 1 and fee_sat > settings.max_fee_sat:
            break  # what one or some hold bounds the session then
        largest = Funding(tuple(usable[:count]), fee_sat, feerate_per_kw)
        check_fee(largest, settings)
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


def check_fee(chosen: Funding, settings: OnchainSettings) -> None:
    """The miner's fee is lost to whatever session, so it has a limit of its own. Raises OnchainRefused
    ``onchain_fee_too_high``."""
    if chosen.fee_sat > settings.max_fee_sat:
        raise OnchainRefused(
            "onchain_fee_too_high",
            f"a miner fee of {chosen.fee_sat} sat, at {chosen.feerate_per_kw} sat/kw, exceeds {settings.max_fee_sat} "
            "sat (onchain.max_fee_sat)",
        )


def check_worth(chosen: Funding, rules: OnchainRules, settings: OnchainSettings, scope: Scope) -> None:
    """What a session costs besides its energy, the miner's fee and what the floor exceeds the energy by, must stay
    within max_fee_ratio of the most that it can come to. Raises OnchainRefused ``onchain_not_worth``."""
    fee_sat, ratio = chosen.fee_sat, settings.max_fee_ratio
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
