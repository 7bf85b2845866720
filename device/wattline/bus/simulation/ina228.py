"""An INA228 power monitor as its registers show it (TI INA228 data sheet SLYS021, 7.3.2, 7.6 and 8.1.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from wattline.bus.simulation.pointer import PointedChip

CONFIG, ADC_CONFIG, SHUNT_CAL, SHUNT_TEMPCO = 0x00, 0x01, 0x02, 0x03
VSHUNT, VBUS, DIETEMP, CURRENT, POWER, ENERGY, CHARGE = 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A
DIAG_ALRT, SOVL, SUVL, BOVL, BUVL, TEMP_LIMIT, PWR_LIMIT = 0x0B, 0x0C, 0x0D, 0x0E, 0x0F, 0x10, 0x11
MANUFACTURER_ID, DEVICE_ID = 0x3E, 0x3F

POWER_ON = {
    CONFIG: 0x0000,
    ADC_CONFIG: 0xFB68,
    SHUNT_CAL: 0x1000,
    SHUNT_TEMPCO: 0x0000,
    SOVL: 0x7FFF,
    SUVL: 0x8000,
    BOVL: 0x7FFF,
    BUVL: 0x0000,
    TEMP_LIMIT: 0x7FFF,
    PWR_LIMIT: 0xFFFF,
}
WRITABLE_BITS = {CONFIG: 0x3FF0, SHUNT_CAL: 0x7FFF, SHUNT_TEMPCO: 0x3FFF}

RST, RSTACC, ADCRANGE = 1 << 15, 1 << 14, 1 << 4
ALATCH, ENERGYOF, CHARGEOF, MATHOF, CNVRF, MEMSTAT = 1 << 15, 1 << 11, 1 << 10, 1 << 9, 1 << 1, 1 << 0
ALERT_CONTROL = 0xF000

CONVERSION_NS = (50_000, 84_000, 150_000, 280_000, 540_000, 1_052_000, 2_074_000, 4_120_000)
AVERAGES = (1, 4, 16, 64, 128, 256, 512, 1024)
BUS, SHUNT, TEMPERATURE, CONTINUOUS = 1, 2, 4, 8

TOP_20 = (1 << 19) - 1
TOP_24 = (1 << 24) - 1
ACCUMULATOR = 1 << 40
SECOND_NS = 1_000_000_000
DIE_25_C = 3200
SHUNT_OHMS = 0.001
"""The resistor on the simulated board."""


@dataclass(slots=True)
class _Window:
    """What the ADC has integrated since its last conversion."""

    ns: int = 0
    shunt_v_ns: float = 0.0
    bus_v_ns: float = 0.0

    def add(self, ns: int, shunt_v: float, bus_v: float) -> None:
        self.ns += ns
        self.shunt_v_ns += shunt_v * ns
        self.bus_v_ns += bus_v * ns


@dataclass(slots=True)
class Ina228Model(PointedChip):
    """One chip. ``sample`` lets time pass with a voltage and a current at its terminals; results change only there."""

    gain: float = 1.0
    """What its shunt measures, relative to the truth (tolerance of the resistor, or a lie)."""
    device_id: int = 0x2281
    frozen: bool = False
    saturated: bool = False
    backwards: bool = False
    _words: dict[int, int] = field(default_factory=lambda: dict(POWER_ON))
    _alert: int = 0
    _flags: int = MEMSTAT
    _results: dict[int, int] = field(default_factory=dict)
    _energy_ns: int = 0
    """Sum of POWER times nanoseconds; one LSB of ENERGY is 16 of POWER times a second."""
    _charge_ns: int = 0
    _window: _Window = field(default_factory=_Window)
    _triggered: bool = False
    _pointer: int = 0

    def reset(self) -> None:
        """Power-on values, as after RST or a brown-out."""
        self._words = dict(POWER_ON)
        self._alert, self._flags = 0, MEMSTAT
        self._results = {}
        self._window = _Window()
        self._clear_accumulators()

    def disguise(self, is_another: bool) -> None:
        """Whether an INA238 answers in its place (the same registers, but no energy)."""
        self.device_id = 0x2381 if is_another else 0x2281

    def set_energy(self, raw: int) -> None:
        """Put the 40-bit accumulator at ``raw`` (to see it overflow)."""
        self._energy_ns = raw * 16 * SECOND_NS

    @property
    def conversion_ns(self) -> int:
        """How long a conversion of all enabled inputs takes, averaging included; 0 in shutdown."""
        return _conversion_ns(self._words[ADC_CONFIG])

    def sample(self, bus_v: float, current_a: float, ns: int) -> None:
        """``ns`` nanoseconds pass at ``bus_v`` and ``current_a``."""
        shunt_v = current_a * SHUNT_OHMS * self.gain
        while ns > 0:
            period = self.conversion_ns
            running = self._words[ADC_CONFIG] >> 12 & CONTINUOUS or self._triggered
            if self.frozen or not period or not running:
                self._window = _Window()
                return
            if self._window.ns == 0 and ns >= 2 * period and not self._triggered:
                # A long stretch without change: its conversions are all alike.
                count = ns // period
                self._window.add(period, shunt_v, bus_v)
                self._convert(count)
                ns -= count * period
                continue
            part = min(ns, max(1, period - self._window.ns))
            self._window.add(part, shunt_v, bus_v)
            ns -= part
            if self._window.ns >= period:
                self._convert(1)

    def _convert(self, count: int) -> None:
        window, self._window = self._window, _Window()
        self._triggered = False
        mode = self._words[ADC_CONFIG] >> 12
        lsb_v = 78.125e-9 if self._words[CONFIG] & ADCRANGE else 312.5e-9
        if mode & SHUNT:
            exact = round(window.shunt_v_ns / window.ns / lsb_v)
            self._results[VSHUNT] = TOP_20 if self.saturated else max(-TOP_20 - 1, min(TOP_20, exact))
        if mode & BUS:
            self._results[VBUS] = max(0, min(TOP_20, round(window.bus_v_ns / window.ns / 195.3125e-6)))
        if mode & TEMPERATURE:
            self._results[DIETEMP] = DIE_25_C
        self._calculate()
        ns = window.ns * count
        before = self._energy_ns // (16 * SECOND_NS)
        self._energy_ns += self._results.get(POWER, 0) * ns * (-1 if self.backwards else 1)
        self._energy_ns = max(0, self._energy_ns)
        if self._energy_ns // (16 * SECOND_NS) // ACCUMULATOR > before // ACCUMULATOR:
            self._flags |= ENERGYOF
        self._charge_ns += self._results.get(CURRENT, 0) * ns
        if not -ACCUMULATOR // 2 <= self._charge_ns // SECOND_NS < ACCUMULATOR // 2:
            self._flags |= CHARGEOF
        self._flags |= CNVRF

    def _calculate(self) -> None:
        """CURRENT and POWER from VSHUNT, VBUS and SHUNT_CAL.

        With CURRENT_LSB = SHUNT_CAL / (13107.2e6 x R_SHUNT) and 312.5 nV per LSB of VSHUNT (both a quarter with
        ADCRANGE = 1) CURRENT is VSHUNT x 4096 / SHUNT_CAL; with 195.3125 uV per LSB of VBUS and 3.2 x CURRENT_LSB per
        LSB of POWER, POWER is |CURRENT| x VBUS / 2**14 (data sheet 8.1.2, equations 2 to 5).
        """
        calibration = self._words[SHUNT_CAL]
        shunt = self._results.get(VSHUNT, 0)
        current = shunt * 4096 // calibration if calibration else 0
        power = abs(current) * self._results.get(VBUS, 0) >> 14
        if not -TOP_20 - 1 <= current <= TOP_20 or power > TOP_24 or self.saturated:
            self._flags |= MATHOF
        self._results[CURRENT] = max(-TOP_20 - 1, min(TOP_20, current))
        self._results[POWER] = min(TOP_24, power)

    def write_word(self, register: int, value: int) -> None:
        self._pointer = register
        if register == DIAG_ALRT:
            self._alert = value & ALERT_CONTROL
        elif register == CONFIG and value & RST:
            self.reset()
        elif register in POWER_ON:
            self._words[register] = value & WRITABLE_BITS.get(register, 0xFFFF)
            if register == CONFIG and value & RSTACC:
                self._clear_accumulators()
                self._flags &= ~MATHOF
            if register in (CONFIG, ADC_CONFIG):
                self._window = _Window()
            if register == ADC_CONFIG:
                self._triggered = not value >> 12 & CONTINUOUS
                self._flags &= ~CNVRF

    def read_block(self, register: int, length: int) -> bytes:
        self._pointer = register
        data = self._register(register)
        # Clocking on after the end of a register gives ones: the bus is pulled up.
        return (data + b"\xff" * length)[:length]

    def _register(self, register: int) -> bytes:
        if register in (VSHUNT, VBUS, CURRENT):
            return ((self._results.get(register, 0) << 4) & TOP_24).to_bytes(3, "big")
        if register == POWER:
            return self._results.get(POWER, 0).to_bytes(3, "big")
        if register == ENERGY:
            self._flags &= ~ENERGYOF
            return (self._energy_ns // (16 * SECOND_NS) % ACCUMULATOR).to_bytes(5, "big")
        if register == CHARGE:
            self._flags &= ~CHARGEOF
            return (self._charge_ns // SECOND_NS % ACCUMULATOR).to_bytes(5, "big")
        return self._word(register).to_bytes(2, "big")

    def _word(self, register: int) -> int:
        if register == DIAG_ALRT:
            value = self._alert | self._flags
            self._flags &= ~CNVRF
            return value
        constants = {MANUFACTURER_ID: 0x5449, DEVICE_ID: self.device_id, DIETEMP: self._results.get(DIETEMP, 0)}
        return constants.get(register, self._words.get(register, 0xFFFF))

    def _clear_accumulators(self) -> None:
        self._energy_ns = self._charge_ns = 0


@cache
def _conversion_ns(adc: int) -> int:
    """With ADC_CONFIG at ``adc``; asked at every step of simulated time."""
    mode = adc >> 12
    times = ((BUS, adc >> 9), (SHUNT, adc >> 6), (TEMPERATURE, adc >> 3))
    return sum(CONVERSION_NS[time & 7] for channel, time in times if mode & channel) * AVERAGES[adc & 7]
