"""The registers of the INA226 (TI data sheet SBOS547, table 4 and section 7.6). All have 16 bits."""

from __future__ import annotations

from wattline.device.i2c.bus import Register

CONFIG = Register(0x00, 16)
VSHUNT = Register(0x01, 16, signed=True)
"""2.5 uV per LSB."""
VBUS = Register(0x02, 16, signed=True)
"""1.25 mV per LSB; never negative."""
CALIBRATION = Register(0x05, 16)
MASK_ENABLE = Register(0x06, 16)
"""Reading it clears CVRF."""
MANUFACTURER_ID = Register(0xFE, 16)
DIE_ID = Register(0xFF, 12, shift=4)
"""DID; the four bits below are the revision."""

TEXAS_INSTRUMENTS = 0x5449
INA226 = 0x226

# CONFIG
ALWAYS_SET = 1 << 14
AVG_4 = 1 << 9
VBUSCT_2116_US = 5 << 6
VSHCT_2116_US = 5 << 3
MODE_CONTINUOUS_SHUNT_AND_BUS = 7

# MASK_ENABLE
CVRF = 1 << 3
OVF = 1 << 2
"""The chip's own CURRENT or POWER did not fit: more current than its calibration says."""
