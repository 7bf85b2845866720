"""The I2C buses of a Linux machine (``/dev/i2c-N``) through smbus2, and from the ``bus`` of a configuration file
to a bus, real or simulated.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from smbus2 import SMBus, i2c_msg

from wattline.device.i2c.bus import BusError, I2CBus
from wattline.device.i2c.simulated import Place, SimulatedBus

T = TypeVar("T")

PERMISSION = {errno.EACCES: "no_permission", errno.EPERM: "no_permission"}
OPENING = PERMISSION | {errno.ENOENT: "no_bus", errno.ENODEV: "no_bus", errno.ENXIO: "no_bus"}
"""Of open(2): ENXIO and ENODEV say that no adapter is behind the device."""
TRANSFER = PERMISSION | {errno.ENXIO: "no_answer", errno.EREMOTEIO: "no_answer", errno.ENODEV: "no_answer"}
"""Linux kernel, Documentation/i2c/fault-codes.rst: a NACK is ENXIO, with some adapters EREMOTEIO or ENODEV."""

DEVICES = Path("/sys/bus/i2c/devices")
"""What the kernel knows of the chips on its buses: ``1-0040`` is the one at 0x40 of ``/dev/i2c-1``."""

MEANINGS = {
    "no_answer": "no chip answers",
    "chip_taken": "a kernel driver has the chip",
    "no_bus": "there is no such bus (is I2C switched on?)",
    "no_permission": "no permission (is the user in the group i2c?)",
    "bus_error": "transfer failed",
}


class SmbusDevice(Protocol):
    """What is used of :class:`smbus2.SMBus`; word transfers are little-endian there, as SMBus has it."""

    def read_byte(self, i2c_addr: int, /) -> int: ...

    def write_byte(self, i2c_addr: int, value: int, /) -> None: ...

    def write_byte_data(self, i2c_addr: int, register: int, value: int, /) -> None: ...

    def read_word_data(self, i2c_addr: int, register: int, /) -> int: ...

    def write_word_data(self, i2c_addr: int, register: int, value: int, /) -> None: ...

    def read_i2c_block_data(self, i2c_addr: int, register: int, length: int, /) -> Sequence[int]: ...

    def i2c_rdwr(self, *messages: Any) -> None: ...

    def close(self) -> None: ...


class LinuxBus:
    """``/dev/i2c-N`` as :class:`wattline.device.i2c.bus.I2CBus`."""

    def __init__(self, number: int, open_device: Callable[[int], SmbusDevice] = SMBus, devices: Path = DEVICES) -> None:
        """Open bus ``number``. Raises BusError (``no_bus``, ``no_permission``)."""
        self._number = number
        self._name = f"/dev/i2c-{number}"
        self._devices = devices
        self._device = self._run(None, lambda: open_device(number))

    def read_byte(self, address: int) -> int:
        return self._run(address, lambda: self._device.read_byte(address))

    def write_byte(self, address: int, value: int) -> None:
        self._run(address, lambda: self._device.write_byte(address, value))

    def write_byte_register(self, address: int, register: int, value: int) -> None:
        self._run(address, lambda: self._device.write_byte_data(address, register, value))

    def read_word(self, address: int, register: int) -> int:
        return _swapped(self._run(address, lambda: self._device.read_word_data(address, register)))

    def write_word(self, address: int, register: int, value: int) -> None:
        self._run(address, lambda: self._device.write_word_data(address, register, _swapped(value)))

    def read_block(self, address: int, register: int, length: int) -> bytes:
        data = bytes(self._run(address, lambda: self._device.read_i2c_block_data(address, register, length)))
        if len(data) != length:
            raise BusError("bus_error", f"{self._name}: chip {address:#04x} sent {len(data)} bytes instead of {length}")
        return data

    def peek(self, address: int, register: int, after: int) -> int:
        # One system call: the kernel sends the three messages with repeated starts, and nobody comes in between.
        answer = i2c_msg.read(address, 1)
        messages = (i2c_msg.write(address, [register]), answer, i2c_msg.write(address, [after]))
        self._run(address, lambda: self._device.i2c_rdwr(*messages))
        return int(next(iter(answer)))

    def close(self) -> None:
        self._device.close()

    def _run(self, address: int | None, transfer: Callable[[], T]) -> T:
        try:
            return transfer()
        except OSError as error:
            codes = OPENING if address is None else TRANSFER
            code, hint = codes.get(error.errno or 0, "bus_error"), ""
            if error.errno == errno.EBUSY and address is not None:
                driver = self._driver_of(address)
                if driver is not None:
                    code = "chip_taken"
                    hint = (
                        f": {driver.name}; to free it, as root: echo {self._device_name(address)} > {driver / 'unbind'}"
                    )
            chip = "" if address is None else f" at {address:#04x}"
            raise BusError(code, f"{self._name}: {MEANINGS[code]}{chip}{hint} ({error})") from error

    def _device_name(self, address: int) -> str:
        return f"{self._number}-{address:04x}"

    def _driver_of(self, address: int) -> Path | None:
        """The kernel driver that has the chip; None when there is none: then EBUSY means a bus that is never free."""
        try:
            return (self._devices / self._device_name(address) / "driver").resolve(strict=True)
        except OSError:
            return None


def _swapped(word: int) -> int:
    """SMBus sends the low byte of a word first, the chips their high byte: this is the one place that swaps."""
    return (word & 0xFF) << 8 | word >> 8


HIGHEST_BUS = 255


def open_bus(spec: int | str) -> I2CBus:
    """Bus N of the machine for an int; a simulated one for ``"sim:PROFILE"`` or ``"sim:PROFILE/INSTANCE"``.

    Raises BusError when it cannot be opened, ValueError when ``spec`` is no such thing.
    """
    check_bus_spec(spec)
    if isinstance(spec, int):
        return LinuxBus(spec)
    return SimulatedBus(Place.of(spec))


def bus_name(spec: int | str) -> int | str:
    """``spec`` as every other way to write the same bus becomes, too. Raises ValueError when it names none."""
    return spec if isinstance(spec, int) else Place.of(spec).spec


def check_bus_spec(spec: int | str) -> int | str:
    """``spec`` itself when it names a bus. Raises ValueError saying what is allowed."""
    if isinstance(spec, int):
        if not 0 <= spec <= HIGHEST_BUS:
            raise ValueError(f"bus {spec}: the number of an I2C bus is 0 to {HIGHEST_BUS}")
        return spec
    Place.of(spec)
    return spec
