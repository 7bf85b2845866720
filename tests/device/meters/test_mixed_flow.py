"""A load that gives a little back now and then pays for all that it draws: the INA228 counts energy without a sign."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.device.i2c.bus import I2CBus
from wattline.device.meters.ina228 import Ina228
from wattline.device.meters.ina228_calibration import Ina228Settings
from wattline.device.meters.reading import MeterError, Reading
from wattline.device.meters.trust import TrustedMeter
from wattline.device.simulator.ina228 import CHARGE, ENERGY, Ina228Model

SECOND_NS = 10**9
INTERVAL_NS = SECOND_NS // 10
VOLTS = 48.0
RATED_MW = 1_400_000
CYCLE_MS, APART_MS = 2.104, 5
FULL_SCALE_APART_UWH = 40 * 1.05 * VOLTS * APART_MS / 2 / 3.6
INA228 = Ina228Settings(driver="ina228", bus="sim:toaster", address=0x40, shunt_ohms=0.001, max_current_a=40)


@dataclass(frozen=True, slots=True)
class Flowed:
    forward_uwh: float = 0.0
    back_uwh: float = 0.0


class Load:
    """An INA228 whose current is a function of the time in ms, with a zero offset, on a supply of some resistance. A
    block takes a millisecond on its bus."""

    def __init__(self, current_a: Callable[[int], float], zero_a: float = 0.0, supply_ohms: float = 0.0) -> None:
        self.now_ns = 5 * SECOND_NS
        self.forward_uwh = self.back_uwh = 0.0
        self.flowed = Flowed()
        """At the last look at ENERGY."""
        self.chip = Ina228Model()
        self._disturbed, self._noise = -1, 0
        self._current_a, self._zero_a, self._supply_ohms = current_a, zero_a, supply_ohms

    def meter(self) -> TrustedMeter:
        return TrustedMeter(self.chip_meter(), RATED_MW, INA228.zero_ma)

    def chip_meter(self) -> Ina228:
        return Ina228(cast(I2CBus, self), INA228, lambda: self.now_ns, self.wait)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 1000)):
            current = self._current_a(self.now_ns // 10**6)
            volts = VOLTS - current * self._supply_ohms
            self.chip.sample(volts, current + self._zero_a, 10**6)
            self.forward_uwh += max(0.0, volts * current) / 3.6
            self.back_uwh += max(0.0, -volts * current) / 3.6
            self.now_ns += 10**6

    def until_look(self, late_ms: int = 0) -> None:
        """Until so many ms after the next tenth of a second."""
        self.wait((INTERVAL_NS - (self.now_ns - late_ms * 10**6) % INTERVAL_NS) / SECOND_NS)

    def read_word(self, address: int, register: int) -> int:
        return int.from_bytes(self._noisy(self.chip.read_block(register, 2)), "big")

    def read_block(self, address: int, register: int, length: int) -> bytes:
        if register == ENERGY:
            self.flowed = Flowed(self.forward_uwh, self.back_uwh)
        block = self._noisy(self.chip.read_block(register, length))
        self.wait(0.001)
        return block

    def disturb(self, transfer: int, noise: int) -> None:
        """Turn round the bits of ``noise`` in a transfer to come."""
        self._disturbed, self._noise = transfer, noise

    def _noisy(self, block: bytes) -> bytes:
        self._disturbed -= 1
        noise = self._noise if self._disturbed == -1 else 0
        return (int.from_bytes(block, "big") ^ noise % (1 << 8 * len(block))).to_bytes(len(block), "big")

    def write_word(self, address: int, register: int, value: int) -> None:
        self.chip.write_word(register, value)

    def close(self) -> None:
        pass


def counted(current_a: Callable[[int], float], seconds: int = 10, offset_ms: int = 0) -> tuple[int, float]:
    """What is counted in so long, and what really flowed forward, uWh; read ten times a second, ``offset_ms`` late."""
    load = Load(current_a)
    meter = load.meter()
    load.until_look(offset_ms)
    first, before = meter.read(), load.flowed
    for _ in range(seconds * 10):
        load.until_look(offset_ms)
        last = meter.read()
    return last.energy_uwh - first.energy_uwh, load.flowed.forward_uwh - before.forward_uwh


Pattern = list[tuple[int, float]]


def milli(thousandths: int) -> float:
    return thousandths / 1000


currents = st.one_of(st.sampled_from([27.0, -27.0, 0.0, 0.6, -0.5, -0.005]), st.integers(-27_000, 27_000).map(milli))
patterns = st.lists(st.tuples(st.integers(3, 250), currents), min_size=1, max_size=6)


def repeated(pattern: Pattern) -> Callable[[int], float]:
    """The current of a load that goes through ``pattern`` (ms, A) again and again."""
    course = [current for ms, current in pattern for _ in range(ms)]
    return lambda ms: course[ms % len(course)]


def is_back(reading: Reading) -> bool:
    return reading.power_mw < 0 or reading.current_ma < 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may be counted of a load that goes through ``pattern`` in so many ms, uWh, as docs/hardware.md has it."""

    pattern: Pattern
    zero_a: float
    supply_ohms: float

    def least(self, forward_uwh: float, ms: int) -> float:
        return 0.9995 * forward_uwh - self._edges_uwh(ms) - self._zero_uwh(ms) - self._apart_uwh

    def most(self, forward_uwh: float, back_uwh: float, unseen_uwh: float, ms: int) -> float:
        """What came back and was over between two readings nobody can tell from what flowed forward."""
        rise = self.supply_ohms * self._highest_a / VOLTS
        uncertain_uwh = rise * (forward_uwh + back_uwh) / 2
        edges_uwh = self._edges_uwh(ms) + self._zero_uwh(ms)
        return 1.0005 * (forward_uwh + unseen_uwh) + uncertain_uwh + edges_uwh + self._apart_uwh + FULL_SCALE_APART_UWH

    @property
    def _highest_a(self) -> float:
        return max(abs(current) for _, current in self.pattern)

    @property
    def _apart_uwh(self) -> float:
        """Of the power at the first and the last reading; and a few steps of the accumulators."""
        return 1.05 * VOLTS * (self._highest_a + abs(self.zero_a)) * 2 * APART_MS / 3.6 + 10

    def _zero_uwh(self, ms: int) -> float:
        return 1.05 * VOLTS * abs(self.zero_a) * ms / 3.6

    def _edges_uwh(self, ms: int) -> float:
        """A cycle of 2.1 ms looks at the current for a half of it."""
        following = [*self.pattern[1:], self.pattern[0]]
        swing_a = sum(abs(a - b) for (_, a), (_, b) in zip(self.pattern, following, strict=True))
        return 1.05 * VOLTS * swing_a * (ms / sum(ms for ms, _ in self.pattern) + 1) * CYCLE_MS / 2 / 3.6


@settings(max_examples=60, deadline=None)
@given(
    pattern=patterns,
    zero_a=st.sampled_from([0.0, 0.001, -0.001]),
    supply_ohms=st.sampled_from([0.0, 0.04]),
    late_ms=st.integers(0, 99),
)
def test_whatever_a_load_gives_back_it_pays_for_what_it_draws_and_for_no_more(
    pattern: Pattern, zero_a: float, supply_ohms: float, late_ms: int
) -> None:
    """Or the meter stops it."""
    load, bounds = Load(repeated(pattern), zero_a, supply_ohms), Bounds(pattern, zero_a, supply_ohms)
    meter = load.meter()
    load.until_look(late_ms)
    first = last = meter.read()
    start = before = load.flowed
    unseen_uwh = 0.0
    for n in range(1, 21):
        load.until_look(late_ms)
        try:
            reading = meter.read()
        except MeterError as error:
            if error.code != "backflow":
                raise
            break
        # Both are rounded down.
        assert reading.energy_uwh - last.energy_uwh <= reading.chip_uwh - last.chip_uwh + 1
        if not is_back(reading) and not is_back(last):
            unseen_uwh += load.flowed.back_uwh - before.back_uwh
        last, before = reading, load.flowed
        energy_uwh = last.energy_uwh - first.energy_uwh
        forward_uwh, back_uwh = before.forward_uwh - start.forward_uwh, before.back_uwh - start.back_uwh
        assert energy_uwh >= bounds.least(forward_uwh, n * 100)
        assert energy_uwh <= bounds.most(forward_uwh, back_uwh, unseen_uwh, n * 100)


@settings(max_examples=60, deadline=None)
@given(
    transfer=st.integers(0, 30),
    bit=st.integers(0, 39),
    pattern=st.sampled_from(
        [[(1, -0.5), (175, 20.0), (24, -0.5)], [(30, 5.0), (170, -0.5)], [(500, 20.0), (100, -0.5)]]
    ),
)
def test_a_disturbed_transfer_gives_nothing_away_and_ends_nothing(transfer: int, bit: int, pattern: Pattern) -> None:
    load, bounds = Load(repeated(pattern)), Bounds(pattern, 0.0, 0.0)
    meter = load.meter()
    load.until_look()
    first, start = meter.read(), load.flowed
    load.disturb(transfer, 1 << bit)
    for _ in range(10):
        load.until_look()
        last = meter.read()
    energy_uwh, forward_uwh = last.energy_uwh - first.energy_uwh, load.flowed.forward_uwh - start.forward_uwh
    back_uwh = load.flowed.back_uwh - start.back_uwh
    assert energy_uwh >= bounds.least(forward_uwh, 1000) - 2 * FULL_SCALE_APART_UWH
    assert energy_uwh <= bounds.most(forward_uwh, back_uwh, back_uwh, 1000)


@pytest.mark.parametrize(
    ("forward_a", "back_a", "period_ms"),
    [(27.0, 27.0, 600), (27.0, 0.5, 200), (0.6, 0.5, 200), (0.6, 0.5, 600), (0.1, 0.09, 200)],
)
def test_no_load_draws_for_nothing_by_giving_back_at_the_readings(
    forward_a: float, back_a: float, period_ms: int
) -> None:
    pattern = [(12, -back_a), (period_ms - 34, forward_a), (22, -back_a)]
    energy_uwh, forward_uwh = counted(repeated(pattern))
    assert energy_uwh == pytest.approx(forward_uwh, rel=0.01, abs=200)


@pytest.mark.parametrize("starts_at_zero", [False, True])
def test_a_count_of_the_charge_that_overflows_is_no_backflow(starts_at_zero: bool) -> None:
    """The data sheet does not say where it goes on."""
    load = Load(lambda ms: -0.5 if ms % 200 >= 178 or ms % 200 < 3 else 27.0)
    meter = load.meter()
    load.chip.set_charge((1 << 39) - 100_000)
    load.until_look()
    first, start = meter.read(), load.flowed
    for n in range(20):
        load.until_look()
        last = meter.read()
        if n == 10:
            assert load.chip.read_block(CHARGE, 5)[0] & 0x80, "it has rolled over"
            if starts_at_zero:
                load.chip.set_charge(0)
    assert last.energy_uwh - first.energy_uwh == pytest.approx(load.flowed.forward_uwh - start.forward_uwh, rel=0.01)


@pytest.mark.parametrize("supply_ohms", [0.0, 0.04])
def test_who_feeds_in_is_not_charged_for_it_however_long_it_lasts(supply_ohms: float) -> None:
    load = Load(lambda ms: -10.0 + 8.0 * math.sin(ms / 170), supply_ohms=supply_ohms)
    meter = load.chip_meter()
    load.until_look()
    first, start = meter.read(), load.flowed
    for _ in range(200):
        load.until_look()
        last = meter.read()
    back_uwh = load.flowed.back_uwh - start.back_uwh
    assert last.energy_uwh - first.energy_uwh < 0.002 * back_uwh
    assert last.backflow_uwh - first.backflow_uwh == pytest.approx(back_uwh, rel=0.002)


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
