"""From the ``bus`` of a configuration file to a bus."""

from __future__ import annotations

from wattline.device.i2c.bus import I2CBus
from wattline.device.i2c.linux import LinuxBus
from wattline.device.i2c.simulated import Place, SimulatedBus

HIGHEST_BUS = 255


def open_bus(spec: int | str) -> I2CBus:
    """Bus N of the machine for an int; a simulated one for ``"sim:PROFILE"`` or ``"sim:PROFILE/INSTANCE"``.

    Raises BusError when it cannot be opened, ValueError when ``spec`` is no such thing.
    """
    check_bus_spec(spec)
    if isinstance(spec, int):
        return LinuxBus(spec)
    return SimulatedBus(Place.of(spec))


def bus_name(spec: int | str) -> int | str:
    """``spec`` as every other way to write the same bus becomes, too. Raises ValueError when it names none."""
    return spec if isinstance(spec, int) else Place.of(spec).spec


def check_bus_spec(spec: int | str) -> int | str:
    """``spec`` itself when it names a bus. Raises ValueError saying what is allowed."""
    if isinstance(spec, int):
        if not 0 <= spec <= HIGHEST_BUS:
            raise ValueError(f"bus {spec}: the number of an I2C bus is 0 to {HIGHEST_BUS}")
        return spec
    Place.of(spec)
    return spec
