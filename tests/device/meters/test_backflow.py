"""Power that flows from the load into the supply: alike on all chips it costs nothing, and ends what it lasts in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattline.device.meters.chip import ShuntSettings
from wattline.device.meters.ina219 import Ina219Settings
from wattline.device.meters.ina226 import Ina226Settings
from wattline.device.meters.ina228_calibration import Ina228Settings
from wattline.device.meters.reading import Meter, MeterError, Reading
from wattline.device.meters.trust import TrustedMeter
from wattline.device.simulator.world import MeterFault

RATED_MW = 1_400_000
CHIPS = {"ina228": 0x40, "ina226": 0x48, "ina219": 0x4A}
SETTINGS: dict[str, type[ShuntSettings]] = {
    "ina228": Ina228Settings,
    "ina226": Ina226Settings,
    "ina219": Ina219Settings,
}
chips = pytest.mark.parametrize("chip", CHIPS)


def settings_of(chip: str) -> ShuntSettings:
    return SETTINGS[chip](driver=chip, bus=1, address=0x40, shunt_ohms=0.001, max_current_a=40)


def open_chip(bench: Any, chip: str) -> Meter:
    make = {"ina228": bench.meter, "ina226": bench.ina226, "ina219": bench.ina219}[chip]
    meter: Meter = make(CHIPS[chip])
    return meter


def trusted(bench: Any, chip: str) -> TrustedMeter:
    return TrustedMeter(open_chip(bench, chip), RATED_MW, settings_of(chip).zero_ma)


def run(bench: Any, meter: Meter, seconds: float) -> Reading:
    for _ in range(round(seconds * 10)):
        bench.pass_s(0.1)
        reading = meter.read()
    return reading


@chips
def test_power_that_goes_on_flowing_back_costs_nothing_and_has_a_word_of_its_own(make_bench: Any, chip: str) -> None:
    bench = make_bench("constant-25@24")
    meter = trusted(bench, chip)
    bench.switch_on()
    before = run(bench, meter, 2)
    bench.world.break_meter(CHIPS[chip], MeterFault.GAIN, -1.0)
    during = run(bench, meter, 0.8)
    assert during.power_mw == pytest.approx(-25_000, rel=0.1)
    # The interval in which it turned round may still be forward.
    assert during.energy_uwh - before.energy_uwh < 25_000 * 200 // 3600
    with pytest.raises(MeterError, match="flows back") as caught:
        run(bench, meter, 0.5)
    assert caught.value.code == "backflow"


@chips
def test_what_flows_back_for_a_moment_is_not_charged_and_ends_nothing(make_bench: Any, chip: str) -> None:
    bench = make_bench("constant-25@24")
    meter = trusted(bench, chip)
    bench.switch_on()
    before = run(bench, meter, 2)
    for _ in range(5):
        bench.world.break_meter(CHIPS[chip], MeterFault.GAIN, -1.0)
        run(bench, meter, 0.5)
        bench.world.mend_meter(CHIPS[chip])
        run(bench, meter, 0.5)
    forward_uwh = 25_000 * 2500 // 3600
    assert 0.5 * forward_uwh < run(bench, meter, 0.1).energy_uwh - before.energy_uwh < 1.1 * forward_uwh


@chips
def test_an_offset_within_the_data_sheet_is_no_backflow_and_nothing_frozen(make_bench: Any, chip: str) -> None:
    """As large as it may be, negative, and for as long as it likes."""
    settings = settings_of(chip)
    offset_w = 24 * settings.offset_uv * 1e-6 / 0.001
    bench = make_bench(f"constant-{max(0.001, offset_w):.3f}@24")
    bench.world.break_meter(CHIPS[chip], MeterFault.GAIN, -1.0)
    meter = trusted(bench, chip)
    bench.switch_on()
    first = run(bench, meter, 0.5)
    assert run(bench, meter, 60).energy_uwh == first.energy_uwh


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(directions=st.lists(st.sampled_from([1.0, -1.0]), min_size=1, max_size=12), chip=st.sampled_from(sorted(CHIPS)))
def test_no_chip_counts_more_than_has_flowed_forward(make_bench: Any, directions: list[float], chip: str) -> None:
    bench = make_bench("constant-300@24")
    meter = open_chip(bench, chip)
    bench.switch_on()
    bench.pass_s(0.1)
    first = last = meter.read()
    forward = 0
    for direction in directions:
        bench.world.break_meter(CHIPS[chip], MeterFault.GAIN, direction)
        before = bench.world.energy_uwh(0)
        for _ in range(3):
            bench.pass_s(0.1)
            reading = meter.read()
            assert reading.energy_uwh >= last.energy_uwh
            assert reading.chip_uwh >= last.chip_uwh
            last = reading
        forward += bench.world.energy_uwh(0) - before if direction > 0 else 0
    # A sampled interval in which it turned round counts to a half.
    turned_uwh = -(-300_000 * 50 // 3600) * len(directions)
    assert last.energy_uwh - first.energy_uwh <= forward * 1.01 + turned_uwh
    assert last.energy_uwh - first.energy_uwh >= forward * 0.99 - 2 * turned_uwh


def test_a_later_process_finds_the_count_of_a_chip_that_counts_alone(make_bench: Any) -> None:
    bench = make_bench("constant-300@24")
    meter = bench.meter()
    bench.switch_on()
    run(bench, meter, 1)
    bench.world.break_meter(CHIPS["ina228"], MeterFault.GAIN, -1.0)
    last = run(bench, meter, 1)
    assert last.counts_alone
    assert last.backflow_uwh > 0
    assert bench.meter().read().chip_uwh == pytest.approx(last.chip_uwh, abs=300_000 * 20 // 3600)


@pytest.mark.parametrize("chip", ["ina226", "ina219"])
def test_a_chip_that_does_not_count_says_so(make_bench: Any, chip: str) -> None:
    assert not open_chip(make_bench("constant-300@24"), chip).read().counts_alone
