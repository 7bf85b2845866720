"""From the ``meter`` of a configuration file to a meter."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Discriminator

from wattline.bus import BusError, open_bus
from wattline.meter.ina228 import Ina228
from wattline.meter.ina228_calibration import Ina228Settings
from wattline.meter.reading import Meter, MeterError
from wattline.meter.trust import TrustedMeter

MeterSettings: TypeAlias = Annotated[Ina228Settings, Discriminator("driver")]
"""The settings of any meter, told apart by ``driver``."""


def open_meter(settings: MeterSettings, max_power_mw: int | None = None) -> Meter:
    """The meter, checked and counting. ``max_power_mw`` is the rated power of the outlet. Raises MeterError."""
    try:
        bus = open_bus(settings.bus)
    except BusError as error:
        raise MeterError("meter_bus_error", str(error)) from error
    try:
        return TrustedMeter(Ina228(bus, settings), max_power_mw)
    except MeterError:
        bus.close()
        raise
