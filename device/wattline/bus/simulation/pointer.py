"""How chips with registers of words take transfers of single bytes: by their register pointer."""

from __future__ import annotations

from abc import ABC, abstractmethod


class PointedChip(ABC):
    """A chip that remembers which register was named last."""

    _pointer: int

    @abstractmethod
    def read_block(self, register: int, length: int) -> bytes:
        """The bytes from ``register`` on."""

    def read_byte(self) -> int:
        return self.read_block(self._pointer, 1)[0]

    def write_byte(self, value: int) -> None:
        self._pointer = value & 0xFF

    def write_byte_register(self, register: int, value: int) -> None:
        """Half a word: only the register pointer is moved."""
        self._pointer = register
