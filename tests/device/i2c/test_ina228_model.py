"""The model of the INA228 against the equations of its data sheet, in floating point and by hand."""

from __future__ import annotations

import pytest

from wattline.device.simulator import ina228
from wattline.device.simulator.ina228 import Ina228Model

SECOND = 1_000_000_000
SHUNT_CAL_40_A = 4000
CURRENT_LSB = SHUNT_CAL_40_A / (13107.2e6 * 0.001 * 4)


def configured(shunt_cal: int = SHUNT_CAL_40_A, config: int = ina228.ADCRANGE) -> Ina228Model:
    chip = Ina228Model()
    chip.write_word(ina228.ADC_CONFIG, 0xBB69)
    chip.write_word(ina228.SHUNT_CAL, shunt_cal)
    chip.write_word(ina228.CONFIG, config | ina228.RSTACC)
    chip.write_word(ina228.DIAG_ALRT, ina228.ALATCH)
    return chip


def field(chip: Ina228Model, register: int) -> int:
    return int.from_bytes(chip.read_block(register, 3), "big", signed=True) >> 4


def word(chip: Ina228Model, register: int) -> int:
    return int.from_bytes(chip.read_block(register, 2), "big")


def energy(chip: Ina228Model) -> int:
    return int.from_bytes(chip.read_block(ina228.ENERGY, 5), "big")


def test_power_on_values_are_those_of_the_data_sheet() -> None:
    chip = Ina228Model()
    found = {r: word(chip, r) for r in (0x00, 0x01, 0x02, 0x0B, 0x0C, 0x0D, 0x11, 0x3E)}
    assert found == {
        0x00: 0,
        0x01: 0xFB68,
        0x02: 0x1000,
        0x0B: 0x0001,
        0x0C: 0x7FFF,
        0x0D: 0x8000,
        0x11: 0xFFFF,
        0x3E: 0x5449,
    }
    assert word(chip, 0x3F) >> 4 == 0x228


def test_results_scale_as_the_data_sheet_says() -> None:
    chip = configured()
    chip.sample(47.5, 27.4, SECOND)
    assert field(chip, ina228.VSHUNT) * 78.125e-9 == pytest.approx(0.0274, rel=1e-5)
    assert field(chip, ina228.VBUS) * 195.3125e-6 == pytest.approx(47.5, rel=1e-5)
    assert field(chip, ina228.CURRENT) * CURRENT_LSB == pytest.approx(27.4, rel=1e-4)
    power = int.from_bytes(chip.read_block(ina228.POWER, 3), "big")
    assert power * 3.2 * CURRENT_LSB == pytest.approx(47.5 * 27.4, rel=1e-4)
    assert energy(chip) * 16 * 3.2 * CURRENT_LSB == pytest.approx(47.5 * 27.4, rel=0.01)
    charge = int.from_bytes(chip.read_block(ina228.CHARGE, 5), "big", signed=True)
    assert charge * CURRENT_LSB == pytest.approx(27.4, rel=0.01)


def test_energy_is_the_same_in_one_stretch_and_in_many_steps() -> None:
    one, many = configured(), configured()
    one.sample(47.5, 27.4, 10 * SECOND)
    for _ in range(10_000):
        many.sample(47.5, 27.4, SECOND // 1000)
    assert energy(one) == pytest.approx(energy(many), abs=1)


def test_a_current_that_flows_back_is_negative_and_its_power_is_not() -> None:
    chip = configured()
    chip.sample(48.0, -10.0, SECOND)
    assert field(chip, ina228.CURRENT) * CURRENT_LSB == pytest.approx(-10.0, rel=1e-3)
    assert int.from_bytes(chip.read_block(ina228.POWER, 3), "big") * 3.2 * CURRENT_LSB == pytest.approx(480, rel=1e-3)


def test_a_conversion_is_flagged_once() -> None:
    chip = configured()
    chip.sample(48.0, 1.0, chip.conversion_ns - 1)
    assert not word(chip, ina228.DIAG_ALRT) & ina228.CNVRF
    chip.sample(48.0, 1.0, 1)
    assert word(chip, ina228.DIAG_ALRT) & ina228.CNVRF
    assert not word(chip, ina228.DIAG_ALRT) & ina228.CNVRF


def test_conversion_time_is_that_of_all_enabled_inputs_averaged() -> None:
    assert configured().conversion_ns == (1_052_000 + 1_052_000) * 4
    assert Ina228Model().conversion_ns == 3 * 1_052_000


def test_beyond_the_range_of_the_adc_the_shunt_voltage_is_clipped() -> None:
    chip = configured(shunt_cal=8000)
    chip.sample(48.0, 60.0, SECOND)
    assert field(chip, ina228.VSHUNT) == ina228.TOP_20


def test_beyond_the_calibration_the_current_overflows_and_says_so() -> None:
    chip = configured(shunt_cal=1000)
    chip.sample(48.0, 30.0, SECOND)
    assert field(chip, ina228.CURRENT) == ina228.TOP_20
    assert word(chip, ina228.DIAG_ALRT) & ina228.MATHOF
    chip.sample(48.0, 1.0, SECOND)
    assert word(chip, ina228.DIAG_ALRT) & ina228.MATHOF, "it stays until the accumulators are cleared"
    chip.write_word(ina228.CONFIG, ina228.ADCRANGE | ina228.RSTACC)
    assert not word(chip, ina228.DIAG_ALRT) & ina228.MATHOF


def test_the_energy_accumulator_wraps_at_40_bits_and_says_so_until_it_is_read() -> None:
    chip = configured()
    chip.set_energy((1 << 40) - 2)
    chip.sample(48.0, 27.0, SECOND)
    assert word(chip, ina228.DIAG_ALRT) & ina228.ENERGYOF
    assert energy(chip) < 1 << 30
    assert not word(chip, ina228.DIAG_ALRT) & ina228.ENERGYOF


def test_clearing_the_accumulators_leaves_the_configuration() -> None:
    chip = configured()
    chip.sample(48.0, 27.0, SECOND)
    chip.write_word(ina228.CONFIG, ina228.ADCRANGE | ina228.RSTACC)
    assert energy(chip) == 0
    assert word(chip, ina228.CONFIG) == ina228.ADCRANGE, "RSTACC clears itself"
    assert word(chip, ina228.SHUNT_CAL) == SHUNT_CAL_40_A


def test_a_reset_brings_the_power_on_values_back() -> None:
    chip = configured()
    chip.sample(48.0, 27.0, SECOND)
    chip.write_word(ina228.CONFIG, ina228.RST)
    assert (word(chip, ina228.SHUNT_CAL), word(chip, ina228.CONFIG), energy(chip)) == (0x1000, 0, 0)


def test_in_shutdown_nothing_is_measured() -> None:
    chip = configured()
    chip.write_word(ina228.ADC_CONFIG, 0x0B69)
    chip.sample(48.0, 27.0, SECOND)
    assert not word(chip, ina228.DIAG_ALRT) & ina228.CNVRF
    assert energy(chip) == 0


def test_triggered_mode_converts_once() -> None:
    chip = configured()
    chip.write_word(ina228.ADC_CONFIG, 0x3B69)
    chip.sample(48.0, 27.0, SECOND)
    assert word(chip, ina228.DIAG_ALRT) & ina228.CNVRF
    chip.sample(48.0, 27.0, SECOND)
    assert not word(chip, ina228.DIAG_ALRT) & ina228.CNVRF
