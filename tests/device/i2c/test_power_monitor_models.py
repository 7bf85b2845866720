"""The models of the INA226 and the INA219 against the equations of their data sheets."""

from __future__ import annotations

import pytest

from wattline.device.simulator import power_monitors as ina219
from wattline.device.simulator import power_monitors as ina226
from wattline.device.simulator.power_monitors import (
    CALIBRATION,
    CONFIG,
    CURRENT,
    POWER,
    VBUS,
    VSHUNT,
    Ina219Model,
    Ina226Model,
    PowerMonitorModel,
)

SECOND = 1_000_000_000


def word(chip: PowerMonitorModel, register: int) -> int:
    return int.from_bytes(chip.read_block(register, 2), "big")


def signed(chip: PowerMonitorModel, register: int) -> int:
    return int.from_bytes(chip.read_block(register, 2), "big", signed=True)


def test_power_on_values_are_those_of_the_data_sheets() -> None:
    chip = Ina226Model()
    assert [word(chip, r) for r in (0, 1, 2, 3, 4, 5, 6, 7, 0xFE, 0xFF)] == [0x4127, *[0] * 7, 0x5449, 0x2260]
    other = Ina219Model()
    assert [word(other, r) for r in range(6)] == [0x399F, 0, 0, 0, 0, 0]


def test_an_ina226_scales_as_its_data_sheet_says() -> None:
    chip = Ina226Model()
    # The example of 8.2.2: 10 A over 2 milliohms at 11.98 V with CURRENT_LSB 1 mA; our shunt has 1 milliohm.
    chip.write_word(CALIBRATION, 5120)
    chip.sample(11.98, 10.0, SECOND)
    assert word(chip, VSHUNT) == 4000
    assert word(chip, VBUS) == 9584
    assert word(chip, CURRENT) == 10_000
    assert word(chip, POWER) == 4792  # x 25 mW = 119.8 W


def test_an_ina219_scales_as_its_data_sheet_says() -> None:
    chip = Ina219Model()
    chip.write_word(CALIBRATION, 0x5000)
    chip.sample(11.98, 20.0, SECOND)
    assert word(chip, VSHUNT) == 2000
    assert word(chip, VBUS) >> 3 == 2995
    assert word(chip, CURRENT) == 10_000
    assert word(chip, POWER) == 5990


def test_conversion_times_are_those_of_all_inputs_averaged() -> None:
    assert Ina226Model().conversion_ns == 2 * 1_100_000
    assert Ina219Model().conversion_ns == 2 * 532_000
    chip, other = Ina226Model(), Ina219Model()
    chip.write_word(CONFIG, 0x436F)
    other.write_word(CONFIG, 0x2667)
    assert chip.conversion_ns == 4 * 2 * 2_116_000
    assert other.conversion_ns == 2 * 8_510_000


def test_an_ina226_flags_a_conversion_until_the_flags_are_read() -> None:
    chip = Ina226Model()
    chip.sample(12.0, 1.0, chip.conversion_ns - 1)
    assert not word(chip, ina226.MASK_ENABLE) & ina226.CVRF
    chip.sample(12.0, 1.0, 1)
    assert word(chip, ina226.MASK_ENABLE) & ina226.CVRF
    assert not word(chip, ina226.MASK_ENABLE) & ina226.CVRF


def test_an_ina219_flags_a_conversion_until_the_power_is_read() -> None:
    chip = Ina219Model()
    chip.sample(12.0, 1.0, SECOND)
    assert word(chip, VBUS) & ina219.CNVR
    assert word(chip, VBUS) & ina219.CNVR
    word(chip, POWER)
    assert not word(chip, VBUS) & ina219.CNVR


def test_writing_the_configuration_begins_a_new_conversion() -> None:
    for chip in (Ina226Model(), Ina219Model()):
        chip.sample(12.0, 1.0, SECOND)
        chip.write_word(CONFIG, word(chip, CONFIG))
        flags = word(chip, ina226.MASK_ENABLE) & ina226.CVRF | word(chip, VBUS) & ina219.CNVR * isinstance(
            chip, Ina219Model
        )
        assert not flags


def test_current_that_flows_back_is_negative_and_its_power_is_not() -> None:
    for chip in (Ina226Model(), Ina219Model()):
        chip.write_word(CALIBRATION, 5120)
        chip.sample(12.0, -10.0, SECOND)
        assert signed(chip, VSHUNT) < 0
        assert signed(chip, CURRENT) < 0
        assert word(chip, POWER) > 0


@pytest.mark.parametrize(("gain", "top"), [(0, 4000), (1, 8000), (2, 16_000), (3, 32_000)])
def test_the_amplifier_of_an_ina219_clips_at_its_range(gain: int, top: int) -> None:
    chip = Ina219Model()
    chip.write_word(CONFIG, 0x2667 | gain << 11)
    chip.sample(12.0, 1000.0, SECOND)
    assert signed(chip, VSHUNT) == top
    chip.sample(12.0, -1000.0, SECOND)
    assert signed(chip, VSHUNT) == -top


def test_beyond_their_ranges_voltages_are_clipped() -> None:
    chip, other = Ina226Model(), Ina219Model()
    chip.sample(48.0, 100.0, SECOND)
    other.sample(48.0, 1.0, SECOND)
    assert (word(chip, VBUS), word(chip, VSHUNT)) == (0x7FFF, 0x7FFF)
    assert word(other, VBUS) >> 3 == 8000


def test_a_current_beyond_the_calibration_overflows_and_says_so() -> None:
    chip, other = Ina226Model(), Ina219Model()
    for model in (chip, other):
        model.write_word(CALIBRATION, 0x7FFE)
        model.sample(12.0, 80.0, SECOND)
        assert signed(model, CURRENT) == 0x7FFF
    assert word(chip, ina226.MASK_ENABLE) & ina226.OVF
    assert word(other, VBUS) & ina219.OVF
    chip.sample(12.0, 1.0, SECOND)
    assert not word(chip, ina226.MASK_ENABLE) & ina226.OVF


def test_the_lowest_bit_of_an_ina219s_calibration_is_always_clear() -> None:
    chip = Ina219Model()
    chip.write_word(CALIBRATION, 0xFFFF)
    assert word(chip, CALIBRATION) == 0xFFFE


def test_a_reset_brings_the_power_on_values_back() -> None:
    for chip, config in ((Ina226Model(), 0x4127), (Ina219Model(), 0x399F)):
        chip.write_word(CALIBRATION, 5120)
        chip.write_word(CONFIG, 0x0007)
        chip.sample(12.0, 10.0, SECOND)
        chip.write_word(CONFIG, 0x8000)
        assert [word(chip, r) for r in range(6)] == [config, 0, 0, 0, 0, 0]


def test_in_shutdown_nothing_is_measured_and_triggered_mode_converts_once() -> None:
    chip = Ina226Model()
    chip.write_word(CONFIG, 0x4120)
    chip.sample(12.0, 10.0, SECOND)
    assert word(chip, VBUS) == 0
    chip.write_word(CONFIG, 0x4123)
    chip.sample(12.0, 10.0, SECOND)
    chip.sample(24.0, 10.0, SECOND)
    assert word(chip, VBUS) == 9600


def test_half_a_word_changes_nothing_but_the_pointer() -> None:
    chip = Ina226Model()
    chip.write_byte_register(CONFIG, 0x80)
    assert chip.read_byte() == 0x41
