"""A transfer that was disturbed and looks like any other: read once more before it is believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattline.device.i2c.bus import BusError
from wattline.device.meters.reading import Meter, MeterError, Reading
from wattline.device.meters.trust import TrustedMeter
from wattline.device.simulator.world import MeterFault, WorldBus

RATED_MW = 1_400_000
CHIPS: dict[str, tuple[int, Callable[[Any], Meter]]] = {
    "ina228": (0x40, lambda bench: bench.meter()),
    "ina226": (0x48, lambda bench: bench.ina226()),
    "ina219": (0x4A, lambda bench: bench.ina219()),
}
MOST_TRANSFERS = 16
"""More than one reading takes."""


class NoisyBus:
    """``of`` with one word of a chip as ``noise`` has it, from the transfer ``at`` on, ``times`` times."""

    def __init__(self, of: WorldBus) -> None:
        self._of = of
        self.at, self.times, self.noise = -1, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def disturb(self, at: int, times: int, noise: int) -> None:
        self.at, self.times, self.noise = at, times, noise

    def _is_disturbed(self) -> bool:
        self.at -= 1
        if self.at >= 0 or self.times <= 0:
            return False
        self.times -= 1
        return True

    def read_word(self, address: int, register: int) -> int:
        word = self._of.read_word(address, register)
        return self.noise & 0xFFFF if self._is_disturbed() else word

    def read_block(self, address: int, register: int, length: int) -> bytes:
        block = self._of.read_block(address, register, length)
        return self.noise.to_bytes(5, "big")[-length:] if self._is_disturbed() else block


def delivering(make_bench: Callable[..., Any], chip: str, profile: str) -> tuple[Any, NoisyBus, Meter]:
    """An outlet that has delivered for a while, and been read ten times a second."""
    bench = make_bench(profile)
    bus = bench.bus = NoisyBus(bench.bus)
    meter = TrustedMeter(CHIPS[chip][1](bench), RATED_MW)
    bench.switch_on()
    for _ in range(5):
        bench.pass_s(0.1)
        meter.read()
    return bench, bus, meter


def read_on(bench: Any, meter: Meter) -> Reading:
    for _ in range(3):
        bench.pass_s(0.1)
        reading = meter.read()
    return reading


@pytest.mark.parametrize("chip", CHIPS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, MOST_TRANSFERS), noise=st.sampled_from([0xFF_FFFF_FFFF, 0, 0x7F_FF7F_FF7F, 0x80_0080_0080]))
def test_one_disturbed_transfer_ends_no_session(make_bench: Callable[..., Any], chip: str, at: int, noise: int) -> None:
    # The INA226 and the INA219 cannot measure the 48 V of the other profile.
    profile = "constant-1000" if chip == "ina228" else "toaster@24"
    bench, bus, meter = delivering(make_bench, chip, profile)
    _, _, undisturbed = delivering(make_bench, chip, profile)
    bus.disturb(at, 1, noise)
    reading = read_on(bench, meter)
    assert abs(reading.energy_uwh - bench.world.energy_uwh(0)) < 0.05 * bench.world.energy_uwh(0) + 20_000
    assert reading.power_mw > 0
    assert undisturbed.read().power_mw == pytest.approx(reading.power_mw, rel=0.02)


@pytest.mark.parametrize("chip", CHIPS)
def test_what_is_wrong_twice_ends_it(make_bench: Callable[..., Any], chip: str) -> None:
    bench, _, meter = delivering(make_bench, chip, "constant-1000" if chip == "ina228" else "toaster@24")
    address, _ = CHIPS[chip]
    bench.world.break_meter(address, MeterFault.RESET, 0.0)
    bench.pass_s(0.1)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "meter_reset"


def test_a_chip_whose_name_was_garbled_once_is_taken(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    bus = bench.bus = NoisyBus(bench.bus)
    bus.disturb(0, 1, 0xFFFF)
    assert bench.meter().read().voltage_mv == 48_000
    bus.disturb(0, 2, 0xFFFF)
    with pytest.raises(MeterError) as caught:
        bench.meter()
    assert caught.value.code == "meter_wrong_chip"


def test_a_chip_that_does_not_answer_is_no_garbled_one(make_bench: Callable[..., Any]) -> None:
    _, bus, meter = delivering(make_bench, "ina228", "constant-1000")

    def refuse(address: int, register: int) -> int:
        raise BusError("no_answer", f"no chip at {address:#04x} ({register:#04x})")

    bus.read_word = refuse  # type: ignore[method-assign]
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "meter_bus_error"
