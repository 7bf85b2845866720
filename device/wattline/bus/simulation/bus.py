"""The bus of a simulated world, shared with whoever else has opened it."""

from __future__ import annotations

from wattline.bus.simulation.connection import WorldConnection
from wattline.bus.simulation.place import Place


class SimulatedBus:
    """:class:`wattline.bus.i2c.I2CBus` whose chips live in the process of a world."""

    def __init__(self, place: Place) -> None:
        """Connect to the world at ``place``, starting it when needed. Raises BusError."""
        self._world = WorldConnection(place)

    def read_byte(self, address: int) -> int:
        return int(self._world.call("read_byte", address=address))

    def write_byte(self, address: int, value: int) -> None:
        self._world.call("write_byte", address=address, value=value)

    def write_byte_register(self, address: int, register: int, value: int) -> None:
        self._world.call("write_byte_register", address=address, register=register, value=value)

    def read_word(self, address: int, register: int) -> int:
        return int(self._world.call("read_word", address=address, register=register))

    def write_word(self, address: int, register: int, value: int) -> None:
        self._world.call("write_word", address=address, register=register, value=value)

    def read_block(self, address: int, register: int, length: int) -> bytes:
        return bytes.fromhex(self._world.call("read_block", address=address, register=register, length=length))

    def peek(self, address: int, register: int, after: int) -> int:
        return int(self._world.call("peek", address=address, register=register, after=after))

    def close(self) -> None:
        self._world.close()
