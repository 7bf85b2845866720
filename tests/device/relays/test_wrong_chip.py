"""A driver for another expander than the one that is there: nothing may close by it, and it is said."""

from __future__ import annotations

from itertools import product

import pytest

from wattline.device.i2c.bus import BusError
from wattline.device.relays.opening import Expanders, open_relay
from wattline.device.relays.pca9554 import CONFIGURATION, OUTPUT, Pca9554RelaySettings
from wattline.device.relays.relay import Relay, RelayError
from wattline.device.simulator.world import EXPANDER, OTHER_EXPANDER, RelayFault, World, WorldBus


class Bench:
    """A relay of driver ``pca9554`` on pin 0 of the chip at ``address``."""

    def __init__(self, address: int = EXPANDER) -> None:
        self.world = World("toaster", lambda: 0)
        self.bus = WorldBus(self.world)
        self.address = address

    def relay(self, bit: int = 0) -> Relay:
        settings = Pca9554RelaySettings(driver="pca9554", bus="sim:toaster", address=self.address, bit=bit)
        return open_relay(settings, Expanders(lambda spec: self.bus))

    @property
    def moves(self) -> int:
        return sum(len(circuit.history) for circuit in self.world.circuits)


def code_of(call: object) -> str:
    assert callable(call)
    with pytest.raises(RelayError) as caught:
        call()
    assert 'driver = "pcf8574"' in caught.value.message or caught.value.code != "relay_wrong_chip"
    return caught.value.code


def test_looking_for_registers_on_a_pcf8574_closes_nothing_and_is_refused() -> None:
    bench = Bench()
    relay = bench.relay()
    assert code_of(relay.is_closed) == "relay_wrong_chip"
    assert code_of(lambda: relay.set_closed(False)) == "relay_wrong_chip"
    assert code_of(lambda: relay.set_closed(True)) == "relay_wrong_chip"
    assert bench.moves == 0
    assert bench.world.expander.latch == 0xFF


def test_the_pins_are_put_back_as_they_were_found() -> None:
    bench = Bench()
    bench.bus.write_byte(EXPANDER, 0b1111_1010)
    moves = bench.moves
    assert code_of(bench.relay().is_closed) == "relay_wrong_chip"
    assert bench.world.expander.latch == 0b1111_1010
    assert bench.moves == moves


def test_a_relay_that_is_to_be_opened_opens_even_so() -> None:
    bench = Bench()
    bench.bus.write_byte(EXPANDER, 0b1111_1010)
    assert code_of(lambda: bench.relay().set_closed(False)) == "relay_wrong_chip"
    assert [circuit.closed for circuit in bench.world.circuits] == [False, False, True, False]


@pytest.mark.parametrize("held", [0, 2, 3, 7])
@pytest.mark.parametrize("level", [0, 1])
def test_a_pin_that_something_holds_does_not_hide_the_wrong_chip(held: int, level: int) -> None:
    bench = Bench()
    bench.world.expander.forced[held] = level
    assert code_of(bench.relay(1).is_closed) == "relay_wrong_chip"


def test_a_peek_that_breaks_off_leaves_no_pin_low() -> None:
    class Disturbed(WorldBus):
        def peek(self, address: int, register: int, after: int) -> int:
            self.write_byte(address, register)
            raise BusError("bus_error", "disturbed")

    bench = Bench()
    bench.bus = Disturbed(bench.world)
    assert code_of(bench.relay().is_closed) == "relay_bus_error"
    assert bench.world.expander.latch == 0xFF


@pytest.mark.parametrize("latch", [0x00, 0x01, 0x02, 0x03, 0xFD, 0xFF])
@pytest.mark.parametrize("inputs", [0x00, 0x01, 0x02, 0x03, 0xFC, 0xFF])
def test_a_pca9554_is_known_whatever_its_relays_are_doing(latch: int, inputs: int) -> None:
    bench = Bench(OTHER_EXPANDER)
    bench.bus.write_byte_register(OTHER_EXPANDER, OUTPUT.address, latch)
    bench.bus.write_byte_register(OTHER_EXPANDER, CONFIGURATION.address, inputs)
    relay = bench.relay()
    relay.set_closed(False)
    assert not relay.is_closed()


def test_a_polarity_turned_round_does_not_make_another_chip_of_it() -> None:
    for polarity, inputs in product((0x02, 0xFF), (0x03, 0xFF)):
        bench = Bench(OTHER_EXPANDER)
        bench.bus.write_byte_register(OTHER_EXPANDER, 2, polarity)
        bench.bus.write_byte_register(OTHER_EXPANDER, CONFIGURATION.address, inputs)
        bench.relay().set_closed(True)
        assert bench.world.circuits[0].closed


def test_a_stuck_relay_is_none_of_a_wrong_chip() -> None:
    bench = Bench(OTHER_EXPANDER)
    relay = bench.relay()
    relay.set_closed(True)
    bench.world.break_relay(0, RelayFault.STUCK, OTHER_EXPANDER)
    assert code_of(lambda: bench.relay().set_closed(False)) == "relay_stuck"
