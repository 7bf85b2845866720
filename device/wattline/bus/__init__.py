"""I2C: declarative registers, the Linux bus behind smbus2, and a simulated bus at register level."""

from wattline.bus.i2c import BusError, I2CBus
from wattline.bus.opening import bus_name, check_bus_spec, open_bus
from wattline.bus.registers import Register

__all__ = ["BusError", "I2CBus", "Register", "bus_name", "check_bus_spec", "open_bus"]
