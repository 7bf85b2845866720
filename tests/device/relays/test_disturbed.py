"""One disturbed transfer on the bus of an expander ends no session and switches nobody's pin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.device.relays.expander import Expander, ExpanderRelay
from wattline.device.relays.pca9554 import CONFIGURATION, INPUT, OUTPUT, Pca9554
from wattline.device.relays.pcf8574 import Pcf8574
from wattline.device.relays.relay import RelayError

ADDRESS = 0x20


class Chip:
    """A PCF8574, or a PCA9554, behind a bus on which some transfers are disturbed: by number, with the bits."""

    def __init__(self, *, has_registers: bool, pins: int) -> None:
        self.has_registers = has_registers
        self.pins = pins
        self.registers = {OUTPUT.address: pins, 2: 0, CONFIGURATION.address: 0}
        self.disturbed: dict[int, int] = {}
        self.transfers = 0

    def _as_heard(self, value: int) -> int:
        self.transfers += 1
        return value ^ self.disturbed.get(self.transfers, 0)

    def read_byte(self, address: int) -> int:
        return self._as_heard(self.pins)

    def write_byte(self, address: int, value: int) -> None:
        value = self._as_heard(value)
        if not self.has_registers:
            self.pins = value

    def write_byte_register(self, address: int, register: int, value: int) -> None:
        self.registers[register] = self._as_heard(value)
        self.pins = self.registers[OUTPUT.address]

    def read_block(self, address: int, register: int, length: int) -> bytes:
        return bytes([self._as_heard(self.pins if register == INPUT.address else self.registers[register])])

    def peek(self, address: int, register: int, after: int) -> int:
        return self._as_heard(self.registers[register] if self.has_registers else register)

    def read_word(self, address: int, register: int) -> int:
        raise NotImplementedError

    def write_word(self, address: int, register: int, value: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


KINDS: list[tuple[bool, Callable[[Chip], Expander]]] = [
    (False, lambda chip: Pcf8574(chip, ADDRESS, "PCF8574", lambda seconds: None)),
    (True, lambda chip: Pca9554(chip, ADDRESS, "PCA9554", lambda seconds: None)),
]


@given(
    kind=st.sampled_from(KINDS),
    pins=st.integers(0, 255),
    switches=st.lists(st.booleans(), min_size=1, max_size=6),
    gaps=st.lists(st.integers(3, 20), max_size=8),
    bits=st.integers(1, 255),
)
def test_disturbed_answers_that_do_not_follow_each_other_change_nothing(
    kind: tuple[bool, Callable[[Chip], Expander]], pins: int, switches: list[bool], gaps: list[int], bits: int
) -> None:
    has_registers, make = kind
    chip = Chip(has_registers=has_registers, pins=pins | 1)
    chip.disturbed = {sum(gaps[: count + 1]): bits for count in range(len(gaps))}
    relay = ExpanderRelay(make(chip), 0, active_low=True)
    # Of what is written, nothing is disturbed here: no driver can answer for what its words became.
    chip.write_byte = lambda address, value: setattr(chip, "pins", value)  # type: ignore[method-assign]

    def write_register(address: int, register: int, value: int) -> None:
        chip.registers[register] = value
        chip.pins = chip.registers[OUTPUT.address]

    chip.write_byte_register = write_register  # type: ignore[method-assign]
    for closed in switches:
        relay.set_closed(closed)
        assert relay.is_closed() is closed
        assert chip.pins == pins & ~1 | (not closed)


@pytest.mark.parametrize(("has_registers", "make"), KINDS)
def test_a_write_that_was_disturbed_is_done_again(has_registers: bool, make: Callable[[Chip], Expander]) -> None:
    chip = Chip(has_registers=has_registers, pins=0xFF)
    relay = ExpanderRelay(make(chip), 0, active_low=True)
    relay.set_closed(False)
    # The pins, or the latch, are read twice; then comes the write.
    chip.transfers, chip.disturbed = 0, {3: 1}
    relay.set_closed(True)
    assert relay.is_closed()


@pytest.mark.parametrize(("has_registers", "make"), KINDS)
def test_a_pin_that_is_stuck_is_reported_all_the_same(has_registers: bool, make: Callable[[Chip], Expander]) -> None:
    chip = Chip(has_registers=has_registers, pins=0xFF)
    relay = ExpanderRelay(make(chip), 0, active_low=True)
    relay.set_closed(False)
    chip.write_byte = lambda address, value: None  # type: ignore[method-assign]
    chip.write_byte_register = lambda address, register, value: None  # type: ignore[method-assign]
    with pytest.raises(RelayError, match="read back open") as caught:
        relay.set_closed(True)
    assert caught.value.code == "relay_stuck"
