"""Relays on an expander, over a world in this process."""

from __future__ import annotations

import pytest

from wattline.device.i2c.bus import BusError, I2CBus
from wattline.device.relays.opening import Expanders, open_relay
from wattline.device.relays.pcf8574 import Pcf8574RelaySettings
from wattline.device.relays.relay import RelayError
from wattline.device.simulator.world import EXPANDER, RelayFault, World, WorldBus


class Bench:
    def __init__(self) -> None:
        self.world = World("toaster", lambda: 0)
        self.bus = WorldBus(self.world)
        self.expanders = Expanders(lambda spec: self.bus)

    def settings(self, bit: int, active_low: bool = True) -> Pcf8574RelaySettings:
        return Pcf8574RelaySettings(
            driver="pcf8574", bus="sim:toaster", address=EXPANDER, bit=bit, active_low=active_low
        )

    def relays(self, count: int = 4) -> list:  # type: ignore[type-arg]
        return [open_relay(self.settings(bit), self.expanders) for bit in range(count)]


def test_a_relay_closes_and_opens_and_says_so() -> None:
    bench = Bench()
    relay = bench.relays(1)[0]
    assert not relay.is_closed()
    relay.set_closed(True)
    assert relay.is_closed()
    assert bench.world.circuits[0].closed
    relay.set_closed(False)
    assert not relay.is_closed()
    assert not bench.world.circuits[0].closed


def test_opening_a_relay_object_switches_nothing() -> None:
    bench = Bench()
    bench.bus.write_byte(EXPANDER, 0xF0)
    bench.relays()
    assert bench.bus.read_byte(EXPANDER) == 0xF0


def test_relays_on_one_expander_do_not_disturb_each_other() -> None:
    bench = Bench()
    relays = bench.relays()
    for relay in relays:
        relay.set_closed(True)
    relays[2].set_closed(False)
    assert [circuit.closed for circuit in bench.world.circuits] == [True, True, False, True]


def test_pins_of_strangers_are_left_as_they_are() -> None:
    bench = Bench()
    bench.bus.write_byte(EXPANDER, 0b0101_1111)
    bench.relays(1)[0].set_closed(True)
    assert bench.bus.read_byte(EXPANDER) == 0b0101_1110


def test_an_active_high_relay_closes_on_a_high_pin() -> None:
    bench = Bench()
    relay = open_relay(bench.settings(6, active_low=False), bench.expanders)
    relay.set_closed(False)
    assert bench.bus.read_byte(EXPANDER) == 0b1011_1111
    relay.set_closed(True)
    assert bench.bus.read_byte(EXPANDER) == 0xFF
    assert relay.is_closed()


def test_a_relay_that_stays_closed_is_reported() -> None:
    bench = Bench()
    relay = bench.relays(1)[0]
    relay.set_closed(True)
    bench.world.break_relay(0, RelayFault.STUCK)
    with pytest.raises(RelayError, match="pin P0: put open, read back closed") as caught:
        relay.set_closed(False)
    assert caught.value.code == "relay_stuck"
    bench.world.mend_relay(0)
    relay.set_closed(False)


def test_a_relay_that_stays_open_is_reported() -> None:
    bench = Bench()
    relay = bench.relays(1)[0]
    bench.world.break_relay(0, RelayFault.STUCK)
    with pytest.raises(RelayError, match="put closed, read back open") as caught:
        relay.set_closed(True)
    assert caught.value.code == "relay_stuck"


def test_a_stuck_pin_is_not_written_into_the_latch_by_its_neighbour() -> None:
    bench = Bench()
    first, second = bench.relays(2)
    first.set_closed(True)
    bench.world.break_relay(0, RelayFault.STUCK)
    with pytest.raises(RelayError):
        first.set_closed(False)
    second.set_closed(True)
    second.set_closed(False)
    bench.world.mend_relay(0)
    assert not bench.world.circuits[0].closed


def test_an_expander_that_does_not_answer_is_reported_with_its_cause() -> None:
    bench = Bench()
    relay = bench.relays(1)[0]
    bench.world.break_relay(0, RelayFault.NACK)
    for call in (lambda: relay.set_closed(False), relay.is_closed):
        with pytest.raises(RelayError, match="PCF8574 at 0x20 on bus sim:toaster") as caught:
            call()
        assert caught.value.code == "relay_bus_error"
        assert isinstance(caught.value.__cause__, BusError)


def test_two_disturbed_transfers_are_got_over() -> None:
    class Disturbed(WorldBus):
        left = 2

        def write_byte(self, address: int, value: int) -> None:
            if self.left:
                self.left -= 1
                raise BusError("bus_error", "disturbed")
            super().write_byte(address, value)

    bench = Bench()
    bench.bus = Disturbed(bench.world)
    bench.relays(1)[0].set_closed(True)
    assert bench.world.circuits[0].closed


def test_a_bus_that_is_not_there_is_a_relay_error() -> None:
    def refuse(spec: int | str) -> I2CBus:
        raise BusError("no_bus", "there is none")

    with pytest.raises(RelayError, match="there is none") as caught:
        open_relay(Bench().settings(0), Expanders(refuse))
    assert caught.value.code == "relay_bus_error"


def test_two_relays_on_one_pin_are_refused() -> None:
    bench = Bench()
    open_relay(bench.settings(3), bench.expanders)
    with pytest.raises(ValueError, match="two relays on pin P3"):
        open_relay(bench.settings(3), bench.expanders)


@pytest.mark.parametrize("changes", [{"address": 0x40}, {"bit": 8}, {"bit": -1}, {"bus": "usb"}, {"bus": "sim:kettle"}])
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    values: dict[str, object] = {"driver": "pcf8574", "bus": 1, "address": 0x20, "bit": 0}
    Pcf8574RelaySettings.model_validate(values)
    with pytest.raises(ValueError, match=next(iter(changes))):
        Pcf8574RelaySettings.model_validate(values | changes)
