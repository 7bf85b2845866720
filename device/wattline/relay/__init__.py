"""Relays behind one Protocol, and the guard: the separate process that holds them on short leases."""

from wattline.relay.exclusion import check_unclaimed, claimed
from wattline.relay.guard_settings import GUARD_SOCKET, GuardSettings, LightningdSettings, ProcessSettings
from wattline.relay.lease import GuardClient
from wattline.relay.opening import Expanders, RelaySettings, check_relays, look_at, open_relay
from wattline.relay.relay import Relay, RelayError
from wattline.relay.spawning import guard_for, spawn_guard
from wattline.relay.state import GuardState, RelayState

__all__ = [
    "GUARD_SOCKET",
    "Expanders",
    "GuardClient",
    "GuardSettings",
    "GuardState",
    "LightningdSettings",
    "ProcessSettings",
    "Relay",
    "RelayError",
    "RelaySettings",
    "RelayState",
    "check_relays",
    "check_unclaimed",
    "claimed",
    "guard_for",
    "look_at",
    "open_relay",
    "spawn_guard",
]
