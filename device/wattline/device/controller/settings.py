"""What a guard is started with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from wattline.core.settings import Settings
from wattline.device.relays.opening import RelaySettings, check_relays

GUARD_SOCKET = "guard.sock"
"""Name of the socket of the plugin's guard, in the directory in which the plugin keeps its things."""


class LightningdSettings(Settings):
    """The node whose plugin holds the relays: the guard starts that plugin again, and ends with the node."""

    pid: int = Field(gt=1, description="Process id of lightningd.")
    start_time: int = Field(ge=0, description="When that process started, clock ticks since boot (proc(5), field 22).")
    rpc_path: str = Field(min_length=1, description="Absolute path of the lightning-rpc socket.")
    plugin: str = Field(min_length=1, description="Absolute path of the plugin's executable.")
    options: dict[str, str] = Field(
        default_factory=dict, description="Options to start it with, such as wattline-config."
    )
    restart: bool = Field(default=True, description="Start the plugin again when it has died.")
    restart_delays_s: list[Annotated[float, Field(ge=0)]] = Field(
        default=[0.5, 2.0, 5.0, 15.0, 60.0], description="Wait before each try; there are no more tries than these."
    )
    settled_s: float = Field(
        default=60.0, ge=0, description="A client that lived this long makes the tries begin anew, s."
    )


class ProcessSettings(Settings):
    """A running process, told apart from a later one with the same id."""

    pid: int = Field(gt=1, description="Process id.")
    start_time: int = Field(ge=0, description="When it started, clock ticks since boot (proc(5), field 22).")


class GuardSettings(Settings):
    """One guard: its socket, its log and its relays."""

    socket: str = Field(description="Absolute path of the unix socket; beside it lies a lock with the suffix .lock.")
    log: str = Field(description="Absolute path of the log file.")
    relays: dict[str, RelaySettings] = Field(min_length=1, description="The relays by outlet_id.")
    lightningd: LightningdSettings | None = Field(default=None, description="None: no plugin is started.")
    ends_with: ProcessSettings | None = Field(
        default=None, description="The guard ends when this process is gone: it serves nobody else."
    )
    first_client_s: float = Field(
        default=20.0, gt=0, description="Without a client for so long after the start counts as a client that died, s."
    )

    @field_validator("socket", "log")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        if not Path(value).is_absolute():
            raise ValueError("must be an absolute path")
        return value

    @field_validator("relays")
    @classmethod
    def _are_different(cls, value: dict[str, RelaySettings]) -> dict[str, RelaySettings]:
        check_relays(value.items())
        return value

    @property
    def lock(self) -> Path:
        return Path(self.socket + ".lock")

    @property
    def fingerprint(self) -> str:
        """The same for guards that do the same; a client whose own differs needs a new guard."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
