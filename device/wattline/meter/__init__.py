"""Energy meters behind one Protocol."""

from wattline.meter.opening import MeterSettings, open_meter
from wattline.meter.reading import MIN_VOLTAGE_MV, Meter, MeterError, Reading, next_look_ms
from wattline.meter.trust import TrustedMeter

__all__ = [
    "MIN_VOLTAGE_MV",
    "Meter",
    "MeterError",
    "MeterSettings",
    "Reading",
    "TrustedMeter",
    "next_look_ms",
    "open_meter",
]
