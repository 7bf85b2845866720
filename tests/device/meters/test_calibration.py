"""The settings of an INA228, and its raw values in exact units."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.errors import UsageError
from wattline.core.settings import Settings, parse_settings
from wattline.device.meters.ina219 import Ina219Settings
from wattline.device.meters.ina226 import Ina226Settings
from wattline.device.meters.ina228_calibration import Calibration, Ina228Settings, voltage_mv
from wattline.device.meters.opening import MeterSettings

GOOD: dict[str, Any] = {
    "driver": "ina228",
    "bus": 1,
    "address": 0x40,
    "shunt_ohms": 0.001,
    "max_current_a": 40,
}


class File(Settings):
    meter: MeterSettings


def settings(**changes: object) -> Ina228Settings:
    meter = parse_settings({"meter": GOOD | changes}, File, "socket.toml").meter
    assert isinstance(meter, Ina228Settings)
    return meter


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    nano_ohms = draw(st.integers(20_000, 100_000_000))
    # 1 mV to 163.84 mV over the shunt.
    milliamperes = draw(st.integers(10**9 // nano_ohms + 1, 163_840_000_000 // nano_ohms))
    return Calibration.of(settings(shunt_ohms=nano_ohms / 1e9, max_current_a=milliamperes / 1000))


def lsb_a(calibration: Calibration) -> Fraction:
    """CURRENT_LSB by the data sheet, equation 2, from what is in the chip."""
    ohms = Fraction(calibration.shunt_nohm, 10**9)
    return calibration.shunt_cal / (Fraction("13107.2e6") * ohms * (4 if calibration.narrow else 1))


def test_the_calibration_of_the_demo_is_that_of_the_data_sheet() -> None:
    # 40 A over 1 milliohm are 40 mV: the narrow range; 13107.2e6 x 40 / 2**19 x 0.001 x 4 = 4000.
    assert Calibration.of(settings()) == Calibration(shunt_nohm=1_000_000, shunt_cal=4000, narrow=True)
    assert Calibration.of(settings(max_current_a=41)) == Calibration(shunt_nohm=1_000_000, shunt_cal=1025, narrow=False)


@given(calibrations())
def test_the_calibration_covers_the_highest_current(calibration: Calibration) -> None:
    assert 0 < calibration.shunt_cal <= 4096


@given(calibrations(), st.integers(0, (1 << 40) - 1))
def test_energy_is_the_exact_product_rounded_down(calibration: Calibration, raw: int) -> None:
    joules = raw * 16 * Fraction("3.2") * lsb_a(calibration)
    assert calibration.energy_uwh(raw) == joules * 10**6 // 3600


@given(calibrations(), st.integers(0, (1 << 24) - 1))
def test_power_is_the_exact_product_rounded(calibration: Calibration, raw: int) -> None:
    milliwatts = raw * Fraction("3.2") * lsb_a(calibration) * 1000
    assert abs(calibration.power_mw(raw) - milliwatts) <= Fraction(1, 2)


@given(calibrations(), st.integers(-(1 << 19), (1 << 19) - 1))
def test_current_is_the_exact_product_rounded_alike_both_ways(calibration: Calibration, raw: int) -> None:
    milliamperes = raw * lsb_a(calibration) * 1000
    assert abs(calibration.current_ma(raw) - milliamperes) <= Fraction(1, 2)
    assert calibration.current_ma(-raw) == -calibration.current_ma(raw)


@given(st.integers(0, (1 << 19) - 1))
def test_voltage_is_the_exact_product_rounded(raw: int) -> None:
    assert abs(voltage_mv(raw) - raw * Fraction("0.1953125")) <= Fraction(1, 2)


@given(calibrations(), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_energy_never_shrinks_when_the_raw_value_grows(calibration: Calibration, low: int, more: int) -> None:
    assert calibration.energy_uwh(low) <= calibration.energy_uwh(low + more)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"driver": "ina999"}, "must be one of 'ina228', 'ina226', 'ina219'"),
        ({"address": 0x3F}, "greater than or equal to 0x40"),
        ({"address": 0x50}, "less than or equal to 0x4f"),
        ({"bus": "usb"}, r"'sim:PROFILE\[/INSTANCE\]'"),
        ({"bus": "sim:kettle"}, "unknown load profile 'kettle'"),
        ({"bus": -1}, "0 to 255"),
        ({"bus": True}, "bus"),
        ({"max_current_a": 164}, "is 164 mV; an INA228 measures up to 163.84 mV"),
        ({"max_current_a": 0.5}, "is 0.5 mV"),
        ({"max_current_a": 0}, "greater than 0"),
        ({"shunt_ohms": -0.001}, "greater than 0"),
        ({"shunt_ohms": "0.001"}, "valid number"),
        ({"gain": 2}, "unknown key; allowed here: address, bus, driver, max_current_a, shunt_ohms"),
    ],
)
def test_an_impossible_setting_is_named_with_what_is_allowed(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        settings(**changes)
    assert "socket.toml: meter" in caught.value.message


def any_settings(**changes: object) -> MeterSettings:
    return parse_settings({"meter": GOOD | changes}, File, "socket.toml").meter


@pytest.mark.parametrize(
    ("driver", "max_current_a", "calibration"),
    # 0.00512 and 0.04096 over (max_current / 2**15 x 0.001), the second one even and at most 0xfffe.
    [
        ("ina226", 40, 4194),
        ("ina226", 81.92, 2048),
        ("ina219", 80, 16_776),
        ("ina219", 320, 4194),
        ("ina219", 20, 65_534),
    ],
)
def test_the_calibration_of_a_power_monitor_is_that_of_its_data_sheet(
    driver: str, max_current_a: float, calibration: int
) -> None:
    found = any_settings(driver=driver, max_current_a=max_current_a)
    assert isinstance(found, Ina226Settings | Ina219Settings)
    assert found.calibration == calibration


@pytest.mark.parametrize(("max_current_a", "config"), [(40, 0x2667), (40.1, 0x2E67), (160, 0x3667), (320, 0x3E67)])
def test_an_ina219_takes_the_finest_range_that_fits(max_current_a: float, config: int) -> None:
    found = any_settings(driver="ina219", max_current_a=max_current_a)
    assert isinstance(found, Ina219Settings)
    assert found.config == config


@pytest.mark.parametrize(
    ("driver", "max_current_a", "complaint"),
    [
        ("ina226", 82, "is 82 mV; an INA226 measures up to 81.92 mV and needs at least 10 mV"),
        ("ina226", 9, "is 9 mV"),
        ("ina219", 321, "is 321 mV; an INA219 measures up to 320.0 mV and needs at least 10 mV"),
        ("ina219", 9, "is 9 mV"),
    ],
)
def test_a_shunt_that_does_not_fit_a_power_monitor_is_named(driver: str, max_current_a: float, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        any_settings(driver=driver, max_current_a=max_current_a)
