"""A PCF8574 I/O expander: eight quasi-bidirectional pins behind one byte (NXP PCF8574 data sheet, 7 and 8)."""

from __future__ import annotations

POWER_ON = 0xFF


class Pcf8574Model:
    """The output latch and the pins. A write sets the latch, a read gives the *pins*, not the latch."""

    def __init__(self) -> None:
        self.latch = POWER_ON
        self.forced: dict[int, int] = {}
        """Pins that something outside holds at a level (a broken driver), by bit."""

    @property
    def pins(self) -> int:
        levels = self.latch
        for bit, level in self.forced.items():
            levels = levels & ~(1 << bit) | level << bit
        return levels

    def reset(self) -> None:
        """What a brown-out does: all pins high."""
        self.latch = POWER_ON

    def read_byte(self) -> int:
        return self.pins

    def write_byte(self, value: int) -> None:
        self.latch = value & 0xFF

    def read_block(self, register: int, length: int) -> bytes:
        # The chip knows no registers: the "register" of a driver that takes it for another chip lands on the pins.
        self.write_byte(register)
        return bytes([self.pins]) * length

    def write_byte_register(self, register: int, value: int) -> None:
        for byte in (register, value):
            self.write_byte(byte)

    def write_word(self, register: int, value: int) -> None:
        for byte in (register, value >> 8, value):
            self.write_byte(byte)
