"""The simulated world in one process, with a clock in the test's hand."""

from __future__ import annotations

import pytest

from wattline.device.i2c.bus import BusError
from wattline.device.simulator.profile import NAMED, LoadTime, load_of
from wattline.device.simulator.world import EXPANDER, OTHER_EXPANDER, MeterFault, RelayFault, Switching, World, WorldBus

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.ns = 5 * SECOND

    def __call__(self) -> int:
        return self.ns

    def pass_s(self, seconds: float) -> None:
        self.ns += round(seconds * SECOND)


def world_with(profile: str) -> tuple[World, WorldBus, Clock]:
    clock = Clock()
    world = World(profile, clock)
    return world, WorldBus(world), clock


def test_at_power_on_every_relay_is_open_and_no_energy_flows() -> None:
    world, bus, clock = world_with("toaster")
    clock.pass_s(10)
    assert bus.read_byte(EXPANDER) == 0xFF
    assert [world.energy_uwh(k) for k in range(4)] == [0, 0, 0, 0]


def test_a_low_bit_closes_its_circuit_and_no_other() -> None:
    world, bus, clock = world_with("constant-1000")
    bus.write_byte(EXPANDER, 0b1111_1011)
    clock.pass_s(3.6)
    bus.write_byte(EXPANDER, 0xFF)
    clock.pass_s(3.6)
    assert [world.energy_uwh(k) for k in range(4)] == [0, 0, pytest.approx(1_000_000, rel=1e-6), 0]
    assert world.circuits[2].history == [Switching(5000, True), Switching(8600, False)]


def test_the_supply_sags_under_load() -> None:
    _, bus, clock = world_with("constant-1300")
    clock.pass_s(1)
    idle = int.from_bytes(bus.read_block(0x40, 0x05, 3), "big") >> 4
    bus.write_byte(EXPANDER, 0xFE)
    clock.pass_s(1)
    loaded = int.from_bytes(bus.read_block(0x40, 0x05, 3), "big") >> 4
    assert idle * 195.3125e-6 == pytest.approx(48.0, abs=0.001)
    assert 47.0 < loaded * 195.3125e-6 < 47.7


def test_the_cable_sees_a_little_less_than_the_socket() -> None:
    _, bus, clock = world_with("constant-1300")
    bus.write_byte(EXPANDER, 0xFE)
    clock.pass_s(60)
    socket, cable = (int.from_bytes(bus.read_block(a, 0x09, 5), "big") for a in (0x40, 0x44))
    assert 0.990 < cable / socket < 0.999


def test_a_register_access_to_the_expander_lands_on_its_pins() -> None:
    world, bus, _ = world_with("toaster")
    bus.read_word(EXPANDER, 0xFE)
    assert world.circuits[0].closed


def test_an_address_without_a_chip_does_not_answer() -> None:
    _, bus, _ = world_with("toaster")
    with pytest.raises(BusError, match="0x50") as caught:
        bus.read_word(0x50, 0x3E)
    assert caught.value.code == "no_answer"


def test_a_stuck_pin_reads_back_as_it_is() -> None:
    world, bus, _ = world_with("toaster")
    bus.write_byte(EXPANDER, 0xFE)
    world.break_relay(0, RelayFault.STUCK)
    bus.write_byte(EXPANDER, 0xFF)
    assert bus.read_byte(EXPANDER) == 0xFE
    assert world.circuits[0].closed
    world.mend_relay(0)
    assert not world.circuits[0].closed


def test_a_welded_contact_shows_in_the_current_only() -> None:
    world, bus, clock = world_with("constant-1000")
    bus.write_byte(EXPANDER, 0xFE)
    world.break_relay(0, RelayFault.WELDED)
    bus.write_byte(EXPANDER, 0xFF)
    before = world.energy_uwh(0)
    clock.pass_s(1)
    assert bus.read_byte(EXPANDER) == 0xFF
    assert world.energy_uwh(0) > before


def test_an_expander_that_loses_its_supply_opens_every_relay() -> None:
    world, bus, _ = world_with("toaster")
    bus.write_byte(EXPANDER, 0xF0)
    world.break_relay(0, RelayFault.RESET)
    assert [c.closed for c in world.circuits] == [False] * 4


@pytest.mark.parametrize("profile", [*NAMED, "constant-60"])
def test_a_load_never_draws_more_than_the_outlet_of_the_demo_is_rated(profile: str) -> None:
    load = load_of(profile)
    drawn = [load(LoadTime(t / 20, t / 20)) for t in range(20 * 60)]
    assert min(drawn) >= 0
    assert 0 < max(drawn) <= 1400


def test_loads_behave_as_their_names_say() -> None:
    def power(profile: str, seconds: float) -> float:
        return load_of(profile)(LoadTime(seconds, seconds))

    assert power("toaster", 0) > power("toaster", 2) > power("toaster", 30) == pytest.approx(1300, abs=1)
    assert power("phone", 5) == 18.0
    assert 3.0 < power("phone", 120) < 10.0
    assert power("ev", 0.5) < 50
    assert power("ev", 10) == 1400
    assert (power("unplug", 9.9), power("unplug", 10.1)) == (1300, 0)
    assert len({power("noisy", t / 10) for t in range(20)}) > 15
    assert power("noisy", 1.0) == power("noisy", 1.0)
    assert power("constant-42.5", 3) == 42.5


@pytest.mark.parametrize("profile", ["", "toast", "constant-", "constant--1", "constant-99999", "../x"])
def test_an_unknown_load_is_refused_with_the_known_ones(profile: str) -> None:
    with pytest.raises(ValueError, match="toaster, unplug or constant-WATTS"):
        load_of(profile)


@pytest.mark.parametrize(("profile", "volts", "watts"), [("toaster", 48, 1300), ("toaster@24", 24, 325)])
def test_a_resistive_load_draws_a_quarter_at_half_the_voltage(profile: str, volts: int, watts: int) -> None:
    world, bus, clock = world_with(profile)
    clock.pass_s(1)
    assert int.from_bytes(bus.read_block(0x40, 0x05, 3), "big") * 195.3125e-6 / 16 == pytest.approx(volts, abs=0.001)
    bus.write_byte(EXPANDER, 0xFE)
    clock.pass_s(30)
    before = world.energy_uwh(0)
    clock.pass_s(36)
    assert world.energy_uwh(0) - before == pytest.approx(watts * 10_000, rel=1e-3)


def test_other_loads_draw_at_any_voltage_what_they_need() -> None:
    world, bus, clock = world_with("constant-60@12")
    bus.write_byte(EXPANDER, 0xFE)
    clock.pass_s(60)
    assert world.energy_uwh(0) == pytest.approx(1_000_000, rel=1e-6)


@pytest.mark.parametrize("profile", ["toaster@4", "toaster@86", "toaster@", "toaster@24v", "@24", "kettle@24"])
def test_an_impossible_supply_is_refused(profile: str) -> None:
    with pytest.raises(ValueError, match=r"5 to 85 V|unknown load profile"):
        world_with(profile)


def test_either_expander_closes_a_circuit_and_only_both_open_it() -> None:
    world, bus, _ = world_with("toaster")
    bus.write_byte_register(OTHER_EXPANDER, 0x01, 0xFD)
    assert not world.circuits[1].closed, "the pin is still an input"
    bus.write_byte_register(OTHER_EXPANDER, 0x03, 0xFD)
    assert [circuit.closed for circuit in world.circuits] == [False, True, False, False]
    bus.write_byte(EXPANDER, 0xFD)
    bus.write_byte_register(OTHER_EXPANDER, 0x01, 0xFF)
    assert world.circuits[1].closed
    bus.write_byte(EXPANDER, 0xFF)
    assert not world.circuits[1].closed


def test_the_other_expander_has_faults_of_its_own() -> None:
    world, bus, _ = world_with("toaster")
    bus.write_byte_register(OTHER_EXPANDER, 0x01, 0xFE)
    bus.write_byte_register(OTHER_EXPANDER, 0x03, 0xFE)
    world.break_relay(0, RelayFault.STUCK, OTHER_EXPANDER)
    bus.write_byte_register(OTHER_EXPANDER, 0x01, 0xFF)
    assert world.circuits[0].closed
    world.mend_relay(0, OTHER_EXPANDER)
    assert not world.circuits[0].closed
    world.break_relay(0, RelayFault.NACK, OTHER_EXPANDER)
    assert bus.read_byte(EXPANDER) == 0xFF
    with pytest.raises(BusError):
        bus.read_byte(OTHER_EXPANDER)


def test_a_chip_without_an_accumulator_has_no_faults_of_one() -> None:
    world, _, _ = world_with("toaster")
    with pytest.raises(ValueError, match="counts no energy"):
        world.break_meter(0x48, MeterFault.BACKWARDS)
    with pytest.raises(ValueError, match="counts no energy"):
        world.set_meter_energy(0x4E, 1)
    with pytest.raises(ValueError, match="0x40 to 0x4f"):
        world.break_meter(0x50, MeterFault.NACK)
