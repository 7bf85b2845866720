"""What relays on any I2C expander have in common: pins that are latched, shared by the relays of one chip."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from pydantic import Field, field_validator

from wattline.core.settings import Settings
from wattline.device.i2c.bus import BusError, I2CBus
from wattline.device.i2c.linux import check_bus_spec
from wattline.device.relays.relay import RelayError

T = TypeVar("T")

TRIES = 3
TRY_AGAIN_S = 0.002
ADDRESSES = (*range(0x20, 0x28), *range(0x38, 0x40))


class ExpanderSettings(Settings):
    """A relay on one pin of an expander with eight of them."""

    driver: str
    bus: int | str = Field(description="Number N of /dev/i2c-N, or 'sim:PROFILE[/INSTANCE]' for a simulated bus.")
    address: int = Field(description="I2C address, 0x20 to 0x27, or 0x38 to 0x3F for the variant with an A.")
    bit: int = Field(ge=0, le=7, description="Number of the pin.")
    active_low: bool = Field(
        default=True, description="The relay closes when the pin is low (the pins are high at power-on)."
    )

    @field_validator("bus")
    @classmethod
    def _is_a_bus(cls, value: int | str) -> int | str:
        return check_bus_spec(value)

    @property
    def chip_name(self) -> str:
        """The chip in errors."""
        return f"{self.driver.upper()} at {self.address:#04x} on bus {self.bus}"

    @property
    def place(self) -> str:
        """The relay in errors."""
        return f"pin P{self.bit} of the {self.chip_name}"


class Expander(Protocol):
    """One chip, shared by all relays on it."""

    @property
    def name(self) -> str:
        """The chip in errors."""

    def claim(self, bit: int, level: int) -> None:
        """A relay is on pin ``bit``, open at ``level``. Nothing is written yet. Raises ValueError when it is taken."""

    def write(self, bit: int, level: int) -> None:
        """Put pin ``bit`` at ``level``. Raises RelayError."""

    def read(self, bit: int) -> int:
        """The level that pin ``bit`` really has. Raises RelayError."""

    def close(self) -> None:
        """Let go of the bus; the pins stay as they are."""


class Claims:
    """The pins of one chip that have a relay, and the levels that they were told last.

    Levels that are read from pins must not be written back: a pin that is stuck at the level of a closed relay would
    get into the latch by a write for its neighbour, and its relay would stay closed for good.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._levels: dict[int, int] = {}

    def add(self, bit: int, level: int) -> None:
        """Raises ValueError when the pin is taken."""
        if bit in self._levels:
            raise ValueError(f"{self._name}: two relays on pin P{bit}")
        self._levels[bit] = level

    def set(self, bit: int, level: int) -> None:
        self._levels[bit] = level

    @property
    def mask(self) -> int:
        """The claimed pins."""
        return sum(1 << bit for bit in self._levels)

    def over(self, value: int) -> int:
        """``value`` with the claimed pins as they were told."""
        for bit, level in self._levels.items():
            value = value & ~(1 << bit) | level << bit
        return value


class LatchedExpander:
    """What the expanders have in common: a bus, an address, and claims."""

    def __init__(self, bus: I2CBus, address: int, name: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.name = name
        self._bus = bus
        self._address = address
        self._sleep = sleep
        self._claims = Claims(name)

    def claim(self, bit: int, level: int) -> None:
        self._claims.add(bit, level)

    def close(self) -> None:
        self._bus.close()

    def _attempt(self, transfer: Callable[[], T]) -> T:
        """Raises RelayError ``relay_bus_error``."""
        return attempt(self.name, transfer, self._sleep)

    def _settled(self, transfer: Callable[[], int]) -> int:
        """A byte of which every bit was read twice alike: what one disturbed transfer says counts for nothing and is
        not written back. It always comes to an end, for a pin of a stranger may change all the time. Raises RelayError.
        """
        first, second = self._attempt(transfer), self._attempt(transfer)
        if first == second:
            return first
        third = self._attempt(transfer)
        return first & second | first & third | second & third


class ExpanderRelay:
    """One pin of an expander as :class:`wattline.device.relays.relay.Relay`."""

    def __init__(
        self, expander: Expander, bit: int, active_low: bool, release: Callable[[], None] | None = None
    ) -> None:
        """Nothing is written. ``release`` is called at the end. Raises ValueError when the pin has a relay already."""
        self._release = release
        self._expander = expander
        self._bit = bit
        self._level_closed = 0 if active_low else 1
        expander.claim(bit, 1 - self._level_closed)

    def set_closed(self, closed: bool) -> None:
        level = self._level_closed if closed else 1 - self._level_closed
        self._expander.write(self._bit, level)
        if self._expander.read(self._bit) == level:
            return
        self._expander.write(self._bit, level)  # the first may have been disturbed
        if self._expander.read(self._bit) != level:
            wanted, found = ("closed", "open") if closed else ("open", "closed")
            raise RelayError("relay_stuck", f"{self._expander.name} pin P{self._bit}: put {wanted}, read back {found}")

    def is_closed(self) -> bool:
        return self._expander.read(self._bit) == self._level_closed

    def close(self) -> None:
        if self._release is not None:
            self._release()


def attempt(name: str, transfer: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """A transfer, tried a few times: a disturbed bus is back in milliseconds. Raises RelayError ``relay_bus_error``."""
    for _ in range(TRIES - 1):
        try:
            return transfer()
        except BusError:
            sleep(TRY_AGAIN_S)
    try:
        return transfer()
    except BusError as error:
        raise RelayError("relay_bus_error", f"{name}: {error}") from error
