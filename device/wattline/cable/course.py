"""The course of a session: what its power and its balance were over time."""

from __future__ import annotations

from typing import NamedTuple

from wattline.cable.listener import Listener
from wattline.cable.summary import Snapshot

MAX_POINTS = 400
"""More than a terminal has columns; a session of hours keeps as many, further apart."""


class Point(NamedTuple):
    """One moment."""

    seconds: float
    """Since the open of the session."""
    power_mw: int
    """By the cable's own meter; negative when power flows back."""
    balance_msat: int
    """By the socket's newest statement."""


class Course:
    """A listener that keeps some of what it hears, and passes all of it on to another."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._points: list[Point] = []
        self._newest: Point | None = None
        self._stride = 1
        self._heard = 0

    def event(self, text: str) -> None:
        self._listener.event(text)

    def show(self, snapshot: Snapshot) -> None:
        self._keep(Point(round(snapshot.seconds, 2), snapshot.power_mw, snapshot.balance_msat))
        self._listener.show(snapshot)

    @property
    def points(self) -> tuple[Point, ...]:
        """In the order of time, evenly chosen, the newest among them; at most MAX_POINTS."""
        if self._newest is None or self._newest == self._points[-1]:
            return tuple(self._points)
        return (*self._points, self._newest)

    def _keep(self, point: Point) -> None:
        if self._heard % self._stride == 0:
            self._points.append(point)
        if len(self._points) >= MAX_POINTS:
            del self._points[1::2]
            self._stride *= 2
        self._heard += 1
        self._newest = point
