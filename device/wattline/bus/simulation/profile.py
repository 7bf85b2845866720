"""What is plugged in: the power that a load draws, as a function of time."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

HIGHEST_POWER_W = 20_000


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
    """A 1300 W heating element: its resistance rises as it glows, so it draws 5 % more when cold."""
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
    """1300 W, pulled out after 10 s of delivery."""
    return 1300.0 if time.delivered_s < 10.0 else 0.0


def _noisy(time: LoadTime) -> float:
    """Another power between 5 and 1350 W every 40 ms; the same sequence every time."""
    # Seeded so that a failing test fails again; not a secret.
    return random.Random(7919 + int(time.delivered_s / 0.04)).uniform(5.0, 1350.0)


NAMED: dict[str, Load] = {"toaster": _toaster, "phone": _phone, "ev": _ev, "unplug": _unplug, "noisy": _noisy}
_CONSTANT = re.compile(r"constant-(\d{1,5}(?:\.\d{1,3})?)")
ALLOWED = f"{', '.join(sorted(NAMED))} or constant-WATTS"


def load_of(profile: str) -> Load:
    """The load with the name ``profile``. Raises ValueError naming those that exist."""
    if profile in NAMED:
        return NAMED[profile]
    constant = _CONSTANT.fullmatch(profile)
    if constant is None or float(constant[1]) > HIGHEST_POWER_W:
        raise ValueError(f"unknown load profile {profile!r}; there are {ALLOWED} (at most {HIGHEST_POWER_W} W)")
    watts = float(constant[1])
    return lambda time: watts
