"""What is plugged in, and into what: the power that a load draws as a function of time, and the supply."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

HIGHEST_POWER_W = 20_000
NOMINAL_V = 48
LOWEST_V, HIGHEST_V = 5, 85


@dataclass(frozen=True, slots=True)
class LoadTime:
    """When a load is asked for its power."""

    on_s: float
    """Since the relay closed."""
    delivered_s: float
    """With the relay closed, since the load was plugged in."""


Load = Callable[[LoadTime], float]
"""The power in W that the load draws at a time."""


def _toaster(time: LoadTime) -> float:
    """A heating element, 1300 W at 48 V: its resistance rises as it glows, so it draws 5 % more when cold."""
    return 1300.0 * (1.0 + 0.05 * math.exp(-time.on_s / 1.2))


def _phone(time: LoadTime) -> float:
    """A charger at 18 W whose battery fills: constant power for 20 s, then a taper down to 3 W."""
    if time.delivered_s < 20.0:
        return 18.0
    return 3.0 + 15.0 * math.exp(-(time.delivered_s - 20.0) / 60.0)


def _ev(time: LoadTime) -> float:
    """A vehicle's charger: a second of hand-shaking at 20 W, then up to 1400 W within five seconds."""
    return 20.0 + 1380.0 * min(1.0, max(0.0, (time.on_s - 1.0) / 5.0))


def _unplug(time: LoadTime) -> float:
    """A heating element, 1300 W at 48 V, pulled out after 10 s of delivery."""
    return 1300.0 if time.delivered_s < 10.0 else 0.0


def _noisy(time: LoadTime) -> float:
    """Another power between 5 and 1350 W every 40 ms; the same sequence every time."""
    # Seeded so that a failing test fails again; not a secret.
    return random.Random(7919 + int(time.delivered_s / 0.04)).uniform(5.0, 1350.0)


NAMED: dict[str, Load] = {"toaster": _toaster, "phone": _phone, "ev": _ev, "unplug": _unplug, "noisy": _noisy}
RESISTIVE = frozenset({"toaster", "unplug"})
"""Loads that are a resistor: half the voltage, a quarter of the power. All others draw what they need."""
_CONSTANT = re.compile(r"constant-(\d{1,5}(?:\.\d{1,3})?)")
_SCENERY = re.compile(r"(?P<load>[^@]*)@(?P<volts>\d{1,2})")
ALLOWED = f"{', '.join(sorted(NAMED))} or constant-WATTS"


@dataclass(frozen=True, slots=True)
class Scenery:
    """What a world begins with."""

    load: str
    """Plugged in everywhere."""
    supply_v: int = NOMINAL_V

    def __post_init__(self) -> None:
        if not LOWEST_V <= self.supply_v <= HIGHEST_V:
            raise ValueError(f"a supply of {self.supply_v} V; a simulated one has {LOWEST_V} to {HIGHEST_V} V")
        load_of(self.load, self.supply_v)

    @staticmethod
    def of(profile: str) -> Scenery:
        """What the profile ``LOAD`` or ``LOAD@VOLTS`` says. Raises ValueError."""
        match = _SCENERY.fullmatch(profile)
        return Scenery(profile) if match is None else Scenery(match["load"], int(match["volts"]))


def load_of(name: str, supply_v: float = NOMINAL_V) -> Load:
    """The load with that name, at that supply. Raises ValueError naming those that exist."""
    if name in RESISTIVE:
        factor = (supply_v / NOMINAL_V) ** 2
        return lambda time: NAMED[name](time) * factor
    if name in NAMED:
        return NAMED[name]
    constant = _CONSTANT.fullmatch(name)
    if constant is None or float(constant[1]) > HIGHEST_POWER_W:
        raise ValueError(f"unknown load profile {name!r}; there are {ALLOWED} (at most {HIGHEST_POWER_W} W)")
    watts = float(constant[1])
    return lambda time: watts
