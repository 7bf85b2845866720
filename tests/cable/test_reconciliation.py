from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from wattline.cable.policy.events import Claim
from wattline.cable.policy.reconciliation import Breach, Known, Tolerance, compare
from wattline.core.tariff import Tariff, cost_msat

TARIFF = Tariff.of(300_000, 3_600, 100)
TOLERANCE = Tolerance(ratio_ppm=20_000, absolute_uwh=1_000_000)
ENERGY = 100_000_000


def honest(energy_uwh: int = ENERGY, delivered_ms: int = 60_000) -> Claim:
    charged = cost_msat(TARIFF, energy_uwh, delivered_ms, True)
    return Claim(energy_uwh, delivered_ms, charged + 500, charged, 0, 500)


def known(energy_uwh: int = ENERGY, credited: int = 0) -> Known:
    return Known(energy_uwh, energy_uwh, 61_000, credited)


def breach(claim: Claim, own: Known) -> Breach | None:
    mismatch = compare(claim, own, TARIFF, TOLERANCE)
    return mismatch.breach if mismatch else None


def test_an_honest_claim_passes() -> None:
    assert compare(honest(), known(), TARIFF, TOLERANCE) is None


def test_energy_at_the_tolerance_passes_and_one_more_does_not() -> None:
    most = ENERGY + 3_000_000
    assert breach(honest(most), known()) is None
    assert breach(honest(most + 1), known()) is Breach.ENERGY


def test_too_little_energy_is_a_mismatch_too() -> None:
    least = ENERGY - 3_000_000
    assert breach(honest(least), known()) is None
    assert breach(honest(least - 1), known()) is Breach.ENERGY


def test_a_claim_may_stand_for_any_moment_in_its_window() -> None:
    window = Known(
        least_energy_uwh=ENERGY - 10_000_000, most_energy_uwh=ENERGY, elapsed_ms=61_000, surely_credited_msat=0
    )
    assert breach(honest(ENERGY - 10_000_000), window) is None
    assert breach(honest(ENERGY), window) is None
    assert breach(honest(ENERGY - 20_000_000), window) is Breach.ENERGY


def test_the_message_names_both_meters() -> None:
    mismatch = compare(honest(ENERGY * 2), known(), TARIFF, TOLERANCE)
    assert mismatch is not None
    assert str(ENERGY * 2) in mismatch.message
    assert str(ENERGY) in mismatch.message


def test_delivery_cannot_have_lasted_longer_than_the_session() -> None:
    assert breach(honest(delivered_ms=64_000), known()) is None
    assert breach(honest(delivered_ms=65_000), known()) is Breach.TIME


@given(st.integers(0, 10**12), st.integers(0, 10**7), st.integers(1, 10**6))
def test_one_msat_above_the_exact_cost_is_a_charge_lie(energy: int, delivered_ms: int, extra: int) -> None:
    claim = honest(energy, delivered_ms)
    own = Known(energy, energy, delivered_ms, 0)
    assert breach(claim, own) is None
    lie = replace(claim, charged_msat=claim.charged_msat + extra, balance_msat=claim.balance_msat - extra)
    assert breach(lie, own) is Breach.CHARGE


def test_a_balance_that_does_not_add_up_is_a_charge_lie() -> None:
    assert breach(replace(honest(), balance_msat=499), known()) is Breach.CHARGE


def test_a_payment_that_arrived_long_ago_must_be_credited() -> None:
    claim = honest()
    assert breach(claim, known(credited=claim.credited_msat)) is None
    assert breach(claim, known(credited=claim.credited_msat + 1)) is Breach.CREDIT
