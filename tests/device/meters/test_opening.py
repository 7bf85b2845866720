"""From settings to a meter, over the process of a simulated world."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from wattline.device.i2c.linux import open_bus
from wattline.device.meters.ina228_calibration import Ina228Settings
from wattline.device.meters.opening import MeterSettings, open_meter
from wattline.device.meters.reading import MeterError
from wattline.device.simulator.control import SimulatedWorld
from wattline.device.simulator.world import MeterFault


@pytest.fixture(autouse=True)
def _own_worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTLINE_SIM_DIR", str(tmp_path))
    monkeypatch.setenv("WATTLINE_SIM_IDLE_S", "0.3")


def settings(bus: int | str = "sim:constant-1000", address: int = 0x40) -> Ina228Settings:
    return Ina228Settings(driver="ina228", bus=bus, address=address, shunt_ohms=0.001, max_current_a=40)


def test_the_meters_of_both_sides_agree_within_one_percent() -> None:
    socket, cable = open_meter(settings(), 1_400_000), open_meter(settings(address=0x44))
    bus = open_bus("sim:constant-1000")
    with SimulatedWorld.connect("sim:constant-1000") as world:
        bus.write_byte(0x20, 0xFE)
        while world.energy_uwh(0) < 100_000:
            socket.read()
            cable.read()
        bus.write_byte(0x20, 0xFF)
        opened_ms = world.history(0)[-1].at_ms
        # Until the conversion under way when the relay opened is done.
        while cable.read().at_ms < opened_ms + 20:
            pass
        truth = world.energy_uwh(0)
        # A cycle of 2.1 ms looks at the current for a half of it: each edge may be a millisecond off.
        assert socket.read().energy_uwh == pytest.approx(truth, abs=truth // 1000 + 2 * 300)
        # Its voltage comes and goes with the relay: of the two conversions at the edges it sees only a part.
        assert cable.read().energy_uwh == pytest.approx(truth, abs=truth // 200 + 2 * 600)
        assert cable.read().energy_uwh < socket.read().energy_uwh
    for closable in (socket, cable, bus):
        closable.close()


def test_a_lying_meter_is_a_meter_like_any_other() -> None:
    cable = open_meter(settings(address=0x44))
    bus = open_bus("sim:constant-1000")
    with SimulatedWorld.connect("sim:constant-1000") as world:
        world.break_meter(0x44, MeterFault.GAIN, 0.9)
        bus.write_byte(0x20, 0xFE)
        while (reading := cable.read()).power_mw == 0:
            pass
        while (reading := cable.read()).power_mw < 850_000:
            pass
        assert reading.power_mw < 950_000
    cable.close()
    bus.close()


def test_a_bus_that_is_not_there_is_a_meter_error_naming_it() -> None:
    with pytest.raises(MeterError, match="/dev/i2c-254") as caught:
        open_meter(settings(bus=254))
    assert caught.value.code == "meter_bus_error"


def test_an_address_where_no_chip_answers_is_a_meter_error_naming_it() -> None:
    with SimulatedWorld.connect("sim:constant-1000") as world:
        world.break_meter(0x43, MeterFault.NACK)
        with pytest.raises(MeterError, match="0x43") as caught:
            open_meter(settings(address=0x43))
    assert caught.value.code == "meter_bus_error"


@pytest.mark.parametrize(
    ("driver", "address"), [("ina226", 0x49), ("ina219", 0x4B), ("ina226", 0x4D), ("ina219", 0x4F)]
)
def test_a_24_v_toaster_is_measured_by_the_other_chips_too(driver: str, address: int) -> None:
    spec = "sim:toaster@24/other"
    meter = open_meter(_any_settings(driver, spec, address), 500_000)
    bus = open_bus(spec)
    bus.write_byte(0x20, 0xFD)
    while meter.read().power_mw < 250_000:
        pass
    while (reading := meter.read()).energy_uwh < 10_000:
        pass
    assert 300_000 < reading.power_mw < 345_000
    bus.write_byte(0x20, 0xFF)
    meter.close()
    bus.close()


def test_an_outlet_at_48_v_is_refused_by_an_ina226() -> None:
    with pytest.raises(MeterError, match="bus voltage") as caught:
        open_meter(_any_settings("ina226", "sim:constant-1000", 0x48))
    assert caught.value.code == "meter_saturated"


def _any_settings(driver: str, bus: str, address: int) -> MeterSettings:
    values = {"driver": driver, "bus": bus, "address": address, "shunt_ohms": 0.001, "max_current_a": 40}
    adapter: TypeAdapter[MeterSettings] = TypeAdapter(MeterSettings)
    return adapter.validate_python(values)
