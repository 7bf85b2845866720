"""A world in this process whose time is in the test's hand, and the meter under test in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wattline.device.meters.ina219 import Ina219Settings, open_ina219
from wattline.device.meters.ina226 import Ina226Settings, open_ina226
from wattline.device.meters.ina228 import Ina228
from wattline.device.meters.ina228_calibration import Ina228Settings
from wattline.device.meters.sampling import SampledMeter
from wattline.device.simulator.world import EXPANDER, World, WorldBus

SECOND = 1_000_000_000


class Bench:
    """An outlet on the table."""

    def __init__(self, profile: str = "constant-1000") -> None:
        self.ns = 5 * SECOND
        self.world = World(profile, lambda: self.ns)
        self.bus = WorldBus(self.world)

    def pass_s(self, seconds: float) -> None:
        self.ns += round(seconds * SECOND)

    def switch_on(self) -> None:
        self.bus.write_byte(EXPANDER, 0xFE)

    def meter(self, address: int = 0x40, max_current_a: float = 40) -> Ina228:
        settings = Ina228Settings(
            driver="ina228", bus="sim:toaster", address=address, shunt_ohms=0.001, max_current_a=max_current_a
        )
        return Ina228(self.bus, settings, lambda: self.ns, self.pass_s)

    def ina226(self, address: int = 0x48, max_current_a: float = 40) -> SampledMeter:
        settings = Ina226Settings(
            driver="ina226", bus="sim:toaster", address=address, shunt_ohms=0.001, max_current_a=max_current_a
        )
        return open_ina226(self.bus, settings, lambda: self.ns, self.pass_s)

    def ina219(self, address: int = 0x4A, max_current_a: float = 40) -> SampledMeter:
        settings = Ina219Settings(
            driver="ina219", bus="sim:toaster", address=address, shunt_ohms=0.001, max_current_a=max_current_a
        )
        return open_ina219(self.bus, settings, lambda: self.ns, self.pass_s)


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()
