"""An INA226 power monitor as its registers show it (TI INA226 data sheet SBOS547, 7.3 to 7.6)."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.device.simulator.power_monitor import (
    BUS,
    CALIBRATION,
    CONFIG,
    HIGHEST,
    LOWEST,
    SHUNT,
    VBUS,
    VSHUNT,
    PowerMonitorModel,
)

MASK_ENABLE, ALERT_LIMIT = 0x06, 0x07
MANUFACTURER_ID, DIE_ID = 0xFE, 0xFF
POWER_ON = {CONFIG: 0x4127, CALIBRATION: 0, MASK_ENABLE: 0, ALERT_LIMIT: 0}
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
        return dict(POWER_ON)

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
