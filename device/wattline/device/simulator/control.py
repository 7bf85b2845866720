"""The hand that plays with a simulated world: loads, faults, and what truly happened in it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from wattline.device.i2c.simulated import Place, WorldConnection
from wattline.device.simulator.world import (
    CABLE_METERS,
    EXPANDER,
    SOCKET_METERS,
    MeterFault,
    RelayFault,
    Switching,
    meter_address,
)


class SimulatedWorld:
    """A world from outside, for tests and the demo. Circuits are 0 to 3. Methods raise BusError when it is gone."""

    def __init__(self, connection: WorldConnection) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, spec: str, directory: Path | None = None) -> Self:
        """The world that ``sim:PROFILE[/INSTANCE]`` names, started when needed; in ``directory``, if it is not where
        this process has its worlds. Raises BusError, ValueError."""
        return cls(WorldConnection(Place.of(spec, directory)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def plug(self, circuit: int, profile: str) -> None:
        """Another load from now on: one of the profiles or ``constant-WATTS``."""
        self._connection.call("plug", circuit=circuit, profile=profile)

    def profile(self, circuit: int) -> str:
        return str(self._connection.call("profile", circuit=circuit))

    def relay_closed(self, circuit: int) -> bool:
        """Whether the contact is closed, whatever the expander says."""
        return bool(self._connection.call("relay_closed", circuit=circuit))

    def history(self, circuit: int) -> list[Switching]:
        """Every movement of the contact since the world began, oldest first."""
        return [Switching(**item) for item in self._connection.call("history", circuit=circuit)]

    def energy_uwh(self, circuit: int) -> int:
        """What has truly left the socket's circuit since the world began."""
        return int(self._connection.call("energy_uwh", circuit=circuit))

    def break_meter(self, address: int, fault: MeterFault, ratio: float = 1.0) -> None:
        """Inject a fault into the meter at ``address`` (``ratio`` is for GAIN)."""
        self._connection.call("break_meter", address=address, fault=fault.value, ratio=ratio)

    def mend_meter(self, address: int) -> None:
        """Take all faults from the meter at ``address``; what they have done to its registers stays."""
        self._connection.call("mend_meter", address=address)

    def set_meter_energy(self, address: int, raw: int) -> None:
        """Put the 40-bit energy accumulator of an INA228 at ``raw``."""
        self._connection.call("set_meter_energy", address=address, raw=raw)

    def break_relay(self, circuit: int, fault: RelayFault, expander: int = EXPANDER) -> None:
        """Inject a fault into a relay at the expander with that address, or into all of the expander."""
        self._connection.call("break_relay", circuit=circuit, fault=fault.value, expander=expander)

    def mend_relay(self, circuit: int, expander: int = EXPANDER) -> None:
        """Take all faults from a relay and from the expander."""
        self._connection.call("mend_relay", circuit=circuit, expander=expander)

    def pid(self) -> int:
        """The process in which the world lives."""
        return int(self._connection.call("pid"))

    @staticmethod
    def socket_meter(circuit: int, chip: str = "ina228") -> int:
        """Address of the chip on the socket's side of a circuit. Raises ValueError when it has none of these."""
        return meter_address(SOCKET_METERS, circuit, chip)

    @staticmethod
    def cable_meter(circuit: int, chip: str = "ina228") -> int:
        """Address of the chip on the cable's side of a circuit. Raises ValueError when it has none of these."""
        return meter_address(CABLE_METERS, circuit, chip)

    def close(self) -> None:
        self._connection.close()
