"""An I2C bus as the drivers see it, and what can go wrong on it.

Registers of chips as values: where they are, how wide, and what their bits mean as an integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from wattline.core.errors import RetryError


class BusError(RetryError):
    """A transfer failed; the next one may succeed.

    Codes: ``no_bus`` (there is no such bus), ``no_permission`` (not allowed to open it), ``no_answer`` (no chip
    acknowledged the address), ``bus_error`` (anything else: arbitration lost, timeout, broken transfer).
    """


class I2CBus(Protocol):
    """One I2C bus. Addresses have 7 bits. Every transfer is atomic on the wire; every method raises BusError.

    Words are as the chip means them: registers of the chips used here are big-endian, and the one place that swaps
    the little-endian order of SMBus word transfers is the implementation of this Protocol.
    """

    def read_byte(self, address: int) -> int:
        """One byte without naming a register (the PCF8574 answers with the levels of its pins)."""

    def write_byte(self, address: int, value: int) -> None:
        """One byte without naming a register (the PCF8574 takes it as its output latch)."""

    def write_byte_register(self, address: int, register: int, value: int) -> None:
        """Set an 8-bit register (it is read as a block of one byte)."""

    def read_word(self, address: int, register: int) -> int:
        """A 16-bit register, unsigned, most significant byte first on the wire."""

    def write_word(self, address: int, register: int, value: int) -> None:
        """Set a 16-bit register, most significant byte first on the wire."""

    def read_block(self, address: int, register: int, length: int) -> bytes:
        """``length`` (1 to 32) bytes beginning at ``register``, in the order in which the chip sends them."""

    def peek(self, address: int, register: int, after: int) -> int:
        """The byte that comes after ``register`` was sent, and then ``after`` is sent, all in one transaction: what
        ``register`` does to a chip that knows no registers lasts for a few bytes on the wire only."""

    def close(self) -> None:
        """Let go of the bus; chips keep their state."""


WIRE_BITS = (8, 16, 24, 40)


@dataclass(frozen=True, slots=True)
class Register:
    """A big-endian register: a field of ``bits`` bits above ``shift`` unused low bits.

    ``Register(0x07, 20, signed=True, shift=4)`` is a 20-bit two's complement field in a 24-bit register. Values are raw
    integers; scaling is the driver's. 16-bit registers travel as one word transfer, others are read as an I2C block.
    """

    address: int
    bits: int
    signed: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.address <= 0xFF:
            raise ValueError(f"register address {self.address:#x} is not one byte")
        if self.bits < 1 or self.shift < 0 or self.width not in WIRE_BITS:
            raise ValueError(f"a register has 8, 16, 24 or 40 bits, not {self.bits} above {self.shift}")

    @property
    def width(self) -> int:
        """Bits on the wire."""
        return self.bits + self.shift

    @property
    def lowest(self) -> int:
        """The smallest value that the field can hold."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """The largest value that the field can hold."""
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1

    def decode(self, data: bytes) -> int:
        """The field's value in the bytes of the register. Raises ValueError for another number of bytes."""
        if len(data) * 8 != self.width:
            raise ValueError(f"register {self.address:#04x} has {self.width // 8} bytes, got {len(data)}")
        return self._value(int.from_bytes(data, "big"))

    def encode(self, value: int) -> bytes:
        """The bytes of the register holding ``value``; unused bits are 0. Raises ValueError when it does not fit."""
        return self._word(value).to_bytes(self.width // 8, "big")

    def read(self, bus: I2CBus, chip: int) -> int:
        """The field's value in the chip at address ``chip``. Raises BusError."""
        if self.width == 16:
            return self._value(bus.read_word(chip, self.address))
        return self.decode(bus.read_block(chip, self.address, self.width // 8))

    def write(self, bus: I2CBus, chip: int, value: int) -> None:
        """Set a register of 8 or 16 bits. Raises BusError; ValueError for wider ones, read-only on these chips."""
        if self.width == 8:
            bus.write_byte_register(chip, self.address, self._word(value))
        elif self.width == 16:
            bus.write_word(chip, self.address, self._word(value))
        else:
            raise ValueError(
                f"register {self.address:#04x} has {self.width} bits; only 8-bit and 16-bit registers are written"
            )

    def _value(self, word: int) -> int:
        value = word >> self.shift
        if self.signed and value >> (self.bits - 1):
            value -= 1 << self.bits
        return value

    def _word(self, value: int) -> int:
        if not self.lowest <= value <= self.highest:
            raise ValueError(f"register {self.address:#04x} holds {self.lowest} to {self.highest}, not {value}")
        return (value & ((1 << self.bits) - 1)) << self.shift
