"""From the ``meter`` of a configuration file to a meter."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Discriminator

from wattline.device.i2c.bus import BusError, I2CBus
from wattline.device.i2c.linux import open_bus
from wattline.device.meters.ina219 import Ina219Settings, open_ina219
from wattline.device.meters.ina226 import Ina226Settings, open_ina226
from wattline.device.meters.ina228 import Ina228
from wattline.device.meters.ina228_calibration import Ina228Settings
from wattline.device.meters.reading import Meter, MeterError
from wattline.device.meters.trust import TrustedMeter

MeterSettings: TypeAlias = Annotated[Ina228Settings | Ina226Settings | Ina219Settings, Discriminator("driver")]
"""The settings of any meter, told apart by ``driver``."""


def open_meter(settings: MeterSettings, max_power_mw: int | None = None) -> Meter:
    """The meter, checked and counting. ``max_power_mw`` is the rated power of the outlet. Raises MeterError."""
    try:
        bus = open_bus(settings.bus)
    except BusError as error:
        raise MeterError("meter_bus_error", str(error)) from error
    try:
        return TrustedMeter(_driver(bus, settings), max_power_mw, settings.zero_ma)
    except MeterError:
        bus.close()
        raise


def _driver(bus: I2CBus, settings: MeterSettings) -> Meter:
    match settings:
        case Ina228Settings():
            return Ina228(bus, settings)
        case Ina226Settings():
            return open_ina226(bus, settings)
        case Ina219Settings():
            return open_ina219(bus, settings)
