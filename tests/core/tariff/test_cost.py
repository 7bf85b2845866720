"""The cost of energy and time, against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.errors import StopError
from wattline.core.tariff import FOREVER_MS, MAX_PRICE_MSAT, Tariff, cost_msat, lasts_ms, left_ms, worth_msat

prices = st.integers(0, 10_000_000) | st.integers(0, MAX_PRICE_MSAT)
tariffs = st.builds(Tariff.of, prices, prices, prices)
energies_uwh = st.integers(0, 10**14)
times_ms = st.integers(0, 10**10)
powers_mw = st.integers(0, 10**8)
amounts_msat = st.integers(-(10**12), 10**14)


def exact_cost(tariff: Tariff, energy_uwh: Fraction, delivered_ms: Fraction) -> Fraction:
    """Straight from the words: msat per kWh, msat per hour, a fee."""
    return (
        tariff.session_fee_msat
        + energy_uwh / 10**9 * tariff.energy_msat_per_kwh
        + delivered_ms / (3600 * 1000) * tariff.time_msat_per_hour
    )


def test_a_kilowatt_hour_costs_the_energy_price() -> None:
    assert cost_msat(Tariff.of(300_000), 10**9, 0, True) == 300_000


def test_an_hour_costs_the_time_price_and_the_fee_is_due_once_delivery_began() -> None:
    tariff = Tariff.of(0, 5_000, 70)
    assert cost_msat(tariff, 0, 3_600_000, True) == 5_070
    assert cost_msat(tariff, 0, 0, False) == 0
    assert cost_msat(tariff, 0, 0, True) == 70


def test_the_smallest_use_is_rounded_up_to_one_msat() -> None:
    assert cost_msat(Tariff.of(1), 1, 0, True) == 1


def test_parts_of_energy_and_of_time_are_rounded_up_together_not_each() -> None:
    # 0.5 msat of energy and 0.5 msat of time are one msat, not two.
    assert cost_msat(Tariff.of(1, 1), 500_000_000, 1_800_000, True) == 1


@given(tariffs, energies_uwh, times_ms)
def test_the_cost_is_the_exact_cost_rounded_up_once(tariff: Tariff, energy_uwh: int, delivered_ms: int) -> None:
    exact = exact_cost(tariff, Fraction(energy_uwh), Fraction(delivered_ms))
    assert cost_msat(tariff, energy_uwh, delivered_ms, True) == math.ceil(exact)


@given(tariffs, energies_uwh, times_ms, st.integers(0, 10**6), st.integers(0, 10**6))
def test_more_use_never_costs_less(tariff: Tariff, energy_uwh: int, ms: int, more_uwh: int, more_ms: int) -> None:
    assert cost_msat(tariff, energy_uwh, ms, True) <= cost_msat(tariff, energy_uwh + more_uwh, ms + more_ms, True)


@given(tariffs, powers_mw, times_ms)
def test_the_worth_is_the_exact_price_of_that_power_for_that_time(tariff: Tariff, power_mw: int, ms: int) -> None:
    exact = exact_cost(tariff, Fraction(power_mw * ms, 3600), Fraction(ms)) - tariff.session_fee_msat
    assert worth_msat(tariff, power_mw, ms) == math.ceil(exact)


@given(tariffs, amounts_msat, powers_mw)
def test_a_balance_lasts_exactly_as_long_as_it_is_worth(tariff: Tariff, balance_msat: int, power_mw: int) -> None:
    lasting = lasts_ms(tariff, balance_msat, power_mw)
    if balance_msat < 0:
        assert lasting == 0
    else:
        assert worth_msat(tariff, power_mw, lasting) <= balance_msat
        assert lasting == FOREVER_MS or worth_msat(tariff, power_mw, lasting + 1) > balance_msat


@given(tariffs, powers_mw, times_ms)
def test_what_a_duration_is_worth_lasts_for_that_duration(tariff: Tariff, power_mw: int, ms: int) -> None:
    assert lasts_ms(tariff, worth_msat(tariff, power_mw, ms), power_mw) >= ms


@given(tariffs, amounts_msat, energies_uwh, times_ms, powers_mw)
def test_what_is_left_ends_before_the_exact_cost_passes_the_credit(
    tariff: Tariff, credited_msat: int, energy_uwh: int, ms: int, power_mw: int
) -> None:
    left = left_ms(tariff, credited_msat, energy_uwh, ms, power_mw)

    def cost_after(duration_ms: int) -> Fraction:
        return exact_cost(tariff, energy_uwh + Fraction(power_mw * duration_ms, 3600), Fraction(ms + duration_ms))

    if left > 0:
        assert math.ceil(cost_after(left)) <= credited_msat
    if left < FOREVER_MS:
        assert math.ceil(cost_after(left + 1)) > credited_msat


@given(tariffs, energies_uwh, times_ms, powers_mw, amounts_msat)
def test_the_rounded_balance_never_lasts_longer_than_what_is_left(
    tariff: Tariff, energy_uwh: int, ms: int, power_mw: int, credited_msat: int
) -> None:
    balance_msat = credited_msat - cost_msat(tariff, energy_uwh, ms, True)
    assert lasts_ms(tariff, balance_msat, power_mw) <= left_ms(tariff, credited_msat, energy_uwh, ms, power_mw)


def test_a_load_that_costs_nothing_lasts_forever() -> None:
    assert lasts_ms(Tariff.of(300_000), 0, 0) == FOREVER_MS
    assert left_ms(Tariff.of(0, 0, 10), 10, 0, 0, 1_000_000) == FOREVER_MS
    assert left_ms(Tariff.of(0, 0, 10), 9, 0, 0, 1_000_000) == 0


def test_negative_energy_time_or_power_is_refused() -> None:
    tariff = Tariff.of(300_000)
    with pytest.raises(StopError, match="energy_uwh"):
        cost_msat(tariff, -1, 0, True)
    with pytest.raises(StopError, match="delivered_ms"):
        cost_msat(tariff, 0, -1, True)
    with pytest.raises(StopError, match="power_mw"):
        lasts_ms(tariff, 1, -1)
    with pytest.raises(StopError, match="duration_ms"):
        worth_msat(tariff, 1, -1)
