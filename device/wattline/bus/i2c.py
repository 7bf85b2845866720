"""An I2C bus as the drivers see it, and what can go wrong on it."""

from __future__ import annotations

from typing import Protocol

from wattline.errors import RetryError


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
