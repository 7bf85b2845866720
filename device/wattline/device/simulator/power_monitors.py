"""The INA219 and the INA226 as their registers show them (TI data sheets SBOS448, 8.3 to 8.6, and SBOS547, 7.3 to 7.6).

Both have an ADC that averages in windows, registers of 16 bits, and a register pointer for transfers of single bytes.
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


INA219_POWER_ON = {CONFIG: 0x399F, CALIBRATION: 0}
CNVR, OVF = 1 << 1, 1 << 0
BRNG = 1 << 13
SHUNT_LSBS = (4000, 8000, 16_000, 32_000)
"""Full scale of VSHUNT by PG."""
SINGLE_NS = (84_000, 148_000, 276_000, 532_000)
"""Conversion of 9 to 12 bits, by the two lowest bits of BADC or SADC with the highest at 0."""
SAMPLES_NS = (532_000, 1_060_000, 2_130_000, 4_260_000, 8_510_000, 17_020_000, 34_050_000, 68_100_000)
"""1 to 128 samples of 12 bits, with the highest bit at 1."""
ANOTHER_CONFIG = 0x4127


@dataclass(slots=True)
class Ina219Model(PowerMonitorModel):
    """One INA219. In disguise it is an INA226, as far as a power-on value goes."""

    @property
    def conversion_ns(self) -> int:
        config = self._words[CONFIG]
        shunt = _adc_ns(config >> 3) if self.mode & SHUNT else 0
        bus = _adc_ns(config >> 7) if self.mode & BUS else 0
        return shunt + bus

    def disguise(self, is_another: bool) -> None:
        if is_another != self.is_another:
            self.is_another = is_another
            self.reset()

    def _power_on(self) -> dict[int, int]:
        return INA219_POWER_ON | ({CONFIG: ANOTHER_CONFIG} if self.is_another else {})

    def _digitize(self, shunt_v: float, bus_v: float) -> None:
        config = self._words[CONFIG]
        if self.mode & SHUNT:
            full = SHUNT_LSBS[config >> 11 & 3]
            self._results[VSHUNT] = full if self.saturated else max(-full, min(full, round(shunt_v / 10e-6)))
        if self.mode & BUS:
            full = 8000 if config & BRNG else 4000
            self._results[VBUS] = max(0, min(full, round(bus_v / 4e-3)))
        self._calculate(4096, 5000)

    def _writable_config(self, value: int) -> int:
        return value & 0x3FFF

    def _write(self, register: int, value: int) -> None:
        self._words[register] = value & 0xFFFE

    def _word(self, register: int) -> int:
        if register == VBUS:
            flags = (CNVR if self._ready else 0) | (OVF if self._overflow else 0)
            return self._results.get(VBUS, 0) << 3 | flags
        if register == POWER:
            self._ready = False
        if register in self._words:
            return self._words[register]
        return self._results.get(register, 0)


def _adc_ns(code: int) -> int:
    """Conversion time of a four-bit ADC setting (data sheet, table 5)."""
    return SAMPLES_NS[code & 7] if code & 8 else SINGLE_NS[code & 3]


MASK_ENABLE, ALERT_LIMIT = 0x06, 0x07
MANUFACTURER_ID, DIE_ID = 0xFE, 0xFF
INA226_POWER_ON = {CONFIG: 0x4127, CALIBRATION: 0, MASK_ENABLE: 0, ALERT_LIMIT: 0}
CVRF, OVF = 1 << 3, 1 << 2
MASK_BITS = 0xFC03
CONVERSION_NS = (140_000, 204_000, 332_000, 588_000, 1_100_000, 2_116_000, 4_156_000, 8_244_000)
AVERAGES = (1, 4, 16, 64, 128, 256, 512, 1024)
INA230 = 0x2300
"""What answers in a disguise: the same registers and another die."""


@dataclass(slots=True)
class Ina226Model(PowerMonitorModel):
    """One INA226."""

    @property
    def conversion_ns(self) -> int:
        config = self._words[CONFIG]
        shunt = CONVERSION_NS[config >> 3 & 7] if self.mode & SHUNT else 0
        bus = CONVERSION_NS[config >> 6 & 7] if self.mode & BUS else 0
        return (shunt + bus) * AVERAGES[config >> 9 & 7]

    def _power_on(self) -> dict[int, int]:
        return dict(INA226_POWER_ON)

    def _digitize(self, shunt_v: float, bus_v: float) -> None:
        if self.mode & SHUNT:
            exact = round(shunt_v / 2.5e-6)
            self._results[VSHUNT] = HIGHEST if self.saturated else max(LOWEST, min(HIGHEST, exact))
        if self.mode & BUS:
            self._results[VBUS] = max(0, min(HIGHEST, round(bus_v / 1.25e-3)))
        self._calculate(2048, 20_000)

    def _writable_config(self, value: int) -> int:
        return value & 0x0FFF | 0x4000

    def _write(self, register: int, value: int) -> None:
        self._words[register] = value & {CALIBRATION: 0x7FFF, MASK_ENABLE: MASK_BITS}.get(register, 0xFFFF)

    def _word(self, register: int) -> int:
        if register == MASK_ENABLE:
            flags = (CVRF if self._ready else 0) | (OVF if self._overflow else 0)
            self._ready = False
            return self._words[MASK_ENABLE] | flags
        if register == MANUFACTURER_ID:
            return 0x5449
        if register == DIE_ID:
            return INA230 if self.is_another else 0x2260
        if register in self._words:
            return self._words[register]
        return self._results.get(register, 0)
