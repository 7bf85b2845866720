"""Energy that we integrate ourselves: exact sums, the time of each reading, and what is not known."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.device.meters.reading import MeterError, Reading, next_look_ms
from wattline.device.meters.sampling import LONGEST_GAP_MS, EnergySum, Sample, SampledMeter

MS = 1_000_000
SHUNT_NOHM = 1_000_000

samples = st.builds(Sample, st.integers(-320_000_000, 320_000_000), st.integers(0, 40_960_000))


class FakeChip:
    """One conversion for each look, until there are none left."""

    name = "chip"
    conversion_ms = 19

    def __init__(self, *found: Sample | MeterError | None) -> None:
        self.found = list(found)
        self.closed = False
        self.configured = True

    def look(self) -> Sample | None:
        found = self.found.pop(0) if self.found else None
        if isinstance(found, MeterError):
            raise found
        return found

    def check_configuration(self) -> None:
        if not self.configured:
            raise MeterError("meter_reset", "lost")

    def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self, *found: Sample | MeterError | None) -> None:
        self.ns = 10**9
        self.chip = FakeChip(*found)

    def meter(self) -> SampledMeter:
        return SampledMeter(self.chip, SHUNT_NOHM, lambda: self.ns, self.pass_s)

    def pass_s(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def watts(power_w: int) -> Sample:
    """At 24 V over 1 milliohm."""
    return Sample(shunt_nv=power_w * 10**9 // 24_000, bus_uv=24_000_000)


def exact_uwh(steps: Sequence[tuple[Sample, int]], first: Sample) -> Fraction:
    """By the definition: the trapezoid of P = U/R x V over time, of which no half is below nothing."""
    joules, before = Fraction(0), power_w(first)
    for sample, ns in steps:
        after = power_w(sample)
        joules += (max(Fraction(0), before) + max(Fraction(0), after)) / 2 * Fraction(ns, 10**9)
        before = after
    return joules / 3600 * 10**6


def power_w(sample: Sample) -> Fraction:
    current_a = Fraction(sample.shunt_nv, 10**9) / Fraction(SHUNT_NOHM, 10**9)
    return current_a * Fraction(sample.bus_uv, 10**6)


@given(samples, st.lists(st.tuples(samples, st.integers(0, 10**9)), max_size=20))
def test_the_sum_is_the_exact_trapezoid_rounded_down_once(first: Sample, steps: list[tuple[Sample, int]]) -> None:
    energy, before = EnergySum(SHUNT_NOHM), first
    for sample, ns in steps:
        energy.add(before, sample, ns)
        before = sample
    assert energy.energy_uwh == exact_uwh(steps, first) // 1


@given(samples, st.lists(st.tuples(samples, st.integers(0, 10**9)), max_size=20))
def test_the_sum_never_shrinks(first: Sample, steps: list[tuple[Sample, int]]) -> None:
    energy, before, last = EnergySum(SHUNT_NOHM), first, 0
    for sample, ns in steps:
        energy.add(before, sample, ns)
        assert energy.energy_uwh >= last
        before, last = sample, energy.energy_uwh


def test_a_million_small_steps_are_one_large_one() -> None:
    one, many = EnergySum(SHUNT_NOHM), EnergySum(SHUNT_NOHM)
    one.add(watts(7), watts(7), 10**9)
    for _ in range(100_000):
        many.add(watts(7), watts(7), 10_000)
    assert one.energy_uwh == many.energy_uwh == 1944


@pytest.mark.parametrize("shunt_nohm", [0, -1])
def test_a_shunt_without_resistance_is_refused(shunt_nohm: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        EnergySum(shunt_nohm)


def test_readings_count_from_the_first_conversion_on() -> None:
    bench = Bench(watts(240), watts(240), watts(480))
    meter = bench.meter()
    bench.pass_s(0.1)
    first = meter.read()
    assert (first.power_mw, first.voltage_mv, first.current_ma) == (240_000, 24_000, 10_000)
    assert (first.energy_uwh, first.at_ms) == (6666, 1100)
    bench.pass_s(0.1)
    second = meter.read()
    assert second.energy_uwh == 6666 + 10_000, "360 W on average"
    assert second.at_ms == 1200


def test_without_a_new_conversion_the_last_reading_comes_again_with_its_own_time() -> None:
    bench = Bench(watts(240), watts(240), None, watts(240))
    meter = bench.meter()
    bench.pass_s(0.1)
    first = meter.read()
    bench.pass_s(0.01)
    assert meter.read() == first
    bench.pass_s(0.02)
    # No time is counted twice, and none is left out.
    assert meter.read().energy_uwh == 240 * 130 * 1000 // 3600


def test_current_that_flows_back_is_negative_and_takes_no_energy_off() -> None:
    bench = Bench(watts(240), watts(240), Sample(-10_000_000, 24_000_000), Sample(-10_000_000, 24_000_000))
    meter = bench.meter()
    bench.pass_s(0.1)
    before = meter.read()
    for _ in range(2):
        bench.pass_s(0.1)
        reading = meter.read()
        assert (reading.power_mw, reading.current_ma) == (-240_000, -10_000)
        # It turned round somewhere between two samples: the half of the forward one stands.
        assert (before.energy_uwh, reading.energy_uwh) == (6666, 10_000)


def test_a_gap_as_long_as_a_lease_is_bridged_and_a_longer_one_ends_the_count() -> None:
    bench = Bench(*[watts(240)] * 10)
    meter = bench.meter()
    bench.ns += LONGEST_GAP_MS * MS
    assert meter.read().energy_uwh == 66_666
    bench.ns += (LONGEST_GAP_MS + 1) * MS
    for _ in range(2):
        with pytest.raises(MeterError, match="not read for 1001 ms") as caught:
            meter.read()
        assert caught.value.code == "meter_bus_error"
        bench.pass_s(0.1)
    assert bench.meter().read().energy_uwh == 0


def test_what_flowed_while_the_chip_was_saturated_is_not_known() -> None:
    bench = Bench(watts(240), MeterError("meter_saturated", "beyond"), watts(240), watts(240), watts(240))
    meter = bench.meter()
    for _ in range(3):
        bench.pass_s(0.1)
        with pytest.raises(MeterError, match="beyond"):
            meter.read()


def test_a_bus_that_is_back_soon_costs_nothing() -> None:
    bench = Bench(watts(240), MeterError("meter_bus_error", "disturbed"), watts(240))
    meter = bench.meter()
    bench.pass_s(0.1)
    with pytest.raises(MeterError, match="disturbed"):
        meter.read()
    bench.pass_s(0.1)
    assert meter.read().energy_uwh == 13_333


def test_no_conversion_for_long_is_frozen_and_says_for_how_long() -> None:
    bench = Bench(watts(240))
    meter = bench.meter()
    bench.pass_s(0.1)
    with pytest.raises(MeterError, match="no conversion for 21") as caught:
        meter.read()
    assert caught.value.code == "meter_frozen"


def test_no_conversion_of_a_chip_that_lost_its_configuration_is_a_reset() -> None:
    bench = Bench(watts(240))
    meter = bench.meter()
    bench.chip.configured = False
    bench.pass_s(0.1)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "meter_reset"


def test_closing_lets_go_of_the_chip() -> None:
    bench = Bench(watts(240))
    bench.meter().close()
    assert bench.chip.closed


class PulsedChip(FakeChip):
    """A load that draws 1000 W for 60 of each 100 ms, and nothing whenever it would be looked at on time."""

    def __init__(self, clock: Bench) -> None:
        super().__init__()
        self._clock = clock

    def look(self) -> Sample | None:
        return watts(1000 if 10 <= self._clock.ns // MS % 100 < 70 else 0)


def pulsed_uwh(seconds: int, is_at_random: bool) -> int:
    """What is counted of such a load that knows the meter's interval."""
    bench = Bench()
    meter = SampledMeter(PulsedChip(bench), SHUNT_NOHM, lambda: bench.ns, bench.pass_s)
    bench.ns = bench.ns // (100 * MS) * 100 * MS
    first, end_ns = meter.read(), bench.ns + seconds * 10**9
    reading: Reading | None = first
    while bench.ns < end_ns:
        bench.pass_s((next_look_ms(reading, 100) if is_at_random else 100) / 1000)
        reading = meter.read()
    assert reading is not None
    return reading.energy_uwh - first.energy_uwh


def test_a_load_that_is_off_whenever_it_would_be_looked_at_pays_for_what_it_draws() -> None:
    assert pulsed_uwh(100, is_at_random=False) == 0
    # A thousand looks, of which chance finds 60 %: five times its deviation.
    assert pulsed_uwh(100, is_at_random=True) == pytest.approx(1_000_000 * 100 * 0.6 / 3.6, rel=0.15)


def test_a_meter_is_looked_at_within_its_interval_and_one_that_counts_alone_on_time() -> None:
    ours, alone = (Reading(0, 0, 0, 0, 0, counts_alone=counts_alone) for counts_alone in (False, True))
    waits = {next_look_ms(ours, 20) for _ in range(1000)}
    assert waits == set(range(10, 21))
    assert (next_look_ms(alone, 20), next_look_ms(None, 20)) == (20, 20)
