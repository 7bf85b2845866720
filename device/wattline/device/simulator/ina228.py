"""An INA228 power monitor as its registers show it (TI INA228 data sheet SLYS021, 7.3.2, 7.6 and 8.1.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from wattline.device.simulator.power_monitors import PointedChip

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
class _Conversion:
    """How far the ADC has come. A cycle measures every enabled input once; a conversion is as many as are averaged."""

    input: int = 0
    """Which of the cycle's inputs is measured."""
    ns: int = 0
    """How long already, and what has been integrated meanwhile."""
    volt_ns: float = 0.0
    cycles: int = 0
    sums: dict[int, int] = field(default_factory=lambda: {SHUNT: 0, BUS: 0})
    """Of the results of the cycles that are over, by input."""

    @property
    def is_between_cycles(self) -> bool:
        return not (self.input or self.ns)


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
    _conversion: _Conversion = field(default_factory=_Conversion)
    _current: int = 0
    """As of the last measurement over the shunt; CURRENT is the mean of those of a conversion."""
    _triggered: bool = False
    _pointer: int = 0

    def reset(self) -> None:
        """Power-on values, as after RST or a brown-out."""
        self._words = dict(POWER_ON)
        self._alert, self._flags = 0, MEMSTAT
        self._results = {}
        self._conversion = _Conversion()
        self._clear_accumulators()

    def disguise(self, is_another: bool) -> None:
        """Whether an INA238 answers in its place (the same registers, but no energy)."""
        self.device_id = 0x2381 if is_another else 0x2281

    def set_energy(self, raw: int) -> None:
        """Put the 40-bit accumulator at ``raw`` (to see it overflow)."""
        self._energy_ns = raw * 16 * SECOND_NS

    def set_charge(self, raw: int) -> None:
        """Put the signed accumulator of the charge at ``raw`` (to see it roll over)."""
        self._charge_ns = raw * SECOND_NS

    @property
    def conversion_ns(self) -> int:
        """How long a conversion of all enabled inputs takes, averaging included; 0 in shutdown."""
        _, averages, cycle_ns = _timing(self._words[ADC_CONFIG])
        return cycle_ns * averages

    def sample(self, bus_v: float, current_a: float, ns: int) -> None:
        """``ns`` nanoseconds pass at ``bus_v`` and ``current_a``."""
        shunt_v = current_a * SHUNT_OHMS * self.gain
        volts = {SHUNT: shunt_v, BUS: bus_v, TEMPERATURE: 0.0}
        adc = self._words[ADC_CONFIG]
        inputs, averages, cycle_ns = _timing(adc)
        while ns > 0:
            if self.frozen or not inputs or not (adc >> 12 & CONTINUOUS or self._triggered):
                self._conversion = _Conversion()
                return
            under_way = self._conversion
            if under_way.is_between_cycles and ns >= cycle_ns:
                # A stretch without change: its cycles are all alike.
                cycles = ns // cycle_ns
                if under_way.cycles or self._triggered or cycles < averages:
                    cycles = min(cycles, averages - under_way.cycles)
                else:
                    cycles -= cycles % averages
                for channel, _ in inputs:
                    self._measure(channel, volts[channel], cycles, cycle_ns)
                ns -= cycles * cycle_ns
                self._count(cycles, averages)
                continue
            channel, input_ns = inputs[under_way.input]
            part = min(ns, input_ns - under_way.ns)
            under_way.ns += part
            under_way.volt_ns += volts[channel] * part
            ns -= part
            if under_way.ns < input_ns:
                return
            self._measure(channel, under_way.volt_ns / input_ns, 1, cycle_ns)
            under_way.ns, under_way.volt_ns = 0, 0.0
            under_way.input = (under_way.input + 1) % len(inputs)
            if under_way.input == 0:
                self._count(1, averages)

    def _measure(self, channel: int, volts: float, cycles: int, cycle_ns: int) -> None:
        """One input in each of so many cycles. Charge grows with every measurement over the shunt, energy with every
        one of the bus voltage, by that and the current before it; no average is taken of these (data sheet 7.3.2)."""
        if channel == SHUNT:
            lsb_v = 78.125e-9 if self._words[CONFIG] & ADCRANGE else 312.5e-9
            shunt = TOP_20 if self.saturated else max(-TOP_20 - 1, min(TOP_20, round(volts / lsb_v)))
            self._conversion.sums[SHUNT] += shunt * cycles
            self._current = self._current_of(shunt)
            before = self._charge_ns // SECOND_NS + ACCUMULATOR // 2
            self._charge_ns += self._current * cycle_ns * cycles
            if (self._charge_ns // SECOND_NS + ACCUMULATOR // 2) // ACCUMULATOR != before // ACCUMULATOR:
                self._flags |= CHARGEOF
        elif channel == BUS:
            bus = max(0, min(TOP_20, round(volts / 195.3125e-6)))
            self._conversion.sums[BUS] += bus * cycles
            before = self._energy_ns // (16 * SECOND_NS)
            power = self._power_of(self._current, bus)
            self._energy_ns = max(0, self._energy_ns + power * cycle_ns * cycles * (-1 if self.backwards else 1))
            if self._energy_ns // (16 * SECOND_NS) // ACCUMULATOR > before // ACCUMULATOR:
                self._flags |= ENERGYOF

    def _count(self, cycles: int, averages: int) -> None:
        """So many cycles are over. When a conversion is, the results are the means of its cycles."""
        self._conversion.cycles += cycles
        cycles = self._conversion.cycles
        if cycles < averages:
            return
        sums, self._conversion = self._conversion.sums, _Conversion()
        self._triggered = False
        mode = self._words[ADC_CONFIG] >> 12
        if mode & SHUNT:
            self._results[VSHUNT] = round(sums[SHUNT] / cycles)
        if mode & BUS:
            self._results[VBUS] = round(sums[BUS] / cycles)
        if mode & TEMPERATURE:
            self._results[DIETEMP] = DIE_25_C
        self._results[CURRENT] = self._current_of(self._results.get(VSHUNT, 0))
        self._results[POWER] = self._power_of(self._results[CURRENT], self._results.get(VBUS, 0))
        self._flags |= CNVRF

    def _current_of(self, shunt: int) -> int:
        """CURRENT, from VSHUNT and SHUNT_CAL.

        With CURRENT_LSB = SHUNT_CAL / (13107.2e6 x R_SHUNT) and 312.5 nV per LSB of VSHUNT (both a quarter with
        ADCRANGE = 1) CURRENT is VSHUNT x 4096 / SHUNT_CAL (data sheet 8.1.2, equations 2 and 3).
        """
        calibration = self._words[SHUNT_CAL]
        current = shunt * 4096 // calibration if calibration else 0
        if not -TOP_20 - 1 <= current <= TOP_20 or self.saturated:
            self._flags |= MATHOF
        return max(-TOP_20 - 1, min(TOP_20, current))

    def _power_of(self, current: int, bus: int) -> int:
        """POWER: with 195.3125 uV per LSB of VBUS and 3.2 x CURRENT_LSB watts per LSB it is |CURRENT| x VBUS / 2**14
        (data sheet 8.1.2, equations 4 and 5)."""
        power = abs(current) * bus >> 14
        if power > TOP_24:
            self._flags |= MATHOF
        return min(TOP_24, power)

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
                self._conversion = _Conversion()
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
def _timing(adc: int) -> tuple[tuple[tuple[int, int], ...], int, int]:
    """With ADC_CONFIG at ``adc``: which inputs a cycle measures for how many ns, how many cycles are averaged, and how
    many ns a cycle takes. Asked at every step of simulated time."""
    mode = adc >> 12
    times = ((SHUNT, adc >> 6), (BUS, adc >> 9), (TEMPERATURE, adc >> 3))
    inputs = tuple((channel, CONVERSION_NS[time & 7]) for channel, time in times if mode & channel)
    return inputs, AVERAGES[adc & 7], sum(ns for _, ns in inputs)
