"""Registers: what the bytes on the wire mean."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.device.i2c.bus import Register

KINDS = [(8, 0), (16, 0), (12, 4), (20, 4), (24, 0), (40, 0)]


@dataclass
class RecordingBus:
    """Answers with fixed bytes and keeps what was transferred."""

    data: bytes
    transfers: list[tuple[object, ...]] = field(default_factory=list)

    def read_byte(self, address: int) -> int:
        raise AssertionError("registers are not read without their address")

    def write_byte(self, address: int, value: int) -> None:
        raise AssertionError("registers are not written without their address")

    def write_byte_register(self, address: int, register: int, value: int) -> None:
        self.transfers.append(("write_byte_register", address, register, value))

    def read_word(self, address: int, register: int) -> int:
        self.transfers.append(("read_word", address, register))
        return int.from_bytes(self.data, "big")

    def write_word(self, address: int, register: int, value: int) -> None:
        self.transfers.append(("write_word", address, register, value))

    def read_block(self, address: int, register: int, length: int) -> bytes:
        self.transfers.append(("read_block", address, register, length))
        return self.data

    def peek(self, address: int, register: int, after: int) -> int:
        raise AssertionError("a register is read, not peeked at")

    def close(self) -> None:
        self.transfers.append(("close",))


@st.composite
def registers_with_values(draw: st.DrawFn) -> tuple[Register, int]:
    bits, shift = draw(st.sampled_from(KINDS))
    register = Register(draw(st.integers(0, 255)), bits, signed=draw(st.booleans()), shift=shift)
    return register, draw(st.integers(register.lowest, register.highest))


@given(registers_with_values())
def test_a_value_that_fits_comes_back_as_it_was_put_in(case: tuple[Register, int]) -> None:
    register, value = case
    data = register.encode(value)
    assert len(data) * 8 == register.width
    assert register.decode(data) == value


@given(registers_with_values(), st.integers(1, 1 << 41))
def test_a_value_that_does_not_fit_is_refused(case: tuple[Register, int], beyond: int) -> None:
    register, _ = case
    for value in (register.highest + beyond, register.lowest - beyond):
        with pytest.raises(ValueError, match="holds"):
            register.encode(value)


@given(st.integers(-(1 << 19), (1 << 19) - 1), st.integers(0, 15))
def test_the_unused_low_bits_of_a_20_bit_field_do_not_matter(value: int, noise: int) -> None:
    register = Register(0x07, 20, signed=True, shift=4)
    word = int.from_bytes(register.encode(value), "big") | noise
    assert register.decode(word.to_bytes(3, "big")) == value


def test_the_fields_of_the_data_sheet_decode_as_it_says() -> None:
    current = Register(0x07, 20, signed=True, shift=4)
    assert current.decode(bytes.fromhex("7ffff0")) == 524_287
    assert current.decode(bytes.fromhex("800000")) == -524_288
    assert current.decode(bytes.fromhex("fffff0")) == -1
    assert Register(0x09, 40).decode(bytes.fromhex("ffffffffff")) == (1 << 40) - 1
    assert Register(0x0A, 40, signed=True).decode(bytes.fromhex("ffffffffff")) == -1


@pytest.mark.parametrize("size", [0, 1, 2, 4])
def test_another_number_of_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="3 bytes"):
        Register(0x08, 24).decode(bytes(size))


@pytest.mark.parametrize(("bits", "shift"), [(0, 8), (20, 0), (16, 4), (32, 0), (24, -8)])
def test_a_width_that_no_chip_has_is_refused(bits: int, shift: int) -> None:
    with pytest.raises(ValueError, match="8, 16, 24 or 40 bits"):
        Register(0x00, bits, shift=shift)


def test_sixteen_bits_travel_as_a_word_and_others_as_a_block() -> None:
    bus = RecordingBus(bytes.fromhex("1234"))
    assert Register(0x3E, 16).read(bus, 0x40) == 0x1234
    bus.data = bytes.fromhex("0102030405")
    assert Register(0x09, 40).read(bus, 0x40) == 0x0102030405
    Register(0x02, 16).write(bus, 0x40, 4000)
    Register(0x03, 8).write(bus, 0x21, 0xFE)
    assert bus.transfers == [
        ("read_word", 0x40, 0x3E),
        ("read_block", 0x40, 0x09, 5),
        ("write_word", 0x40, 0x02, 4000),
        ("write_byte_register", 0x21, 0x03, 0xFE),
    ]


def test_a_register_wider_than_16_bits_is_not_written() -> None:
    bus = RecordingBus(b"")
    with pytest.raises(ValueError, match="only 8-bit and 16-bit"):
        Register(0x09, 40).write(bus, 0x40, 0)
    assert bus.transfers == []
