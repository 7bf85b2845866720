"""I2C: declarative registers, the Linux bus behind smbus2, and a simulated bus at register level."""
