"""A simulated I2C bus below the drivers: chips with registers, a supply, loads, and real time.

A *world* is a small process that all openers of the same ``sim:PROFILE/INSTANCE`` share, started by the first one.
PROFILE is a load (``toaster``, ``constant-60``, ...), alone for a supply of 48 V, or with another one: ``toaster@24``
draws 325 W from 24 V, which an INA226 and an INA219 can measure.

Four circuits, 0 to 3, are switched by bit k of either expander (low = closed; both open at power-on), their contacts in
parallel: a PCF8574 at 0x20 and a PCA9554 at 0x21. The meters of circuit k, all with a shunt of 1 milliohm:

=======  ===============  ==============  ===========
chip     socket's side    cable's side    circuits
=======  ===============  ==============  ===========
INA228   0x40 + k         0x44 + k        all
INA226   0x48 + k         0x4C + k        0 and 1
INA219   0x4A + k         0x4E + k        0 and 1
=======  ===============  ==============  ===========
"""
