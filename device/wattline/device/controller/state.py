"""What the guard knows of relays, as it says it in JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class RelayState:
    """One relay as the guard last saw it."""

    outlet_id: str
    closed: bool
    """As read back from the hardware; True as well while that is not known, which is the worst it can be."""
    confirmed: bool
    """The hardware has said so since it was last switched."""
    at_ms: int
    """Monotonic clock of the machine when it was seen."""
    lease_ends_ms: int | None
    """Until when it is held closed at the most, on the same clock; None when nobody holds it."""
    fault: str
    """What is wrong with it, for people; empty when nothing is."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """From JSON. Raises TypeError, KeyError."""
        return cls(**values)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GuardState:
    """The guard and all its relays."""

    pid: int
    fingerprint: str
    """Of the settings with which it was started: another one guards other relays."""
    leaving: bool
    """It ends as soon as every relay is confirmed open."""
    held: bool
    """A client is connected that has taken the guard."""
    plugin_starts: int
    """How often it has tried to start the plugin since a client last lived for long."""
    relays: tuple[RelayState, ...]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """From JSON. Raises TypeError, KeyError."""
        return cls(**{**values, "relays": tuple(RelayState.of(item) for item in values["relays"])})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
