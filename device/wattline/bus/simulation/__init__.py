"""A simulated I2C bus below the drivers: chips with registers, a 48 V supply, loads, and real time.

A *world* is a small process that all openers of the same ``sim:PROFILE/INSTANCE`` share, started by the first one.
In it there are a PCF8574 at 0x20 whose bit k (low = closed; all high = open at power-on) switches circuit k, and for
each circuit k of 0..3 an INA228 on the socket's side at 0x40 + k and one on the cable's side at 0x44 + k, both with a
shunt of 1 milliohm.
"""

from wattline.bus.simulation.control import SimulatedWorld
from wattline.bus.simulation.world import Fault, RelayFault, Switching

__all__ = ["Fault", "RelayFault", "SimulatedWorld", "Switching"]
