"""Readings held against each other, whatever the chip."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from wattline.device.meters.reading import MeterError, Reading
from wattline.device.meters.trust import TrustedMeter

RATED_MW = 1_400_000


class PlayedMeter:
    """Plays readings back."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._readings = iter(readings)
        self.closed = False

    def read(self) -> Reading:
        return next(self._readings)

    def close(self) -> None:
        self.closed = True


def reading(at_ms: int, energy_uwh: int, power_mw: int = 1_000_000) -> Reading:
    return Reading(energy_uwh, power_mw, 48_000, power_mw // 48, at_ms)


def read_all(readings: list[Reading], max_power_mw: int | None = RATED_MW) -> list[Reading]:
    meter = TrustedMeter(PlayedMeter(readings), max_power_mw)
    return [meter.read() for _ in readings]


def test_readings_that_agree_are_passed_on_as_they_are() -> None:
    readings = [reading(t * 100, t * 27_778) for t in range(50)]
    assert read_all(readings) == readings


def test_a_reading_that_goes_backwards_stops_delivery() -> None:
    with pytest.raises(MeterError, match="from 1000 to 999 uWh") as caught:
        read_all([reading(0, 1000), reading(100, 999)])
    assert caught.value.code == "meter_backwards"


def test_after_a_step_back_the_highest_reading_stays_the_measure() -> None:
    meter = TrustedMeter(PlayedMeter([reading(0, 1000), reading(100, 0), reading(200, 500), reading(300, 1001)]))
    meter.read()
    for _ in range(2):
        with pytest.raises(MeterError):
            meter.read()
    assert meter.read().energy_uwh == 1001


def test_a_clock_that_goes_back_is_no_reading() -> None:
    with pytest.raises(MeterError, match="time went back") as caught:
        read_all([reading(200, 1000), reading(100, 1000)])
    assert caught.value.code == "meter_backwards"


def test_energy_that_stands_still_under_power_is_frozen_after_a_second() -> None:
    meter = TrustedMeter(PlayedMeter([reading(t * 100, 5000) for t in range(12)]))
    for _ in range(10):
        meter.read()
    with pytest.raises(MeterError, match="stands still") as caught:
        meter.read()
    assert caught.value.code == "meter_frozen"


def test_energy_may_stand_still_without_power() -> None:
    readings = [reading(t * 1000, 5000, power_mw=0) for t in range(100)]
    assert read_all(readings) == readings


def test_at_little_power_energy_has_more_time_to_show_up() -> None:
    # 1 W for 7 s is less than 2000 uWh, for 8 s it is more.
    meter = TrustedMeter(PlayedMeter([reading(t * 1000, 5000, power_mw=1000) for t in range(9)]))
    for _ in range(8):
        meter.read()
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "meter_frozen"


def test_a_pause_in_the_load_begins_the_wait_anew() -> None:
    readings = [reading(t * 100, 5000, power_mw=0 if t % 9 == 0 else 1_000_000) for t in range(50)]
    assert read_all(readings) == readings


def test_more_energy_than_the_outlet_can_deliver_is_a_lost_count() -> None:
    with pytest.raises(MeterError, match="rated 1400000 mW") as caught:
        read_all([reading(0, 0), reading(100, 200_000)])
    assert caught.value.code == "meter_reset"


def test_without_a_rated_power_any_energy_is_possible() -> None:
    readings = [reading(0, 0), reading(100, 10**12)]
    assert read_all(readings, max_power_mw=None) == readings


def test_power_above_the_rating_is_passed_on_for_the_session_to_judge() -> None:
    readings = [reading(0, 0, 1_700_000), reading(100, 47_222, 1_700_000)]
    assert read_all(readings) == readings


def test_current_that_goes_on_flowing_back_stops_delivery() -> None:
    assert read_all([reading(0, 0, -100_000), reading(100, 2777, 100_000), reading(200, 5554, -100_000)])
    with pytest.raises(MeterError, match="flows back") as caught:
        read_all([reading(0, 0, -100_000), reading(100, 0, -100_000)])
    assert caught.value.code == "backflow"


def test_the_offset_of_a_meter_at_rest_is_no_flowing_back() -> None:
    readings = [reading(t * 100, t, power_mw=-48) for t in range(20)]
    assert read_all(readings) == readings


def test_a_cumulative_energy_is_never_negative() -> None:
    with pytest.raises(ValueError, match="not negative"):
        reading(0, -1)


def test_closing_closes_the_meter_below() -> None:
    below = PlayedMeter([])
    TrustedMeter(below).close()
    assert below.closed
