"""The registers of the INA228 (TI data sheet SLYS021, table 7-1 and section 7.6.1)."""

from __future__ import annotations

from wattline.device.i2c.bus import Register

CONFIG = Register(0x00, 16)
ADC_CONFIG = Register(0x01, 16)
SHUNT_CAL = Register(0x02, 16)
VSHUNT = Register(0x04, 20, signed=True, shift=4)
"""312.5 nV per LSB, 78.125 nV with ADCRANGE = 1."""
VBUS = Register(0x05, 20, signed=True, shift=4)
"""195.3125 uV per LSB; never negative."""
CURRENT = Register(0x07, 20, signed=True, shift=4)
"""CURRENT_LSB amperes per LSB."""
POWER = Register(0x08, 24)
"""3.2 x CURRENT_LSB watts per LSB; a magnitude."""
ENERGY = Register(0x09, 40)
"""16 x 3.2 x CURRENT_LSB joules per LSB; reading it clears ENERGYOF."""
CHARGE = Register(0x0A, 40, signed=True)
"""CURRENT_LSB coulombs per LSB, what flows back taken off; RSTACC clears it with ENERGY, reading it clears CHARGEOF."""
DIAG_ALRT = Register(0x0B, 16)
MANUFACTURER_ID = Register(0x3E, 16)
DEVICE_ID = Register(0x3F, 12, shift=4)
"""DIEID; the four bits below are the revision."""

TEXAS_INSTRUMENTS = 0x5449
INA228 = 0x228

# CONFIG
RSTACC = 1 << 14
ADCRANGE = 1 << 4

# ADC_CONFIG
MODE_CONTINUOUS_BUS_AND_SHUNT = 0xB << 12
VBUSCT_1052_US = 5 << 9
VSHCT_1052_US = 5 << 6
VTCT_1052_US = 5 << 3
AVG_4 = 1 << 0

# DIAG_ALRT
ALATCH = 1 << 15
CNVR, SLOWALERT, APOL = 1 << 14, 1 << 13, 1 << 12
ENERGYOF = 1 << 11
MATHOF = 1 << 9
CNVRF = 1 << 1
MEMSTAT = 1 << 0
"""1 as long as the checksum of the trim memory is right."""
ALERT_CONTROL = ALATCH | CNVR | SLOWALERT | APOL
