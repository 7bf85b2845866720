"""A load that gives a little back now and then pays for all that it draws: the INA228 counts energy without a sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from wattline.bus.i2c import I2CBus
from wattline.bus.simulation.ina228 import Ina228Model
from wattline.meter import MeterError
from wattline.meter.ina228 import Ina228
from wattline.meter.ina228_calibration import Ina228Settings
from wattline.meter.trust import TrustedMeter

SECOND_NS = 10**9
INTERVAL_NS = SECOND_NS // 10
VOLTS = 48.0
RATED_MW = 1_400_000


class Load:
    """An INA228 whose current is a function of the time in ms."""

    def __init__(self, current_a: Callable[[int], float]) -> None:
        self.now_ns = 5 * SECOND_NS
        self.forward_uwh = 0.0
        self._chip, self._current_a = Ina228Model(), current_a

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 1000)):
            current = self._current_a(self.now_ns // 10**6)
            self._chip.sample(VOLTS, current, 10**6)
            self.forward_uwh += max(0.0, VOLTS * current) / 3.6
            self.now_ns += 10**6

    def read_word(self, address: int, register: int) -> int:
        return int.from_bytes(self._chip.read_block(register, 2), "big")

    def read_block(self, address: int, register: int, length: int) -> bytes:
        return bytes(self._chip.read_block(register, length))

    def write_word(self, address: int, register: int, value: int) -> None:
        self._chip.write_word(register, value)

    def close(self) -> None:
        pass


def counted(current_a: Callable[[int], float], seconds: int = 10, offset_ms: int = 0) -> tuple[int, float]:
    """What is counted in so long, and what really flowed forward, uWh; read ten times a second, ``offset_ms`` late."""
    load = Load(current_a)
    settings = Ina228Settings(driver="ina228", bus="sim:toaster", address=0x40, shunt_ohms=0.001, max_current_a=40)
    meter = TrustedMeter(
        Ina228(cast(I2CBus, load), settings, lambda: load.now_ns, load.wait), RATED_MW, settings.zero_ma
    )
    load.wait(0.1 + offset_ms / 1000 - load.now_ns % INTERVAL_NS / SECOND_NS)
    first, load.forward_uwh = meter.read(), 0.0
    for _ in range(seconds * 10):
        load.wait(0.1)
        last = meter.read()
    return last.energy_uwh - first.energy_uwh, load.forward_uwh


def test_what_is_drawn_between_two_dips_below_zero_is_counted() -> None:
    energy_uwh, forward_uwh = counted(lambda ms: -0.005 if ms % 200 >= 178 or ms % 200 < 3 else 27.0)
    assert energy_uwh == pytest.approx(forward_uwh, rel=0.01)


@pytest.mark.parametrize("offset_ms", [0, 35, 70])
@pytest.mark.parametrize("period_ms", [150, 200, 470, 1000])
def test_a_load_that_switches_is_counted_with_an_offset_below_zero(period_ms: int, offset_ms: int) -> None:
    energy_uwh, forward_uwh = counted(lambda ms: 20.0 if ms % period_ms < period_ms // 2 else -0.001, 5, offset_ms)
    assert energy_uwh == pytest.approx(forward_uwh, rel=0.03)


def test_no_load_hides_behind_moments_in_which_much_flows_back() -> None:
    with pytest.raises(MeterError) as caught:
        counted(lambda ms: -27.0 if ms % 200 >= 178 or ms % 200 < 3 else 27.0)
    assert caught.value.code == "backflow"
