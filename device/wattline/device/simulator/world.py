"""The simulated world: a supply, four switched circuits with their loads, and the chips that watch and switch them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from wattline.device.i2c.bus import BusError
from wattline.device.simulator.expanders import Pca9554Model, Pcf8574Model
from wattline.device.simulator.ina228 import Ina228Model
from wattline.device.simulator.power_monitors import Ina219Model, Ina226Model
from wattline.device.simulator.profile import LoadTime, Scenery, load_of

CIRCUITS = 4
EXPANDER = 0x20
OTHER_EXPANDER = 0x21
SOCKET_METER = 0x40
CABLE_METER = 0x44
SOCKET_INA226 = 0x48
SOCKET_INA219 = 0x4A
CABLE_INA226 = 0x4C
CABLE_INA219 = 0x4E
CIRCUITS_OF_OTHER_METERS = 2
"""Circuits 0 and 1 have them: there are no more addresses."""
SOCKET_METERS = {"ina228": SOCKET_METER, "ina226": SOCKET_INA226, "ina219": SOCKET_INA219}
"""Of circuit 0, by the name of the driver."""
CABLE_METERS = {"ina228": CABLE_METER, "ina226": CABLE_INA226, "ina219": CABLE_INA219}


def meter_address(meters: Mapping[str, int], circuit: int, chip: str) -> int:
    """Where the ``chip`` of a circuit answers, on the side whose first addresses are ``meters``. Raises ValueError."""
    circuits = CIRCUITS if chip == "ina228" else CIRCUITS_OF_OTHER_METERS
    if chip not in meters or not 0 <= circuit < circuits:
        raise ValueError(f"circuit {circuit} has no {chip}: there are {', '.join(meters)}, and {circuits} circuits")
    return meters[chip] + circuit


SUPPLY_OHMS = 0.02
CABLE_OHMS = 0.003
CABLE_GAIN = 0.9985
"""The cable's shunt is another piece of metal: two tenths of a percent are within its tolerance."""

STEP_NS = 5_000_000
MS_NS = 1_000_000
NJ_PER_UWH = 3_600_000


class MeterFault(StrEnum):
    """What can be wrong with a meter."""

    NACK = "nack"
    """The chip does not answer."""
    WRONG_IDENTITY = "wrong_identity"
    """Another chip answers at its address."""
    FROZEN = "frozen"
    """No new conversions."""
    SATURATED = "saturated"
    """The shunt voltage is at full scale."""
    BACKWARDS = "backwards"
    """The energy accumulator counts down (INA228; the others have none)."""
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


MeterModel: TypeAlias = Ina228Model | Ina226Model | Ina219Model
ExpanderModel: TypeAlias = Pcf8574Model | Pca9554Model


@dataclass(slots=True)
class Circuit:
    """One outlet with what is plugged into it."""

    profile: str
    socket: list[MeterModel] = field(default_factory=list)
    """What measures on the socket's side, as far as anybody has asked it."""
    cable: list[MeterModel] = field(default_factory=list)
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
        scenery = Scenery.of(profile)
        self._supply_v = scenery.supply_v
        self._clock_ns = clock_ns
        self._now_ns = clock_ns()
        self.expander = Pcf8574Model()
        self.other_expander = Pca9554Model()
        self._expanders: dict[int, ExpanderModel] = {EXPANDER: self.expander, OTHER_EXPANDER: self.other_expander}
        self.circuits = [Circuit(scenery.load) for _ in range(CIRCUITS)]
        self._meters: dict[int, MeterModel] = {}
        self._asleep: dict[int, list[MeterModel]] = {}
        """Meters that nobody has asked yet, with where they measure: their time need not pass."""
        self._silent: set[int] = set()
        for number, circuit in enumerate(self.circuits):
            self._fit(SOCKET_METER + number, Ina228Model(), circuit.socket)
            self._fit(CABLE_METER + number, Ina228Model(gain=CABLE_GAIN), circuit.cable)
        for number, circuit in enumerate(self.circuits[:CIRCUITS_OF_OTHER_METERS]):
            self._fit(SOCKET_INA226 + number, Ina226Model(), circuit.socket)
            self._fit(SOCKET_INA219 + number, Ina219Model(), circuit.socket)
            self._fit(CABLE_INA226 + number, Ina226Model(gain=CABLE_GAIN), circuit.cable)
            self._fit(CABLE_INA219 + number, Ina219Model(gain=CABLE_GAIN), circuit.cable)

    def _fit(self, address: int, meter: MeterModel, side: list[MeterModel]) -> None:
        self._meters[address] = meter
        if isinstance(meter, Ina228Model):
            # It counts from power-on.
            side.append(meter)
        else:
            self._asleep[address] = side

    def chip(self, address: int) -> MeterModel | ExpanderModel:
        """The chip that answers at ``address``, time having passed for it. Raises BusError ``no_answer``."""
        self.advance()
        chip = self._expanders.get(address) or self._meters.get(address)
        if chip is None or address in self._silent:
            raise BusError("no_answer", f"simulated bus: no chip answers at {address:#04x}")
        if address in self._asleep:
            self._asleep.pop(address).append(self._meters[address])
        return chip

    def switch(self) -> None:
        """Let the contacts follow the expanders' pins (after each access); each circuit has two in parallel."""
        high = self.expander.pins & self.other_expander.pins
        for bit, circuit in enumerate(self.circuits):
            closed = circuit.welded or not high >> bit & 1
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
        supply_v = self._supply_v
        if not circuit.closed:
            _sample(circuit.socket, supply_v, 0.0, step_ns)
            _sample(circuit.cable, 0.0, 0.0, step_ns)
            return
        time = LoadTime((at_ns - circuit.closed_at_ns) / 1e9, circuit.delivered_ns / 1e9)
        power_w = load_of(circuit.profile, supply_v)(time)
        # P = V x I and V = supply_v - I x SUPPLY_OHMS: the larger root is the working point.
        voltage = (supply_v + math.sqrt(max(0.0, supply_v**2 - 4 * SUPPLY_OHMS * power_w))) / 2
        current = (supply_v - voltage) / SUPPLY_OHMS
        _sample(circuit.socket, voltage, current, step_ns)
        _sample(circuit.cable, voltage - current * CABLE_OHMS, current, step_ns)
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

    def break_meter(self, address: int, fault: MeterFault, ratio: float = 1.0) -> None:
        """Inject ``fault`` into the meter at ``address``. Raises ValueError when there is none, or no such fault."""
        meter = self._meter(address)
        match fault:
            case MeterFault.NACK:
                self._silent.add(address)
            case MeterFault.WRONG_IDENTITY:
                meter.disguise(True)
            case MeterFault.FROZEN:
                meter.frozen = True
            case MeterFault.SATURATED:
                meter.saturated = True
            case MeterFault.BACKWARDS:
                self._counter(address).backwards = True
            case MeterFault.RESET:
                meter.reset()
            case MeterFault.GAIN:
                meter.gain = ratio

    def mend_meter(self, address: int) -> None:
        """Take all faults from the meter at ``address``; what they have done to its registers stays."""
        meter = self._meter(address)
        self._silent.discard(address)
        meter.disguise(False)
        meter.frozen = meter.saturated = False
        if isinstance(meter, Ina228Model):
            meter.backwards = False
        on_cable = CABLE_METER <= address < SOCKET_INA226 or address >= CABLE_INA226
        meter.gain = CABLE_GAIN if on_cable else 1.0

    def set_meter_energy(self, address: int, raw: int) -> None:
        """Put the 40-bit energy accumulator of the INA228 at ``address`` at ``raw``. Raises ValueError."""
        self._counter(address).set_energy(raw)

    def break_relay(self, circuit: int, fault: RelayFault, expander: int = EXPANDER) -> None:
        """Inject ``fault`` into the relay of ``circuit`` at the expander at that address (or into all of it)."""
        self.advance()
        chip = self._expanders[expander]
        match fault:
            case RelayFault.STUCK:
                chip.forced[circuit] = chip.pins >> circuit & 1
            case RelayFault.WELDED:
                self.circuits[circuit].welded = self.circuits[circuit].closed
            case RelayFault.NACK:
                self._silent.add(expander)
            case RelayFault.RESET:
                chip.reset()
        self.switch()

    def mend_relay(self, circuit: int, expander: int = EXPANDER) -> None:
        """Take all faults from the relay of ``circuit`` and from the expander."""
        self.advance()
        self._expanders[expander].forced.pop(circuit, None)
        self.circuits[circuit].welded = False
        self._silent.discard(expander)
        self.switch()

    def _meter(self, address: int) -> MeterModel:
        meter = self._meters.get(address)
        if meter is None:
            known = f"{SOCKET_METER:#04x} to {max(self._meters):#04x}"
            raise ValueError(f"no meter at {address:#04x}; meters are at {known}")
        self.advance()
        return meter

    def _counter(self, address: int) -> Ina228Model:
        meter = self._meter(address)
        if isinstance(meter, Ina228Model):
            return meter
        raise ValueError(f"the meter at {address:#04x} counts no energy; an INA228 does")


def _sample(meters: list[MeterModel], bus_v: float, current_a: float, ns: int) -> None:
    for meter in meters:
        meter.sample(bus_v, current_a, ns)


class WorldBus:
    """The bus of a world in this very process, as :class:`wattline.device.i2c.bus.I2CBus`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def read_byte(self, address: int) -> int:
        value = self._world.chip(address).read_byte()
        self._world.switch()
        return value

    def write_byte(self, address: int, value: int) -> None:
        self._world.chip(address).write_byte(value)
        self._world.switch()

    def write_byte_register(self, address: int, register: int, value: int) -> None:
        self._world.chip(address).write_byte_register(register, value)
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

    def peek(self, address: int, register: int, after: int) -> int:
        chip = self._world.chip(address)
        chip.write_byte(register)
        value = chip.read_byte()
        chip.write_byte(after)
        # Only now: a contact takes milliseconds to move, the transaction less than half of one.
        self._world.switch()
        return value

    def close(self) -> None:
        """Nothing to let go of."""
