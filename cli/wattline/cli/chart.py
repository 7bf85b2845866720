"""A chart of a session for the terminal: its power and its balance over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from rich.console import Console, ConsoleOptions
from rich.text import Text

from wattline.cable.opening import Listener, Progress
from wattline.core.text import power, sat

BLOCKS, ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:#"
"""From nothing to a full cell."""
LEAST_COLUMNS, MOST_COLUMNS = 12, 100
LOW_ROWS, HIGH_ROWS = 2, 4
HIGH_FROM = 30
"""So many lines must a terminal have for the higher chart."""


class Chart:
    """Power above balance, each from zero (or the lowest, when that is negative) to its highest, over the seconds.

    A rich renderable of 5 lines, 9 on a high terminal; nothing at all where there are no two moments, or no room.
    """

    def __init__(self, course: Sequence[Point]) -> None:
        self._course = course

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        if len(self._course) < 2 or self._course[0].seconds >= self._course[-1].seconds:
            return
        rows = HIGH_ROWS if console.height >= HIGH_FROM else LOW_ROWS
        blocks = ASCII_BLOCKS if options.ascii_only else BLOCKS
        graphs = (
            ("power", "yellow", power, [point.power_mw for point in self._course]),
            ("balance", "green", sat, [point.balance_msat for point in self._course]),
        )
        bounds = [(min(0, *values), max(1, *values)) for _, _, _, values in graphs]
        left = max(
            len(f"  {name:<9}{unit(bound)} ")
            for (name, _, unit, _), pair in zip(graphs, bounds, strict=True)
            for bound in pair
        )
        columns = min(MOST_COLUMNS, options.max_width - left - 1)
        if columns < LEAST_COLUMNS:
            return
        for (name, colour, unit, values), (low, high) in zip(graphs, bounds, strict=True):
            bars = drawn(_resampled(self._course, values, columns), low, high, rows, blocks)
            labels = _labels(name, unit, low, high, rows, left)
            axis = "|" if options.ascii_only else "┤"
            for label, bar in zip(labels, bars, strict=True):
                yield Text.assemble(label, (axis, "dim"), (bar, colour), no_wrap=True)
        first, last = (f"{self._course[index].seconds:.0f} s" for index in (0, -1))
        yield Text(" " * (left + 1) + first + last.rjust(columns - len(first)), no_wrap=True)


def drawn(values: Sequence[float], low: float, high: float, rows: int, blocks: str) -> list[str]:
    """A column for each value, so many rows high, the top row first."""
    steps = len(blocks) - 1
    heights = [round((value - low) / (high - low) * rows * steps) for value in values]
    return [
        "".join(blocks[max(0, min(steps, height - row * steps))] for height in heights) for row in reversed(range(rows))
    ]


def _labels(name: str, unit: Callable[[int], str], low: int, high: int, rows: int, left: int) -> list[str]:
    """Before the rows: the name and the highest at the top, the lowest at the bottom."""
    top = f"  {name:<9}" + f"{unit(high)} ".rjust(left - 11)
    return [top, *[" " * left] * (rows - 2), f"{unit(low)} ".rjust(left)]


def _resampled(course: Sequence[Point], values: Sequence[int], columns: int) -> list[float]:
    """The mean of ``values`` over the time that each column stands for; each value holds until the next one."""
    begin, end = course[0].seconds, course[-1].seconds
    width = (end - begin) / columns
    sums = [0.0] * columns
    for (here, there), value in zip(pairwise(course), values, strict=False):
        first = min(columns - 1, int((here.seconds - begin) / width))
        last = min(columns - 1, int((there.seconds - begin) / width))
        for column in range(first, last + 1):
            from_s = max(here.seconds, begin + column * width)
            to_s = min(there.seconds, begin + (column + 1) * width)
            sums[column] += value * max(0.0, to_s - from_s)
    return [total / width for total in sums]


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

    def show(self, progress: Progress) -> None:
        reading, statement = progress.reading, progress.buyer.statement
        power_mw = reading.power_mw if reading is not None else 0
        self.keep(Point(round(progress.elapsed_ms / 1000, 2), power_mw, statement.balance_msat if statement else 0))
        self._listener.show(progress)

    @property
    def points(self) -> tuple[Point, ...]:
        """In the order of time, evenly chosen, the newest among them; at most MAX_POINTS."""
        if self._newest is None or self._newest == self._points[-1]:
            return tuple(self._points)
        return (*self._points, self._newest)

    def keep(self, point: Point) -> None:
        if self._heard % self._stride == 0:
            self._points.append(point)
        if len(self._points) >= MAX_POINTS:
            del self._points[1::2]
            self._stride *= 2
        self._heard += 1
        self._newest = point
