"""An INA219 power monitor as its registers show it (TI INA219 data sheet SBOS448, 8.3 to 8.6)."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.device.simulator.power_monitor import (
    BUS,
    CALIBRATION,
    CONFIG,
    POWER,
    SHUNT,
    VBUS,
    VSHUNT,
    PowerMonitorModel,
)

POWER_ON = {CONFIG: 0x399F, CALIBRATION: 0}
CNVR, OVF = 1 << 1, 1 << 0
BRNG = 1 << 13
SHUNT_LSBS = (4000, 8000, 16_000, 32_000)
"""Full scale of VSHUNT by PG."""
SINGLE_NS = (84_000, 148_000, 276_000, 532_000)
"""Conversion of 9 to 12 bits, by the two lowest bits of BADC or SADC with the highest at 0."""
SAMPLES_NS = (532_000, 1_060_000, 2_130_000, 4_260_000, 8_510_000, 17_020_000, 34_050_000, 68_100_000)
"""1 to 128 samples of 12 bits, with the highest bit at 1."""
INA226_POWER_ON = 0x4127


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
        return POWER_ON | ({CONFIG: INA226_POWER_ON} if self.is_another else {})

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
