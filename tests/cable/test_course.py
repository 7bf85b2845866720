from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.cable.test_view import SNAPSHOT
from wattline.cable.summary import MAX_POINTS, Course, Point, Snapshot


class Heard:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.snapshots: list[Snapshot] = []

    def event(self, text: str) -> None:
        self.events.append(text)

    def show(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)


def test_all_that_is_heard_is_passed_on() -> None:
    heard = Heard()
    course = Course(heard)
    course.event("session opened")
    course.show(SNAPSHOT)
    assert heard.events == ["session opened"]
    assert heard.snapshots == [SNAPSHOT]


def test_nothing_heard_is_no_course() -> None:
    assert Course(Heard()).points == ()


def test_a_short_session_is_kept_whole() -> None:
    course = Course(Heard())
    for number in range(5):
        course.show(replace(SNAPSHOT, seconds=number / 5, power_mw=number, balance_msat=-number))
    assert course.points == tuple(Point(number / 5, number, -number) for number in range(5))


@pytest.mark.parametrize("moments", [MAX_POINTS - 1, MAX_POINTS, MAX_POINTS + 1, 5000, 18_000])
def test_a_long_session_is_kept_evenly_with_its_beginning_and_its_end(moments: int) -> None:
    course = Course(Heard())
    for number in range(moments):
        course.show(replace(SNAPSHOT, seconds=float(number)))
    seconds = [point.seconds for point in course.points]
    assert (seconds[0], seconds[-1]) == (0, moments - 1)
    assert MAX_POINTS / 2 <= len(seconds) <= MAX_POINTS
    apart = {there - here for here, there in pairwise(seconds[:-1])}
    assert len(apart) == 1
