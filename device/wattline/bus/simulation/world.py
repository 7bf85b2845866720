"""The simulated world: a 48 V supply, four switched circuits with their loads, and the chips that watch them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from wattline.bus.i2c import BusError
from wattline.bus.simulation.ina228 import Ina228Model
from wattline.bus.simulation.pcf8574 import Pcf8574Model
from wattline.bus.simulation.profile import LoadTime, load_of

CIRCUITS = 4
EXPANDER = 0x20
SOCKET_METER = 0x40
CABLE_METER = 0x44

SUPPLY_V = 48.0
SUPPLY_OHMS = 0.02
CABLE_OHMS = 0.003
CABLE_GAIN = 0.9985
"""The cable's shunt is another piece of metal: two tenths of a percent are within its tolerance."""

STEP_NS = 5_000_000
MS_NS = 1_000_000
NJ_PER_UWH = 3_600_000


class Fault(StrEnum):
    """What can be wrong with a meter."""

    NACK = "nack"
    """The chip does not answer."""
    WRONG_IDENTITY = "wrong_identity"
    """Another chip (an INA238) answers at its address."""
    FROZEN = "frozen"
    """No new conversions."""
    SATURATED = "saturated"
    """The shunt voltage is at full scale."""
    BACKWARDS = "backwards"
    """The energy accumulator counts down."""
    RESET = "reset"
    """Power-on values, once (a brown-out)."""
    GAIN = "gain"
    """The shunt measures ``ratio`` times the truth."""


class RelayFault(StrEnum):
    """What can be wrong with a relay."""

    STUCK = "stuck"
    """The expander's pin stays at its present level; reading the pins shows it."""
    WELDED = "welded"
    """The contact stays closed whatever the pin does; only the meter shows it."""
    NACK = "nack"
    """The expander does not answer."""
    RESET = "reset"
    """The expander has its power-on values again, once: every relay opens."""


@dataclass(frozen=True, slots=True)
class Switching:
    """The contact of a circuit has moved."""

    at_ms: int
    """Monotonic clock of the machine."""
    closed: bool


@dataclass(slots=True)
class Circuit:
    """One outlet with what is plugged into it."""

    profile: str
    socket: Ina228Model
    cable: Ina228Model
    closed: bool = False
    welded: bool = False
    closed_at_ns: int = 0
    delivered_ns: int = 0
    energy_nj: int = 0
    """What truly left the socket since the world began."""
    history: list[Switching] = field(default_factory=list)


class World:
    """All of it. Time comes from ``clock_ns`` and passes in small steps whenever somebody looks."""

    def __init__(self, profile: str, clock_ns: Callable[[], int]) -> None:
        load_of(profile)
        self._clock_ns = clock_ns
        self._now_ns = clock_ns()
        self.expander = Pcf8574Model()
        self.circuits = [Circuit(profile, Ina228Model(), Ina228Model(gain=CABLE_GAIN)) for _ in range(CIRCUITS)]
        self._meters = {SOCKET_METER + k: c.socket for k, c in enumerate(self.circuits)}
        self._meters |= {CABLE_METER + k: c.cable for k, c in enumerate(self.circuits)}
        self._silent: set[int] = set()

    def chip(self, address: int) -> Ina228Model | Pcf8574Model:
        """The chip that answers at ``address``, time having passed for it. Raises BusError ``no_answer``."""
        self.advance()
        chip = self.expander if address == EXPANDER else self._meters.get(address)
        if chip is None or address in self._silent:
            raise BusError("no_answer", f"simulated bus: no chip answers at {address:#04x}")
        return chip

    def switch(self) -> None:
        """Let the contacts follow the expander's pins (after each access to the expander)."""
        for bit, circuit in enumerate(self.circuits):
            closed = circuit.welded or not self.expander.pins >> bit & 1
            if closed != circuit.closed:
                circuit.closed = closed
                circuit.closed_at_ns = self._now_ns
                circuit.history.append(Switching(self._now_ns // MS_NS, closed))

    def advance(self) -> None:
        """Let time pass until now."""
        now = max(self._now_ns, self._clock_ns())
        for circuit in self.circuits:
            at = self._now_ns
            while at < now:
                step = min(STEP_NS, now - at) if circuit.closed else now - at
                self._pass(circuit, at, step)
                at += step
        self._now_ns = now

    def _pass(self, circuit: Circuit, at_ns: int, step_ns: int) -> None:
        if not circuit.closed:
            circuit.socket.sample(SUPPLY_V, 0.0, step_ns)
            circuit.cable.sample(0.0, 0.0, step_ns)
            return
        time = LoadTime((at_ns - circuit.closed_at_ns) / 1e9, circuit.delivered_ns / 1e9)
        power_w = load_of(circuit.profile)(time)
        # P = V x I and V = SUPPLY_V - I x SUPPLY_OHMS: the larger root is the working point.
        voltage = (SUPPLY_V + math.sqrt(max(0.0, SUPPLY_V**2 - 4 * SUPPLY_OHMS * power_w))) / 2
        current = (SUPPLY_V - voltage) / SUPPLY_OHMS
        circuit.socket.sample(voltage, current, step_ns)
        circuit.cable.sample(voltage - current * CABLE_OHMS, current, step_ns)
        circuit.energy_nj += round(voltage * current * step_ns)
        circuit.delivered_ns += step_ns

    def plug(self, circuit: int, profile: str) -> None:
        """Another load in circuit ``circuit`` from now on. Raises ValueError."""
        load_of(profile)
        self.advance()
        self.circuits[circuit].profile = profile
        self.circuits[circuit].delivered_ns = 0

    def energy_uwh(self, circuit: int) -> int:
        """What has truly left the socket's circuit since the world began."""
        self.advance()
        return self.circuits[circuit].energy_nj // NJ_PER_UWH

    def break_meter(self, address: int, fault: Fault, ratio: float = 1.0) -> None:
        """Inject ``fault`` into the meter at ``address``. Raises ValueError when there is none."""
        meter = self._meter(address)
        match fault:
            case Fault.NACK:
                self._silent.add(address)
            case Fault.WRONG_IDENTITY:
                meter.device_id = 0x2381
            case Fault.FROZEN:
                meter.frozen = True
            case Fault.SATURATED:
                meter.saturated = True
            case Fault.BACKWARDS:
                meter.backwards = True
            case Fault.RESET:
                meter.reset()
            case Fault.GAIN:
                meter.gain = ratio

    def mend_meter(self, address: int) -> None:
        """Take all faults from the meter at ``address``; what they have done to its registers stays."""
        meter = self._meter(address)
        self._silent.discard(address)
        meter.device_id = 0x2281
        meter.frozen = meter.saturated = meter.backwards = False
        meter.gain = 1.0 if address < CABLE_METER else CABLE_GAIN

    def set_meter_energy(self, address: int, raw: int) -> None:
        """Put the 40-bit energy accumulator of the meter at ``address`` at ``raw``."""
        self._meter(address).set_energy(raw)

    def break_relay(self, circuit: int, fault: RelayFault) -> None:
        """Inject ``fault`` into the relay of ``circuit`` (or into the expander of all)."""
        self.advance()
        match fault:
            case RelayFault.STUCK:
                self.expander.forced[circuit] = self.expander.pins >> circuit & 1
            case RelayFault.WELDED:
                self.circuits[circuit].welded = self.circuits[circuit].closed
            case RelayFault.NACK:
                self._silent.add(EXPANDER)
            case RelayFault.RESET:
                self.expander.reset()
        self.switch()

    def mend_relay(self, circuit: int) -> None:
        """Take all faults from the relay of ``circuit`` and from the expander."""
        self.advance()
        self.expander.forced.pop(circuit, None)
        self.circuits[circuit].welded = False
        self._silent.discard(EXPANDER)
        self.switch()

    def _meter(self, address: int) -> Ina228Model:
        meter = self._meters.get(address)
        if meter is None:
            raise ValueError(f"no meter at {address:#04x}; meters are at {SOCKET_METER:#04x} to {CABLE_METER + 3:#04x}")
        self.advance()
        return meter


class WorldBus:
    """The bus of a world in this very process, as :class:`wattline.bus.i2c.I2CBus`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def read_byte(self, address: int) -> int:
        value = self._world.chip(address).read_byte()
        self._world.switch()
        return value

    def write_byte(self, address: int, value: int) -> None:
        self._world.chip(address).write_byte(value)
        self._world.switch()

    def read_word(self, address: int, register: int) -> int:
        return int.from_bytes(self.read_block(address, register, 2), "big")

    def write_word(self, address: int, register: int, value: int) -> None:
        self._world.chip(address).write_word(register, value)
        self._world.switch()

    def read_block(self, address: int, register: int, length: int) -> bytes:
        data = self._world.chip(address).read_block(register, length)
        self._world.switch()
        return data

    def close(self) -> None:
        """Nothing to let go of."""
