"""The bus of a Linux machine, over a fake below smbus2's interface."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from smbus2.smbus2 import I2C_M_RD

from wattline.device.i2c.bus import BusError
from wattline.device.i2c.linux import LinuxBus


class FakeAdapter:
    """One chip at 0x40 with a register 0x3E, behind little-endian SMBus words."""

    def __init__(self, fails_with: int | None = None, block: bytes = b"") -> None:
        self.fails_with = fails_with
        self.block = block
        self.words = {0x3E: 0x4954}
        self.registers: dict[int, int] = {}
        self.latch = 0xFF
        self.closed = False

    def _fail(self) -> None:
        if self.fails_with is not None:
            raise OSError(self.fails_with, "as told")

    def read_byte(self, i2c_addr: int, /) -> int:
        self._fail()
        return self.latch

    def write_byte(self, i2c_addr: int, value: int, /) -> None:
        self._fail()
        self.latch = value

    def write_byte_data(self, i2c_addr: int, register: int, value: int, /) -> None:
        self._fail()
        self.registers[register] = value

    def read_word_data(self, i2c_addr: int, register: int, /) -> int:
        self._fail()
        return self.words[register]

    def write_word_data(self, i2c_addr: int, register: int, value: int, /) -> None:
        self._fail()
        self.words[register] = value

    def read_i2c_block_data(self, i2c_addr: int, register: int, length: int, /) -> list[int]:
        self._fail()
        return list(self.block)

    def i2c_rdwr(self, *messages: Any) -> None:
        """As the chip answers: with the register that was written last, and what was written last of all is kept."""
        self._fail()
        sent = 0
        for message in messages:
            if message.flags & I2C_M_RD:
                message.buf[0] = bytes([self.registers[sent]])
            else:
                (sent,) = list(message)
        self.latch = sent

    def close(self) -> None:
        self.closed = True


def test_a_peek_reads_a_register_and_sends_a_last_byte_in_one_transaction() -> None:
    adapter = FakeAdapter()
    adapter.registers[2] = 0x5A
    assert LinuxBus(1, lambda number: adapter).peek(0x20, 2, 0xFD) == 0x5A
    assert adapter.latch == 0xFD


def test_words_are_swapped_once_each_way() -> None:
    adapter = FakeAdapter()
    bus = LinuxBus(1, lambda number: adapter)
    assert bus.read_word(0x40, 0x3E) == 0x5449
    bus.write_word(0x40, 0x02, 0x0FA0)
    assert adapter.words[0x02] == 0xA00F
    assert bus.read_word(0x40, 0x02) == 0x0FA0


def test_blocks_and_bytes_are_passed_as_they_are() -> None:
    adapter = FakeAdapter(block=b"\x01\x02\x03")
    bus = LinuxBus(1, lambda number: adapter)
    assert bus.read_block(0x40, 0x08, 3) == b"\x01\x02\x03"
    bus.write_byte(0x20, 0xFE)
    assert bus.read_byte(0x20) == 0xFE
    bus.write_byte_register(0x21, 0x03, 0xFC)
    assert adapter.registers == {0x03: 0xFC}
    bus.close()
    assert adapter.closed


def test_a_block_that_is_too_short_is_an_error() -> None:
    bus = LinuxBus(1, lambda number: FakeAdapter(block=b"\x01"))
    with pytest.raises(BusError, match="1 bytes instead of 5") as caught:
        bus.read_block(0x40, 0x09, 5)
    assert caught.value.code == "bus_error"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENXIO, "no_answer"),
        (errno.EREMOTEIO, "no_answer"),
        (errno.ENODEV, "no_answer"),
        (errno.EBUSY, "bus_error"),
        (errno.ETIMEDOUT, "bus_error"),
        (errno.EIO, "bus_error"),
    ],
)
def test_a_failed_transfer_names_the_bus_and_the_chip(number: int, code: str) -> None:
    bus = LinuxBus(7, lambda _: FakeAdapter(fails_with=number))
    with pytest.raises(BusError, match=r"/dev/i2c-7: .* at 0x41") as caught:
        bus.read_word(0x41, 0x3E)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, "no_bus"),
        (errno.ENXIO, "no_bus"),
        (errno.ENODEV, "no_bus"),
        (errno.EACCES, "no_permission"),
        (errno.EPERM, "no_permission"),
    ],
)
def test_a_bus_that_cannot_be_opened_says_why(number: int, code: str) -> None:
    def refuse(_: int) -> FakeAdapter:
        raise OSError(number, "as told")

    with pytest.raises(BusError, match="/dev/i2c-3") as caught:
        LinuxBus(3, refuse)
    assert caught.value.code == code


def test_a_bus_that_this_machine_does_not_have_is_no_bus() -> None:
    with pytest.raises(BusError, match="/dev/i2c-253") as caught:
        LinuxBus(253)
    assert caught.value.code == "no_bus"


def test_a_chip_that_a_kernel_driver_has_is_told_with_the_driver_and_how_to_free_it(tmp_path: Path) -> None:
    driver, device = tmp_path / "drivers" / "ina2xx", tmp_path / "devices" / "1-0040"
    driver.mkdir(parents=True)
    device.mkdir(parents=True)
    (device / "driver").symlink_to("../../drivers/ina2xx")
    bus = LinuxBus(1, lambda _: FakeAdapter(fails_with=errno.EBUSY), tmp_path / "devices")
    with pytest.raises(BusError) as caught:
        bus.read_word(0x40, 0x3E)
    assert caught.value.code == "chip_taken"
    assert f"at 0x40: ina2xx; to free it, as root: echo 1-0040 > {driver}/unbind" in caught.value.message
