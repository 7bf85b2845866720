"""A wall clock that people and NTP set, and what is known all the same."""

from __future__ import annotations

from wattline.core.clock import DAY_S, Clock, Moment, WallWatch, this_boot

NOON_S = 1_764_000_000


class Hands:
    """A machine's clocks, turned by hand."""

    def __init__(self, wall_s: int = NOON_S, boot: str = "one") -> None:
        self.wall_s = float(wall_s)
        self.boot_ms = 1_000_000
        self.boot = boot
        self.clock = Clock(lambda: self.wall_s, lambda: self.boot_ms * 1_000_000, lambda: self.boot)

    def pass_s(self, seconds: float) -> None:
        self.wall_s += seconds
        self.boot_ms += int(seconds * 1000)


def test_the_time_between_two_moments_of_one_boot_is_known_whatever_the_wall_clock_was_set_to() -> None:
    hands = Hands()
    before = hands.clock.moment()
    hands.pass_s(90)
    hands.wall_s -= 3600
    assert before.passed_ms(hands.clock.moment()) == 90_000


def test_across_a_boot_or_without_one_on_record_it_is_not_known() -> None:
    hands = Hands()
    before = hands.clock.moment()
    hands.boot, hands.boot_ms = "two", 5_000
    assert before.passed_ms(hands.clock.moment()) is None
    assert Moment(NOON_S).passed_ms(Moment(NOON_S)) is None


def test_a_clock_that_was_set_is_told_once_and_one_that_goes_is_not() -> None:
    hands = Hands()
    watch = WallWatch(hands.clock)
    hands.pass_s(3600)
    assert watch.look() == 0
    hands.pass_s(1)
    hands.wall_s -= 3600
    assert watch.look() == -3600
    hands.pass_s(1)
    assert watch.look() == 0
    hands.wall_s += 55 * 365 * DAY_S
    assert watch.look() == 55 * 365 * DAY_S
    assert watch.look() == 0


def test_a_clock_set_between_two_processes_of_one_boot_is_told_by_the_second() -> None:
    hands = Hands(wall_s=60)
    known = hands.clock.moment()
    hands.pass_s(10)
    hands.wall_s += NOON_S
    assert WallWatch(hands.clock, known).look() == NOON_S


def test_the_machine_s_own_clock_tells_its_boot() -> None:
    first, second = Clock().moment(), Clock().moment()
    assert first.boot_id == this_boot() != ""
    assert first.passed_ms(second) is not None
