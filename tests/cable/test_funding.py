from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cable.fake_funds import RULES
from wattline.cable.policy.onchain import ChosenInputs, OnchainRefused, Scope, check_rules, fee_for, fund
from wattline.cable.settings import CableOnchainSettings
from wattline.core.aggregate import OnchainRules
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.lightning.onchain import WalletOutput
from wattline.core.tariff import Tariff
from wattline.core.version_check import feerate_per_kw

SETTINGS = CableOnchainSettings().limits
TOASTER = Scope(Tariff.of(300_000), rated_power_mw=1_400_000, budget_msat=1_000_000_000)


def wallet(*values_sat: int, blockheight: int = 90) -> list[WalletOutput]:
    return [WalletOutput(Outpoint(f"{n:064x}", 0), value, blockheight) for n, value in enumerate(values_sat, 1)]


def chosen(
    values_sat: list[int], scope: Scope = TOASTER, rules: OnchainRules = RULES, feerate: int = 253
) -> ChosenInputs:
    return fund(wallet(*values_sat), 100, feerate, rules, SETTINGS, scope)


def values(funding: ChosenInputs) -> list[int]:
    return [output.value_sat for output in funding.outputs]


def test_the_smallest_output_that_is_enough_for_all_that_a_session_may_come_to_is_taken() -> None:
    # 20 000 sat of exposure cap, the fee and 546 sat of change.
    assert values(chosen([1_000_000, 21_000, 20_000, 50_000])) == [21_000]


def test_two_outputs_are_taken_where_one_is_not_enough_and_of_those_the_smaller_ones() -> None:
    assert sorted(values(chosen([15_000, 14_000, 9_000, 7_000, 500]))) == [7_000, 14_000]


def test_where_nothing_is_enough_the_largest_bound_the_session() -> None:
    funding = chosen([5_000, 4_000, 3_000, 100])
    assert values(funding) == [5_000, 4_000, 3_000]
    assert funding.most_sat == 12_000 - funding.fee_sat - 546


def test_an_output_that_is_not_worth_its_own_fee_is_left_alone() -> None:
    funding = chosen([5_000, 20], replace(TOASTER, budget_msat=15_000_000), feerate=1_000)
    assert values(funding) == [5_000]


def test_a_session_of_known_length_needs_no_more_than_it_can_be_charged() -> None:
    scope = replace(TOASTER, tariff=Tariff.of(900_000_000), for_ms=10_000)
    assert scope.charge_msat == 3_500_000
    assert values(chosen([50_000, 4_300], scope)) == [4_300]


def test_outputs_need_the_confirmations_of_both_sides() -> None:
    rules = replace(RULES, input_confirmations=12)
    with pytest.raises(OnchainRefused) as caught:
        fund(wallet(50_000, blockheight=90), 100, 253, rules, SETTINGS, TOASTER)  # 11 confirmations
    assert caught.value.code == "no_onchain_funds"
    assert fund(wallet(50_000, blockheight=90), 101, 253, rules, SETTINGS, TOASTER).outputs


@pytest.mark.parametrize("values_sat", [[], [1_200], [300, 300, 300]])
def test_funds_below_floor_fee_and_change_are_none(values_sat: list[int]) -> None:
    with pytest.raises(OnchainRefused) as caught:
        chosen(values_sat)
    assert caught.value.code == "no_onchain_funds"


def test_half_a_minute_of_toast_is_not_worth_a_transaction_and_it_is_said_what_is() -> None:
    with pytest.raises(OnchainRefused) as caught:
        chosen([50_000], replace(TOASTER, for_ms=30_000))
    assert caught.value.code == "onchain_not_worth"
    assert "comes to 4 sat at the most" in caught.value.message
    assert "may come to 835 sat (7158 s at rated power)" in caught.value.message


def test_what_the_floor_exceeds_the_energy_by_counts_like_a_fee() -> None:
    almost = replace(TOASTER, tariff=Tariff.of(900_000_000), for_ms=2_600)  # 910 sat
    assert chosen([50_000], almost).fee_sat == 167
    with pytest.raises(OnchainRefused, match="exceeds"):
        chosen([50_000], almost, replace(RULES, floor_sat=1_000))


def test_the_node_s_estimate_is_kept_within_the_bounds_of_both_sides() -> None:
    bounds = check_rules(RULES, SETTINGS)
    assert (bounds.clamp(1), bounds.clamp(700), bounds.clamp(10**6)) == (253, 700, 25_000)
    # The true weight may be a little less than the estimated one, so the socket's highest is not aimed at.
    assert check_rules(replace(RULES, max_feerate_per_kw=2_000), SETTINGS).clamp(10**6) == 1_900
    assert check_rules(replace(RULES, max_feerate_per_kw=253), SETTINGS).clamp(10**6) == 253
    assert chosen([50_000], feerate=1).feerate_per_kw == 253


def test_a_miner_fee_above_the_absolute_limit_is_refused_whatever_the_session_is_worth() -> None:
    # One input and two outputs are at most 658 weight units: 2000 sat at 3039 sat/kw. The socket wants more.
    dear = replace(TOASTER, tariff=Tariff.of(900_000_000))
    rules = replace(RULES, exposure_cap_sat=10**6, min_feerate_per_kw=3_100)
    with pytest.raises(OnchainRefused) as caught:
        chosen([2_000_000], dear, rules)
    assert caught.value.code == "onchain_fee_too_high"
    assert "exceeds 2000 sat (onchain.max_fee_sat)" in caught.value.message
    assert chosen([2_000_000], dear, replace(rules, min_feerate_per_kw=3_000)).fee_sat <= 2_000


def test_no_output_is_added_that_would_take_the_fee_above_the_absolute_limit() -> None:
    # A second input would make it 930 weight units: 2325 sat.
    funding = chosen([15_000, 14_000], feerate=2_500)
    assert values(funding) == [15_000]
    assert sorted(values(chosen([15_000, 14_000], feerate=2_000))) == [14_000, 15_000]


@pytest.mark.parametrize(("estimate", "lowest", "aimed_at"), [(300, 700, 700), (900, 700, 900), (253, 253, 253)])
def test_nothing_above_the_own_estimate_is_aimed_at_but_the_socket_s_lowest(
    estimate: int, lowest: int, aimed_at: int
) -> None:
    funding = chosen([50_000], rules=replace(RULES, min_feerate_per_kw=lowest), feerate=estimate)
    assert funding.feerate_per_kw == aimed_at


@pytest.mark.parametrize(
    ("scope", "values_sat", "exposure_sat", "name"),
    [
        (
            Scope.within(Tariff.of(300_000), 1_400_000, 900_000, 10**9, None),
            [50_000],
            20_000,
            "limits.max_session_msat",
        ),
        (Scope.within(Tariff.of(300_000), 1_400_000, 10**9, 900_000, None), [50_000], 20_000, "limits.max_day_msat"),
        (Scope.within(Tariff.of(300_000), 1_400_000, 10**9, -5, None), [50_000], 20_000, "limits.max_day_msat"),
        (TOASTER, [50_000], 610, "the socket's exposure cap"),
        (replace(TOASTER, for_ms=30_000), [50_000], 20_000, r"its length of 30 s \(--for\)"),
        (TOASTER, [1_400], 20_000, "what the wallet's outputs hold"),
    ],
    ids=["session", "day", "day spent", "exposure", "length", "wallet"],
)
def test_what_makes_a_session_too_small_for_the_fee_is_named(
    scope: Scope, values_sat: list[int], exposure_sat: int, name: str
) -> None:
    with pytest.raises(OnchainRefused, match=rf"sat at the most \(by {name}") as caught:
        chosen(values_sat, scope, replace(RULES, exposure_cap_sat=exposure_sat))
    assert caught.value.code == "onchain_not_worth"


def test_fee_rates_that_cannot_meet_are_an_error() -> None:
    for rules in (replace(RULES, min_feerate_per_kw=26_000), replace(RULES, max_feerate_per_kw=252)):
        with pytest.raises(OnchainRefused) as caught:
            check_rules(rules, SETTINGS)
        assert caught.value.code == "onchain_feerate"


@pytest.mark.parametrize(
    "change", [{"floor_sat": 545}, {"max_inputs": 0}, {"exposure_cap_sat": 599}, {"credit_cap_sat": 599}]
)
def test_rules_by_which_nothing_can_be_paid_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(OnchainRefused) as caught:
        check_rules(replace(RULES, **change), SETTINGS)
    assert caught.value.code == "onchain_rules_invalid"


@given(st.integers(200, 3_000), st.integers(253, 25_000))
def test_the_fee_is_never_below_the_rate_nor_below_one_sat_per_virtual_byte(weight: int, rate: int) -> None:
    fee_sat, vsize = fee_for(weight, rate), -(-weight // 4)
    assert feerate_per_kw(fee_sat, vsize) >= rate
    assert fee_sat >= vsize
    assert fee_for(weight, rate) - 1 < max(-(-vsize * 4 * rate // 1000), vsize)


@given(
    st.lists(st.integers(1, 30_000), max_size=8), st.integers(1, 5), st.integers(253, 5_000), st.integers(100, 10_000)
)
def test_what_is_chosen_is_in_the_wallet_once_and_is_enough_where_anything_is(
    values_sat: list[int], max_inputs: int, feerate: int, max_fee_sat: int
) -> None:
    rules = replace(RULES, max_inputs=max_inputs, exposure_cap_sat=8_000)
    settings = CableOnchainSettings(max_fee_ratio=1, max_fee_sat=max_fee_sat).limits
    try:
        funding = fund(wallet(*values_sat), 100, feerate, rules, settings, TOASTER)
    except OnchainRefused:
        return
    assert len(set(funding.outputs)) == len(funding.outputs) <= max_inputs
    assert set(funding.outputs) <= set(wallet(*values_sat))
    assert funding.most_sat >= rules.floor_sat
    assert funding.fee_sat <= max_fee_sat
    if funding.most_sat < 8_000:
        # Not even the largest would have been enough.
        best = max(
            sum(sorted(values_sat, reverse=True)[:n]) - fee_for(42 + 272 * n + 344, feerate) - 546
            for n in range(1, min(max_inputs, len(values_sat)) + 1)
            if fee_for(42 + 272 * n + 344, feerate) <= max_fee_sat
        )
        assert funding.most_sat == best
