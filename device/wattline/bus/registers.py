"""Registers of chips as values: where they are, how wide, and what their bits mean as an integer."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.bus.i2c import I2CBus

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
