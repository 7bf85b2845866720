"""What a configuration file names, be it a socket's or a cable's: its meters, its outlets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from wattline.cable.settings import CableConfig, CableSettings, load_cable
from wattline.core.errors import UsageError
from wattline.core.settings import Settings, load_settings
from wattline.device.meters.opening import MeterSettings
from wattline.plugin.settings import OutletSettings, SocketSettings

CABLE = "cable"
SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class NamedMeter:
    """A meter and what people call it: the outlet, or ``cable``."""

    name: str
    settings: MeterSettings
    max_power_mw: int | None
    """The rated power, where the file tells it."""


class _Kind(Settings):
    """As much of a file as tells whose it is."""

    model_config = ConfigDict(extra="ignore")

    outlet: Any = None
    meter: Any = None


def meters_in(config: Path, outlet_id: str | None) -> list[NamedMeter]:
    """The meters of a ``socket.toml`` (one of them with ``outlet_id``), or the one of a ``cable.toml``. Raises
    UsageError."""
    if _whose(config) == CABLE:
        if outlet_id is not None:
            raise UsageError("no_outlets", f"{config}: is a cable's, which has no outlets: leave out --outlet")
        return [NamedMeter(CABLE, load_settings(config, CableSettings).meter, None)]
    return [
        NamedMeter(outlet.outlet_id, outlet.meter, outlet.max_power_w * 1000)
        for outlet in outlets_in(config, outlet_id)
    ]


def cable_in(config: Path) -> CableConfig:
    """What a ``cable.toml`` says. Raises UsageError."""
    if _whose(config) == SOCKET:
        raise UsageError("config_of_socket", f"{config}: is a socket's configuration; here a cable's is needed")
    return load_cable(config)


def outlets_in(config: Path, outlet_id: str | None) -> list[OutletSettings]:
    """The outlets of a ``socket.toml``, or the one called ``outlet_id``. Raises UsageError."""
    if _whose(config) == CABLE:
        raise UsageError("config_of_cable", f"{config}: is a cable's configuration; here a socket's is needed")
    outlets = load_settings(config, SocketSettings).outlet
    if outlet_id is None:
        return outlets
    found = [outlet for outlet in outlets if outlet.outlet_id == outlet_id]
    if not found:
        known = ", ".join(outlet.outlet_id for outlet in outlets)
        raise UsageError("outlet_not_configured", f"{config}: has no outlet {outlet_id!r}; there are {known}")
    return found


def _whose(config: Path) -> str | None:
    """``cable`` or ``socket``; None when it looks like neither, or like both. Raises UsageError."""
    kind = load_settings(config, _Kind)
    if (kind.meter is None) == (kind.outlet is None):
        return None
    return SOCKET if kind.meter is None else CABLE
