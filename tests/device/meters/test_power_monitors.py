"""The drivers of the INA226 and the INA219, over chips that behave, and over chips that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wattline.device.i2c.bus import BusError
from wattline.device.meters.reading import MeterError, Reading
from wattline.device.meters.sampling import SampledMeter
from wattline.device.meters.trust import TrustedMeter
from wattline.device.simulator.power_monitors import CALIBRATION, CONFIG
from wattline.device.simulator.world import EXPANDER, MeterFault, WorldBus

CHIPS = {"ina226": 0x48, "ina219": 0x4A}
PROFILE = "constant-400@24"


class Outlet:
    """A bench at 24 V with the chip under test."""

    def __init__(self, bench: Any, driver: str) -> None:
        self.bench = bench
        self.driver = driver
        self.address = CHIPS[driver]
        self.world = bench.world

    def meter(self, max_current_a: float = 40) -> SampledMeter:
        open_chip: Callable[[int, float], SampledMeter] = getattr(self.bench, self.driver)
        return open_chip(self.address, max_current_a)

    def run(self, meter: SampledMeter | TrustedMeter, seconds: float) -> Reading:
        """Read ten times a second; the last reading."""
        for _ in range(round(seconds * 10)):
            self.bench.pass_s(0.1)
            reading = meter.read()
        return reading

    def break_it(self, fault: MeterFault, ratio: float = 1.0) -> None:
        self.world.break_meter(self.address, fault, ratio)

    def mend(self) -> None:
        self.world.mend_meter(self.address)


@pytest.fixture(params=list(CHIPS))
def outlet(request: pytest.FixtureRequest, make_bench: Any) -> Outlet:
    return Outlet(make_bench(PROFILE), request.param)


def code_of(call: Any) -> str:
    with pytest.raises(MeterError) as caught:
        call()
    return caught.value.code


def test_energy_agrees_with_what_has_truly_flowed(outlet: Outlet) -> None:
    meter = outlet.meter()
    before = outlet.run(meter, 0.5)
    assert (before.energy_uwh, before.power_mw, before.voltage_mv) == (0, 0, 24_000)
    outlet.bench.switch_on()
    reading = outlet.run(meter, 36)
    assert reading.energy_uwh == pytest.approx(outlet.world.energy_uwh(0), rel=0.003)
    assert reading.energy_uwh == pytest.approx(4_000_000, rel=0.003)
    assert reading.power_mw == pytest.approx(400_000, rel=0.002)
    assert reading.voltage_mv == pytest.approx(23_661, abs=5)
    assert reading.current_ma == pytest.approx(16_905, abs=10)
    assert abs(outlet.bench.ns // 1_000_000 - reading.at_ms) < 20


def test_a_restarted_process_counts_from_zero_and_leaves_the_chip_alone(outlet: Outlet) -> None:
    first = outlet.meter()
    outlet.bench.switch_on()
    assert outlet.run(first, 1).energy_uwh > 50_000
    again = outlet.meter()
    # Both go on: the second one has not reset the chip below the first.
    assert outlet.run(again, 0.2).energy_uwh < 30_000
    outlet.run(first, 0.2)


def test_current_that_flows_back_is_negative_and_not_trusted_for_long(outlet: Outlet) -> None:
    outlet.break_it(MeterFault.GAIN, -1.0)
    meter = TrustedMeter(outlet.meter(), 500_000)
    outlet.bench.switch_on()
    reading = outlet.run(meter, 0.1)
    assert reading.power_mw == pytest.approx(-400_000, rel=0.2)
    assert code_of(lambda: outlet.run(meter, 0.2)) == "backflow"


def test_a_chip_that_does_not_answer_is_a_bus_error_naming_it(outlet: Outlet) -> None:
    meter = outlet.meter()
    outlet.break_it(MeterFault.NACK)
    name = f"{outlet.driver.upper()} at {outlet.address:#04x} on bus sim:toaster"
    with pytest.raises(MeterError, match=name) as caught:
        meter.read()
    assert caught.value.code == "meter_bus_error"
    assert isinstance(caught.value.__cause__, BusError)
    assert code_of(outlet.meter) == "meter_bus_error"


def test_another_chip_at_the_address_is_named(outlet: Outlet) -> None:
    outlet.break_it(MeterFault.WRONG_IDENTITY)
    found = {
        "ina226": "device 0x230, an INA226 has 0x5449 and 0x226",
        "ina219": "its configuration is 0x4127, where an INA219 has the bits 14 and 15 clear",
    }
    with pytest.raises(MeterError, match=found[outlet.driver]) as caught:
        outlet.meter()
    assert caught.value.code == "meter_wrong_chip"


@pytest.mark.parametrize("address", [0x40, 0x48])
def test_the_driver_of_the_ina219_refuses_the_other_chips(make_bench: Any, address: int) -> None:
    assert code_of(lambda: make_bench(PROFILE).ina219(address)) == "meter_wrong_chip"


@pytest.mark.parametrize("address", [0x40, 0x4A])
def test_the_driver_of_the_ina226_refuses_the_other_chips(make_bench: Any, address: int) -> None:
    assert code_of(lambda: make_bench(PROFILE).ina226(address)) == "meter_wrong_chip"


def test_a_chip_with_a_different_calibration_register_is_no_ina219(make_bench: Any) -> None:
    class Wide(WorldBus):
        """Keeps all 16 bits of the calibration."""

        def read_word(self, address: int, register: int) -> int:
            return super().read_word(address, register) | (register == CALIBRATION)

    bench = make_bench(PROFILE)
    bench.bus = Wide(bench.world)
    with pytest.raises(MeterError, match="keeps 0xffff, an INA219 0xfffe") as caught:
        bench.ina219()
    assert caught.value.code == "meter_wrong_chip"


def test_nothing_is_written_to_a_chip_that_cannot_be_an_ina219(make_bench: Any) -> None:
    bench = make_bench(PROFILE)
    before = bench.bus.read_word(0x48, CONFIG)
    assert code_of(lambda: bench.ina219(0x48)) == "meter_wrong_chip"
    assert (bench.bus.read_word(0x48, CONFIG), bench.bus.read_word(0x48, CALIBRATION)) == (before, 0)


def test_saturation_stops_and_only_a_new_start_counts_again(outlet: Outlet) -> None:
    meter = outlet.meter()
    outlet.bench.switch_on()
    outlet.run(meter, 1)
    outlet.break_it(MeterFault.SATURATED)
    outlet.bench.pass_s(0.1)
    with pytest.raises(MeterError, match="shunt voltage") as caught:
        meter.read()
    assert caught.value.code == "meter_saturated"
    outlet.mend()
    outlet.bench.pass_s(0.1)
    assert code_of(meter.read) == "meter_saturated"
    assert outlet.run(outlet.meter(), 0.1).energy_uwh < 20_000


def test_an_outlet_at_48_v_is_beyond_these_chips(make_bench: Any) -> None:
    for driver in CHIPS:
        with pytest.raises(MeterError, match="bus voltage") as caught:
            Outlet(make_bench("constant-400"), driver).meter()
        assert caught.value.code == "meter_saturated"


@pytest.mark.parametrize(("driver", "volts", "fits"), [("ina226", 36, True), ("ina226", 37, False)])
def test_an_ina226_is_believed_up_to_36_v(make_bench: Any, driver: str, volts: int, fits: bool) -> None:
    outlet = Outlet(make_bench(f"constant-60@{volts}"), driver)
    if fits:
        assert outlet.run(outlet.meter(), 0.1).voltage_mv == volts * 1000
    else:
        assert code_of(outlet.meter) == "meter_saturated"


@pytest.mark.parametrize(("volts", "fits"), [(26, True), (27, False), (33, False)])
def test_an_ina219_is_believed_up_to_26_v(make_bench: Any, volts: int, fits: bool) -> None:
    outlet = Outlet(make_bench(f"constant-60@{volts}"), "ina219")
    if fits:
        assert outlet.run(outlet.meter(), 0.1).voltage_mv == volts * 1000
    else:
        assert code_of(outlet.meter) == "meter_saturated"


@pytest.mark.parametrize("max_current_a", [10, 16])
def test_more_current_than_the_settings_say_is_saturation(outlet: Outlet, max_current_a: int) -> None:
    meter = outlet.meter(max_current_a)
    outlet.bench.switch_on()
    # 16.9 A flow: less than twice 10 A, at which the calibration of an INA219 would overflow.
    outlet.bench.pass_s(0.1)
    with pytest.raises(MeterError, match="current") as caught:
        meter.read()
    assert caught.value.code == "meter_saturated"


def test_a_chip_without_new_conversions_is_frozen(outlet: Outlet) -> None:
    meter = outlet.meter()
    outlet.bench.switch_on()
    outlet.run(meter, 1)
    outlet.break_it(MeterFault.FROZEN)
    meter.read()
    outlet.bench.pass_s(0.1)
    assert code_of(meter.read) == "meter_frozen"
    outlet.mend()
    outlet.run(meter, 0.1)


def test_a_chip_that_never_converts_is_frozen_when_it_is_opened(outlet: Outlet) -> None:
    outlet.break_it(MeterFault.FROZEN)
    assert code_of(outlet.meter) == "meter_frozen"


def test_a_conversion_taken_by_somebody_else_is_no_frozen_chip(outlet: Outlet) -> None:
    meter, other = outlet.meter(), outlet.meter()
    outlet.bench.switch_on()
    for _ in range(20):
        outlet.run(other, 0.1)
        outlet.run(meter, 0.1)
    assert meter.read().energy_uwh == pytest.approx(outlet.world.energy_uwh(0), rel=0.05)


def test_a_chip_that_loses_its_configuration_is_noticed(outlet: Outlet) -> None:
    meter = outlet.meter()
    outlet.bench.switch_on()
    outlet.run(meter, 1)
    outlet.break_it(MeterFault.RESET)
    outlet.bench.pass_s(0.1)
    assert code_of(meter.read) == "meter_reset"


def test_no_fault_ever_yields_a_reading_of_zero(make_bench: Any) -> None:
    for driver in CHIPS:
        for fault in (MeterFault.NACK, MeterFault.SATURATED, MeterFault.FROZEN, MeterFault.RESET):
            outlet = Outlet(make_bench(PROFILE), driver)
            meter = outlet.meter()
            outlet.bench.switch_on()
            outlet.run(meter, 1)
            outlet.break_it(fault)
            readings = []
            for _ in range(20):
                outlet.bench.pass_s(0.1)
                try:
                    readings.append(meter.read())
                except MeterError:
                    continue
            assert all(reading.power_mw > 0 and reading.energy_uwh > 0 for reading in readings)
            assert len(readings) < 2


def test_two_disturbed_transfers_are_got_over(outlet: Outlet) -> None:
    class Disturbed(WorldBus):
        left = 0

        def read_word(self, address: int, register: int) -> int:
            if self.left:
                self.left -= 1
                raise BusError("bus_error", "disturbed")
            return super().read_word(address, register)

    outlet.bench.bus = bus = Disturbed(outlet.world)
    meter = outlet.meter()
    bus.left = 2
    assert outlet.run(meter, 0.1).voltage_mv == 24_000


def test_closing_the_meter_leaves_the_relay_alone(outlet: Outlet) -> None:
    outlet.bench.switch_on()
    outlet.meter().close()
    assert outlet.bench.bus.read_byte(EXPANDER) == 0xFE
