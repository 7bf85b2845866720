"""Relays on a GPIO line of the machine, through the character device (libgpiod 2)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Literal, Protocol

import gpiod
from gpiod.line import Direction, Value
from pydantic import Field

from wattline.core.settings import Settings
from wattline.device.relays.relay import RelayError

CONSUMER = "wattline"


class GpioRelaySettings(Settings):
    """A relay on one line of a GPIO chip."""

    driver: Literal["gpio"]
    chip: str = Field(min_length=1, description="The chip's device, such as /dev/gpiochip0.")
    line: int = Field(ge=0, le=4095, description="Offset of the line on that chip.")
    active_low: bool = Field(default=False, description="The relay closes when the line is low.")

    @property
    def place(self) -> str:
        """The relay in errors."""
        return f"{self.chip} line {self.line}"


class Line(Protocol):
    """What is used of :class:`gpiod.LineRequest`."""

    def get_value(self, line: int, /) -> Value: ...

    def set_value(self, line: int, value: Value, /) -> None: ...

    def release(self) -> None: ...


def request_line(settings: GpioRelaySettings) -> Line:
    """The line as an output that is inactive from the first moment on. Raises OSError, ValueError."""
    output = gpiod.LineSettings(direction=Direction.OUTPUT, active_low=settings.active_low, output_value=Value.INACTIVE)
    with gpiod.Chip(settings.chip) as chip:
        return chip.request_lines({settings.line: output}, consumer=CONSUMER)


def found_closed(settings: GpioRelaySettings) -> bool:
    """Whether the line is at the level of a closed relay, as whoever had it before has left it: nothing is switched.

    Raises RelayError ``relay_no_line``.
    """
    as_it_is = gpiod.LineSettings(direction=Direction.AS_IS, active_low=settings.active_low)
    try:
        with (
            gpiod.Chip(settings.chip) as chip,
            chip.request_lines({settings.line: as_it_is}, consumer=CONSUMER) as line,
        ):
            return bool(line.get_value(settings.line) == Value.ACTIVE)
    except (OSError, ValueError) as error:
        raise RelayError("relay_no_line", f"{settings.place}: {error}{holder(settings, error)}") from error


def holder(settings: GpioRelaySettings, error: Exception) -> str:
    """Who has the line, as a driver or a program calls itself to the kernel, where ``error`` says that somebody has."""
    if not isinstance(error, OSError) or error.errno != errno.EBUSY:
        return ""
    try:
        with gpiod.Chip(settings.chip) as chip:
            name = chip.get_line_info(settings.line).consumer
    except (OSError, ValueError):
        return ""
    return f": {name!r} has it"


class GpioRelay:
    """One GPIO line as :class:`wattline.device.relays.relay.Relay`; the kernel gives it to one process only."""

    def __init__(
        self, settings: GpioRelaySettings, request: Callable[[GpioRelaySettings], Line] = request_line
    ) -> None:
        """Take the line; this opens the relay. Raises RelayError ``relay_no_line``."""
        self._name = settings.place
        self._offset = settings.line
        try:
            self._line = request(settings)
        except (OSError, ValueError) as error:
            raise RelayError("relay_no_line", f"{self._name}: {error}{holder(settings, error)}") from error

    def set_closed(self, closed: bool) -> None:
        value = Value.ACTIVE if closed else Value.INACTIVE
        try:
            self._line.set_value(self._offset, value)
        except OSError as error:
            raise RelayError("relay_bus_error", f"{self._name}: {error}") from error
        if self.is_closed() != closed:
            wanted, found = ("closed", "open") if closed else ("open", "closed")
            raise RelayError("relay_stuck", f"{self._name}: put {wanted}, read back {found}")

    def is_closed(self) -> bool:
        try:
            return self._line.get_value(self._offset) == Value.ACTIVE
        except OSError as error:
            raise RelayError("relay_bus_error", f"{self._name}: {error}") from error

    def close(self) -> None:
        self._line.release()
