"""The driver of the INA228 over chips that behave, and over chips that do not."""

from __future__ import annotations

from typing import Any

import pytest

from wattline.device.i2c.bus import BusError
from wattline.device.meters.reading import MeterError
from wattline.device.simulator.world import EXPANDER, MeterFault, WorldBus

SOCKET, CABLE = 0x40, 0x44


def code_of(call: Any) -> str:
    with pytest.raises(MeterError) as caught:
        call()
    return caught.value.code


def test_energy_agrees_with_what_has_truly_flowed(bench: Any) -> None:
    meter = bench.meter()
    bench.switch_on()
    bench.pass_s(36)
    reading = meter.read()
    # The conversion under way is not counted yet: 8.4 ms of 36 s.
    assert reading.energy_uwh == pytest.approx(bench.world.energy_uwh(0), rel=3e-4)
    assert reading.energy_uwh == pytest.approx(10_000_000, rel=3e-4)
    assert reading.power_mw == pytest.approx(1_000_000, rel=1e-3)
    assert reading.voltage_mv == pytest.approx(47_580, abs=10)
    assert reading.current_ma == pytest.approx(21_017, rel=1e-3)
    assert reading.at_ms == bench.ns // 1_000_000


def test_the_wide_range_of_the_adc_reads_the_same(bench: Any) -> None:
    wide, narrow = bench.meter(SOCKET, max_current_a=160), bench.meter(CABLE)
    bench.switch_on()
    bench.pass_s(10)
    assert wide.read().power_mw == pytest.approx(narrow.read().power_mw, rel=0.01)


def test_an_open_relay_reads_as_no_power_at_the_full_voltage(bench: Any) -> None:
    meter = bench.meter()
    bench.pass_s(1)
    reading = meter.read()
    assert (reading.energy_uwh, reading.power_mw, reading.current_ma, reading.voltage_mv) == (0, 0, 0, 48_000)


def test_a_restarted_process_goes_on_counting(bench: Any) -> None:
    first = bench.meter()
    bench.switch_on()
    bench.pass_s(10)
    before = first.read()
    first.close()
    bench.pass_s(10)
    after = bench.meter().read()
    assert after.energy_uwh == pytest.approx(2 * before.energy_uwh, rel=0.01)


def test_a_chip_with_power_on_values_counts_from_zero(bench: Any) -> None:
    bench.switch_on()
    bench.pass_s(20)
    assert bench.meter().read().energy_uwh < 10_000


def test_a_chip_with_another_calibration_counts_from_zero(bench: Any) -> None:
    bench.meter(max_current_a=100)
    bench.switch_on()
    bench.pass_s(20)
    assert bench.meter().read().energy_uwh < 10_000


def test_a_chip_that_was_left_half_configured_is_configured_again(bench: Any) -> None:
    class Dying(WorldBus):
        writes = 0

        def write_word(self, address: int, register: int, value: int) -> None:
            self.writes += 1
            if self.writes > 3:
                raise KeyboardInterrupt
            super().write_word(address, register, value)

    whole, bench.bus = bench.bus, Dying(bench.world)
    with pytest.raises(KeyboardInterrupt):
        bench.meter()
    bench.bus = whole
    bench.switch_on()
    bench.pass_s(20)
    meter = bench.meter()
    assert meter.read().energy_uwh < 10_000
    bench.pass_s(3.6)
    assert meter.read().energy_uwh == pytest.approx(1_000_000, rel=0.01)


def test_current_that_flows_back_is_negative(bench: Any) -> None:
    meter = bench.meter()
    bench.world.break_meter(SOCKET, MeterFault.GAIN, -1.0)
    bench.switch_on()
    bench.pass_s(1)
    reading = meter.read()
    assert reading.power_mw == pytest.approx(-1_000_000, rel=1e-3)
    assert reading.current_ma < 0


def test_the_accumulator_is_extended_beyond_40_bits(bench: Any) -> None:
    meter = bench.meter()
    bench.world.set_meter_energy(SOCKET, (1 << 40) - 100)
    bench.pass_s(0.1)
    before = meter.read()
    bench.switch_on()
    bench.pass_s(3.6)
    after = meter.read()
    assert after.energy_uwh - before.energy_uwh == pytest.approx(1_000_000, rel=0.01)
    assert after.energy_uwh > 1_190_000_000_000


def test_quick_readings_within_one_conversion_repeat_the_values(bench: Any) -> None:
    meter = bench.meter()
    bench.switch_on()
    bench.pass_s(1)
    first = meter.read()
    bench.pass_s(0.001)
    assert meter.read().power_mw == first.power_mw


def test_a_chip_that_does_not_answer_is_a_bus_error_naming_it(bench: Any) -> None:
    meter = bench.meter()
    bench.world.break_meter(SOCKET, MeterFault.NACK)
    with pytest.raises(MeterError, match="INA228 at 0x40 on bus sim:toaster") as caught:
        meter.read()
    assert caught.value.code == "meter_bus_error"
    assert isinstance(caught.value.__cause__, BusError)
    assert code_of(bench.meter) == "meter_bus_error"


def test_two_disturbed_transfers_are_got_over(bench: Any) -> None:
    class Disturbed(WorldBus):
        left = 2

        def read_block(self, address: int, register: int, length: int) -> bytes:
            if self.left:
                self.left -= 1
                raise BusError("bus_error", "disturbed")
            return super().read_block(address, register, length)

    bench.bus = Disturbed(bench.world)
    meter = bench.meter()
    bench.bus.left = 2
    bench.pass_s(0.1)
    assert meter.read().voltage_mv == 48_000


def test_another_chip_at_the_address_is_named(bench: Any) -> None:
    bench.world.break_meter(SOCKET, MeterFault.WRONG_IDENTITY)
    with pytest.raises(MeterError, match="device 0x238, an INA228 has 0x5449 and 0x228") as caught:
        bench.meter()
    assert caught.value.code == "meter_wrong_chip"


def test_saturation_stops_and_a_new_start_counts_from_zero(bench: Any) -> None:
    meter = bench.meter()
    bench.switch_on()
    bench.pass_s(10)
    bench.world.break_meter(SOCKET, MeterFault.SATURATED)
    bench.pass_s(0.1)
    assert code_of(meter.read) == "meter_saturated"
    bench.world.mend_meter(SOCKET)
    bench.pass_s(0.1)
    assert code_of(meter.read) == "meter_saturated", "what was counted meanwhile is not known"
    again = bench.meter()
    assert again.read().energy_uwh < 10_000


def test_more_current_than_the_settings_say_is_saturation(bench: Any) -> None:
    meter = bench.meter(max_current_a=20)
    bench.switch_on()
    bench.pass_s(0.1)
    assert code_of(meter.read) == "meter_saturated"


def test_a_chip_without_new_conversions_is_frozen(bench: Any) -> None:
    meter = bench.meter()
    bench.switch_on()
    bench.pass_s(1)
    meter.read()
    bench.world.break_meter(SOCKET, MeterFault.FROZEN)
    bench.pass_s(0.1)
    assert code_of(meter.read) == "meter_frozen"
    bench.world.mend_meter(SOCKET)
    bench.pass_s(0.1)
    meter.read()


def test_a_chip_that_never_converts_is_frozen_when_it_is_opened(bench: Any) -> None:
    bench.world.break_meter(SOCKET, MeterFault.FROZEN)
    assert code_of(bench.meter) == "meter_frozen"


def test_a_flag_taken_by_somebody_else_is_no_frozen_chip(bench: Any) -> None:
    meter, other = bench.meter(), bench.meter()
    for _ in range(20):
        bench.pass_s(0.1)
        other.read()
        meter.read()


def test_energy_that_goes_back_is_noticed(bench: Any) -> None:
    meter = bench.meter()
    bench.switch_on()
    bench.pass_s(10)
    meter.read()
    bench.world.break_meter(SOCKET, MeterFault.BACKWARDS)
    bench.pass_s(0.1)
    assert code_of(meter.read) == "meter_backwards"
    assert code_of(meter.read) == "meter_backwards", "until it is beyond where it was"


def test_a_chip_that_loses_its_configuration_is_noticed(bench: Any) -> None:
    meter = bench.meter()
    bench.switch_on()
    bench.pass_s(10)
    meter.read()
    bench.world.break_meter(SOCKET, MeterFault.RESET)
    bench.pass_s(0.1)
    # Its energy is back at 0, too: whichever is noticed first, no reading comes out of it.
    assert code_of(meter.read) == "meter_reset"


def test_a_chip_that_is_reset_before_anything_was_counted_is_noticed_as_well(bench: Any) -> None:
    meter = bench.meter()
    bench.pass_s(1)
    meter.read()
    bench.world.break_meter(SOCKET, MeterFault.RESET)
    bench.pass_s(1)
    assert code_of(meter.read) == "meter_reset"


def test_no_fault_ever_yields_a_reading_of_zero(make_bench: Any) -> None:
    for fault in (MeterFault.NACK, MeterFault.SATURATED, MeterFault.FROZEN, MeterFault.BACKWARDS, MeterFault.RESET):
        bench = make_bench()
        meter = bench.meter()
        bench.switch_on()
        bench.pass_s(10)
        meter.read()
        bench.world.break_meter(SOCKET, fault)
        readings = []
        for _ in range(20):
            bench.pass_s(0.1)
            try:
                readings.append(meter.read())
            except MeterError:
                continue
        assert all(reading.power_mw > 0 and reading.energy_uwh > 0 for reading in readings)
        assert len(readings) < 2


def test_closing_the_meter_leaves_the_relay_alone(bench: Any) -> None:
    bench.switch_on()
    bench.meter().close()
    assert bench.bus.read_byte(EXPANDER) == 0xFE
