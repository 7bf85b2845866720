"""Energy meters behind one Protocol."""

from wattline.meter.opening import MeterSettings, open_meter
from wattline.meter.reading import Meter, MeterError, Reading
from wattline.meter.trust import TrustedMeter

__all__ = ["Meter", "MeterError", "MeterSettings", "Reading", "TrustedMeter", "open_meter"]
