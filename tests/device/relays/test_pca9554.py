"""Relays on a PCA9554, over a world in this process."""

from __future__ import annotations

import pytest

from wattline.device.i2c.bus import BusError
from wattline.device.relays.opening import Expanders, check_relays, open_relay
from wattline.device.relays.pca9554 import Pca9554RelaySettings
from wattline.device.relays.pcf8574 import Pcf8574RelaySettings
from wattline.device.relays.relay import Relay, RelayError
from wattline.device.simulator.world import OTHER_EXPANDER, RelayFault, World, WorldBus

OUTPUT, POLARITY, CONFIGURATION = 1, 2, 3


class Recorder(WorldBus):
    """Keeps what was written, and which circuits were closed after each write."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.world = world
        self.closed: list[list[bool]] = []

    def write_byte_register(self, address: int, register: int, value: int) -> None:
        super().write_byte_register(address, register, value)
        self.closed.append([circuit.closed for circuit in self.world.circuits])


class Bench:
    def __init__(self) -> None:
        self.world = World("toaster", lambda: 0)
        self.bus = Recorder(self.world)
        self.expanders = Expanders(lambda spec: self.bus)

    def settings(self, bit: int, active_low: bool = True) -> Pca9554RelaySettings:
        return Pca9554RelaySettings(
            driver="pca9554", bus="sim:toaster", address=OTHER_EXPANDER, bit=bit, active_low=active_low
        )

    def relays(self, count: int = 4) -> list[Relay]:
        return [open_relay(self.settings(bit), self.expanders) for bit in range(count)]

    def register(self, register: int) -> int:
        return self.bus.read_block(OTHER_EXPANDER, register, 1)[0]

    @property
    def closed(self) -> list[bool]:
        return [circuit.closed for circuit in self.world.circuits]


def test_a_relay_closes_and_opens_and_says_so() -> None:
    bench = Bench()
    relay = bench.relays(1)[0]
    assert not relay.is_closed()
    relay.set_closed(True)
    assert relay.is_closed()
    assert bench.closed == [True, False, False, False]
    relay.set_closed(False)
    assert not relay.is_closed()
    assert bench.closed == [False] * 4


def test_opening_a_relay_object_switches_nothing() -> None:
    bench = Bench()
    bench.relays()
    assert bench.bus.closed == []


def test_a_pin_becomes_an_output_at_its_right_level_only() -> None:
    bench = Bench()
    bench.bus.write_byte_register(OTHER_EXPANDER, OUTPUT, 0x00)
    bench.bus.closed.clear()
    relay = bench.relays(1)[0]
    relay.set_closed(False)
    assert bench.bus.closed
    assert not any(any(closed) for closed in bench.bus.closed), "not even for a moment"


def test_relays_on_one_expander_do_not_disturb_each_other() -> None:
    bench = Bench()
    relays = bench.relays()
    for relay in relays:
        relay.set_closed(True)
    relays[2].set_closed(False)
    assert bench.closed == [True, True, False, True]


def test_pins_of_strangers_are_left_as_they_are() -> None:
    bench = Bench()
    bench.bus.write_byte_register(OTHER_EXPANDER, OUTPUT, 0b0101_1111)
    bench.bus.write_byte_register(OTHER_EXPANDER, CONFIGURATION, 0b0111_1111)
    bench.relays(1)[0].set_closed(True)
    assert bench.register(OUTPUT) == 0b0101_1110
    assert bench.register(CONFIGURATION) == 0b0111_1110


def test_an_active_high_relay_closes_on_a_high_pin() -> None:
    bench = Bench()
    relay = open_relay(bench.settings(6, active_low=False), bench.expanders)
    relay.set_closed(False)
    assert bench.register(OUTPUT) == 0b1011_1111
    relay.set_closed(True)
    assert bench.register(OUTPUT) == 0xFF
    assert relay.is_closed()


def test_a_polarity_that_somebody_left_turned_round_is_seen_through() -> None:
    bench = Bench()
    bench.bus.write_byte_register(OTHER_EXPANDER, POLARITY, 0xFF)
    relay = bench.relays(1)[0]
    relay.set_closed(True)
    assert relay.is_closed()
    relay.set_closed(False)
    assert not relay.is_closed()


def test_a_brown_out_opens_the_relay_and_shows() -> None:
    bench = Bench()
    relay = bench.relays(1)[0]
    relay.set_closed(True)
    bench.world.break_relay(0, RelayFault.RESET, OTHER_EXPANDER)
    assert not bench.world.circuits[0].closed
    assert not relay.is_closed()
    relay.set_closed(True)
    assert bench.world.circuits[0].closed, "its pin was made an output again"


@pytest.mark.parametrize(("closed", "found"), [(False, "put open, read back closed"), (True, "put closed, read back")])
def test_a_relay_that_does_not_move_is_reported(closed: bool, found: str) -> None:
    bench = Bench()
    relay = bench.relays(1)[0]
    relay.set_closed(not closed)
    bench.world.break_relay(0, RelayFault.STUCK, OTHER_EXPANDER)
    with pytest.raises(RelayError, match=f"pin P0: {found}") as caught:
        relay.set_closed(closed)
    assert caught.value.code == "relay_stuck"
    bench.world.mend_relay(0, OTHER_EXPANDER)
    relay.set_closed(closed)


def test_a_stuck_pin_is_not_written_into_the_latch_by_its_neighbour() -> None:
    bench = Bench()
    first, second = bench.relays(2)
    first.set_closed(True)
    bench.world.break_relay(0, RelayFault.STUCK, OTHER_EXPANDER)
    with pytest.raises(RelayError):
        first.set_closed(False)
    second.set_closed(True)
    second.set_closed(False)
    bench.world.mend_relay(0, OTHER_EXPANDER)
    assert not bench.world.circuits[0].closed


def test_an_expander_that_does_not_answer_is_reported_with_its_cause() -> None:
    bench = Bench()
    relay = bench.relays(1)[0]
    bench.world.break_relay(0, RelayFault.NACK, OTHER_EXPANDER)
    for call in (lambda: relay.set_closed(False), relay.is_closed):
        with pytest.raises(RelayError, match="PCA9554 at 0x21 on bus sim:toaster") as caught:
            call()
        assert caught.value.code == "relay_bus_error"
        assert isinstance(caught.value.__cause__, BusError)


def test_two_relays_on_one_pin_are_refused() -> None:
    bench = Bench()
    open_relay(bench.settings(3), bench.expanders)
    with pytest.raises(ValueError, match="two relays on pin P3"):
        open_relay(bench.settings(3), bench.expanders)


def test_two_kinds_of_chip_at_one_address_are_refused() -> None:
    one = Bench().settings(0)
    other = Pcf8574RelaySettings(driver="pcf8574", bus="sim:toaster", address=OTHER_EXPANDER, bit=1)
    check_relays([("A1", one), ("A2", Bench().settings(1))])
    with pytest.raises(ValueError, match=r"outlet A2: PCF8574 at .*, where outlet A1 has a PCA9554"):
        check_relays([("A1", one), ("A2", other)])


@pytest.mark.parametrize("changes", [{"address": 0x40}, {"bit": 8}, {"bit": -1}, {"bus": "usb"}, {"bus": "sim:kettle"}])
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    values: dict[str, object] = {"driver": "pca9554", "bus": 1, "address": 0x38, "bit": 0}
    Pca9554RelaySettings.model_validate(values)
    with pytest.raises(ValueError, match=next(iter(changes))):
        Pca9554RelaySettings.model_validate(values | changes)
