"""The registers of the INA219 (TI data sheet SBOS448, table 2 and section 8.6). All have 16 bits."""

from __future__ import annotations

from wattline.device.i2c.bus import Register

CONFIG = Register(0x00, 16)
VSHUNT = Register(0x01, 16, signed=True)
"""10 uV per LSB, up to the range of the amplifier."""
VBUS = Register(0x02, 16)
"""The voltage, 4 mV per LSB, above three bits of flags (so it is not one field: both come from one transfer)."""
POWER = Register(0x03, 16)
"""Reading it clears CNVR."""
CALIBRATION = Register(0x05, 16)
"""Its lowest bit is always 0."""

# CONFIG
RST = 1 << 15
POWER_ON_CONFIG = 0x399F
NEVER_SET = RST | 1 << 14
BRNG_32_V = 1 << 13
PG_SHIFT = 11
BADC_16_SAMPLES = 0xC << 7
SADC_16_SAMPLES = 0xC << 3
MODE_CONTINUOUS_SHUNT_AND_BUS = 7

# VBUS
VBUS_SHIFT = 3
CNVR = 1 << 1
OVF = 1 << 0
"""The chip's own CURRENT or POWER did not fit: more current than its calibration says."""
