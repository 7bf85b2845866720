from __future__ import annotations

from itertools import pairwise

import pytest

from tests.cable.test_delivery import buyer_of
from tests.cable.threadless import settings_for
from wattline.cable.opening import Progress
from wattline.cli.chart import MAX_POINTS, Course, Point
from wattline.device.meters.reading import Reading


class Heard:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.shown: list[Progress] = []

    def event(self, text: str) -> None:
        self.events.append(text)

    def show(self, progress: Progress) -> None:
        self.shown.append(progress)


def test_all_that_is_heard_is_passed_on_and_the_moment_is_kept() -> None:
    heard = Heard()
    course = Course(heard)
    course.event("session opened")
    reading = Reading(0, 1_300_000, 48_000, 27_000, 0)
    progress = Progress(buyer_of(1_000), settings_for("keysend"), reading, True, 400)
    course.show(progress)
    assert heard.events == ["session opened"]
    assert heard.shown == [progress]
    assert course.points == (Point(0.4, 1_300_000, 0),)


def test_nothing_heard_is_no_course() -> None:
    assert Course(Heard()).points == ()


@pytest.mark.parametrize("moments", [5, MAX_POINTS - 1, MAX_POINTS, MAX_POINTS + 1, 5000, 18_000])
def test_a_session_is_kept_evenly_with_its_beginning_and_its_end(moments: int) -> None:
    course = Course(Heard())
    for number in range(moments):
        course.keep(Point(float(number), number, -number))
    seconds = [point.seconds for point in course.points]
    assert (seconds[0], seconds[-1]) == (0, moments - 1)
    assert min(moments, MAX_POINTS / 2) <= len(seconds) <= MAX_POINTS
    apart = {there - here for here, there in pairwise(seconds[:-1])}
    assert len(apart) == 1
