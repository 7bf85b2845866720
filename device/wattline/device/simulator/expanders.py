"""Two I/O expanders: a PCA9554, eight pins behind four registers (NXP PCA9554 data sheet, 6.2; TI's has the same), and
a PCF8574, eight quasi-bidirectional pins behind one byte (NXP PCF8574 data sheet, 7 and 8).
"""

from __future__ import annotations

INPUT, OUTPUT, POLARITY, CONFIGURATION = 0x00, 0x01, 0x02, 0x03
PCA9554_POWER_ON = {OUTPUT: 0xFF, POLARITY: 0x00, CONFIGURATION: 0xFF}


class Pca9554Model:
    """The registers and the pins. A pin that is no output is pulled up by 100 kilo-ohms on the chip."""

    def __init__(self) -> None:
        self.registers = dict(PCA9554_POWER_ON)
        self.forced: dict[int, int] = {}
        """Pins that something outside holds at a level (a broken driver), by bit."""
        self._pointer = INPUT

    @property
    def pins(self) -> int:
        levels = self.registers[OUTPUT] | self.registers[CONFIGURATION]
        for bit, level in self.forced.items():
            levels = levels & ~(1 << bit) | level << bit
        return levels

    def reset(self) -> None:
        """What a brown-out does: all pins are inputs again."""
        self.registers = dict(PCA9554_POWER_ON)

    def read_byte(self) -> int:
        return self._register(self._pointer)

    def write_byte(self, value: int) -> None:
        self._pointer = value

    def write_byte_register(self, register: int, value: int) -> None:
        self._pointer = register
        # The input port is read-only, and there are no other registers.
        if register in self.registers:
            self.registers[register] = value & 0xFF

    def read_block(self, register: int, length: int) -> bytes:
        # The pointer does not move on by itself: clocking on gives the same register again.
        self._pointer = register
        return bytes([self._register(register)]) * length

    def write_word(self, register: int, value: int) -> None:
        for byte in (value >> 8, value):
            self.write_byte_register(register, byte)

    def _register(self, register: int) -> int:
        if register == INPUT:
            return self.pins ^ self.registers[POLARITY]
        return self.registers.get(register, 0xFF)


PCF8574_POWER_ON = 0xFF


class Pcf8574Model:
    """The output latch and the pins. A write sets the latch, a read gives the *pins*, not the latch."""

    def __init__(self) -> None:
        self.latch = PCF8574_POWER_ON
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
        self.latch = PCF8574_POWER_ON

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
