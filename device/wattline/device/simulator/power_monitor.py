"""What the models of the INA219 and the INA226 share: an ADC that averages in windows, and registers of 16 bits.

How chips with registers of words take transfers of single bytes: by their register pointer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field


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


SHUNT_OHMS = 0.001
"""The resistor on the simulated board."""
TOP_16 = (1 << 16) - 1
HIGHEST, LOWEST = (1 << 15) - 1, -(1 << 15)
RST = 1 << 15
SHUNT, BUS, CONTINUOUS = 1, 2, 4
"""Bits of MODE, the three lowest of CONFIG, in both chips."""
CONFIG, VSHUNT, VBUS, POWER, CURRENT, CALIBRATION = range(6)


@dataclass(slots=True)
class PowerMonitorModel(PointedChip):
    """One chip. ``sample`` lets time pass with a voltage and a current at its terminals; results change only there."""

    gain: float = 1.0
    """What its shunt measures, relative to the truth (tolerance of the resistor, or a lie)."""
    frozen: bool = False
    saturated: bool = False
    is_another: bool = False
    """Another chip answers in its place."""
    _words: dict[int, int] = field(default_factory=dict)
    _results: dict[int, int] = field(default_factory=dict)
    _ready: bool = False
    _overflow: bool = False
    _window_ns: int = 0
    _shunt_v_ns: float = 0.0
    _bus_v_ns: float = 0.0
    _triggered: bool = False
    _pointer: int = 0

    def __post_init__(self) -> None:
        self.reset()

    @abstractmethod
    def _power_on(self) -> dict[int, int]:
        """The writable registers after a reset."""

    @property
    @abstractmethod
    def conversion_ns(self) -> int:
        """How long a conversion of all enabled inputs takes, averaging included; 0 in shutdown."""

    @abstractmethod
    def _digitize(self, shunt_v: float, bus_v: float) -> None:
        """Set the results of VSHUNT and VBUS as far as MODE says, then CURRENT, POWER and ``_overflow``."""

    @abstractmethod
    def _word(self, register: int) -> int:
        """What reading ``register`` gives, with all that it clears."""

    @abstractmethod
    def _write(self, register: int, value: int) -> None:
        """Set a writable register other than CONFIG."""

    @abstractmethod
    def _writable_config(self, value: int) -> int:
        """What becomes of ``value`` in CONFIG."""

    @property
    def mode(self) -> int:
        return self._words[CONFIG] & 7

    def reset(self) -> None:
        """Power-on values, as after RST or a brown-out."""
        self._words = self._power_on()
        self._results = {}
        self._ready = self._overflow = self._triggered = False
        self._forget_window()

    def disguise(self, is_another: bool) -> None:
        """Whether another chip answers in its place."""
        self.is_another = is_another

    def sample(self, bus_v: float, current_a: float, ns: int) -> None:
        """``ns`` nanoseconds pass at ``bus_v`` and ``current_a``."""
        shunt_v = current_a * SHUNT_OHMS * self.gain
        while ns > 0:
            period = self.conversion_ns
            running = self.mode & CONTINUOUS or self._triggered
            if self.frozen or not period or not running:
                self._forget_window()
                return
            if self._window_ns == 0 and ns >= 2 * period and not self._triggered:
                # A long stretch without change: only its last conversion shows.
                ns -= (ns // period - 1) * period
            part = min(ns, max(1, period - self._window_ns))
            self._window_ns += part
            self._shunt_v_ns += shunt_v * part
            self._bus_v_ns += bus_v * part
            ns -= part
            if self._window_ns >= period:
                self._digitize(self._shunt_v_ns / self._window_ns, self._bus_v_ns / self._window_ns)
                self._forget_window()
                self._triggered = False
                self._ready = True

    def _forget_window(self) -> None:
        self._window_ns, self._shunt_v_ns, self._bus_v_ns = 0, 0.0, 0.0

    def _calculate(self, current_divisor: int, power_divisor: int) -> None:
        current = self._results.get(VSHUNT, 0) * self._words[CALIBRATION] // current_divisor
        power = abs(current) * self._results.get(VBUS, 0) // power_divisor
        self._overflow = not LOWEST <= current <= HIGHEST or power > TOP_16
        self._results[CURRENT] = max(LOWEST, min(HIGHEST, current))
        self._results[POWER] = min(TOP_16, power)

    def write_word(self, register: int, value: int) -> None:
        self._pointer = register
        if register == CONFIG and value & RST:
            self.reset()
        elif register == CONFIG:
            self._words[CONFIG] = self._writable_config(value)
            self._forget_window()
            self._ready = False
            self._triggered = not value & CONTINUOUS
        elif register in self._words:
            self._write(register, value)

    def read_block(self, register: int, length: int) -> bytes:
        self._pointer = register
        data = (self._word(register) & TOP_16).to_bytes(2, "big")
        # Clocking on after the end of a register gives ones: the bus is pulled up.
        return (data + b"\xff" * length)[:length]
