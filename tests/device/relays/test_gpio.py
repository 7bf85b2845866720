"""Relays on a GPIO line, over a fake below libgpiod's line request."""

from __future__ import annotations

import errno

import pytest
from gpiod.line import Value

from wattline.device.relays.gpio import GpioRelay, GpioRelaySettings
from wattline.device.relays.opening import open_relay
from wattline.device.relays.relay import RelayError

SETTINGS = GpioRelaySettings(driver="gpio", chip="/dev/gpiochip0", line=17)


class FakeLine:
    """Line 17 of a chip, requested as an inactive output."""

    def __init__(self) -> None:
        self.values = {17: Value.INACTIVE}
        self.held = False
        self.fails = False
        self.released = False

    def get_value(self, line: int, /) -> Value:
        self._fail()
        return self.values[line]

    def set_value(self, line: int, value: Value, /) -> None:
        self._fail()
        if not self.held:
            self.values[line] = value

    def release(self) -> None:
        self.released = True

    def _fail(self) -> None:
        if self.fails:
            raise OSError(errno.EIO, "as told")


def test_a_line_is_active_when_the_relay_is_closed() -> None:
    line = FakeLine()
    relay = GpioRelay(SETTINGS, lambda settings: line)
    assert not relay.is_closed()
    relay.set_closed(True)
    assert line.values[17] is Value.ACTIVE
    assert relay.is_closed()
    relay.set_closed(False)
    assert line.get_value(17) is Value.INACTIVE
    relay.close()
    assert line.released


@pytest.mark.parametrize("held_at", [Value.ACTIVE, Value.INACTIVE])
def test_a_line_that_does_not_follow_is_reported(held_at: Value) -> None:
    line = FakeLine()
    line.values[17], line.held = held_at, True
    relay = GpioRelay(SETTINGS, lambda settings: line)
    with pytest.raises(RelayError, match="/dev/gpiochip0 line 17") as caught:
        relay.set_closed(held_at is Value.INACTIVE)
    assert caught.value.code == "relay_stuck"


def test_a_line_that_fails_is_reported_with_its_cause() -> None:
    line = FakeLine()
    relay = GpioRelay(SETTINGS, lambda settings: line)
    line.fails = True
    for call in (lambda: relay.set_closed(False), relay.is_closed):
        with pytest.raises(RelayError) as caught:
            call()
        assert caught.value.code == "relay_bus_error"
        assert isinstance(caught.value.__cause__, OSError)


def test_a_line_that_somebody_else_has_is_reported() -> None:
    def refuse(settings: GpioRelaySettings) -> FakeLine:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with pytest.raises(RelayError, match=r"line 17: .*busy") as caught:
        GpioRelay(SETTINGS, refuse)
    assert caught.value.code == "relay_no_line"


def test_a_chip_that_this_machine_does_not_have_is_no_line() -> None:
    with pytest.raises(RelayError, match="/dev/gpiochip99 line 3") as caught:
        open_relay(GpioRelaySettings(driver="gpio", chip="/dev/gpiochip99", line=3))
    assert caught.value.code == "relay_no_line"
