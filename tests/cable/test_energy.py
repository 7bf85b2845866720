from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wattline.cable.policy.reconciliation import MEMORY_MS, EnergyTrack
from wattline.cable.restoring import Resumption, resume_energy


def test_energy_counts_from_the_open() -> None:
    track = EnergyTrack(base_uwh=5_000)
    assert track.energy_uwh == 0
    track.add(0, 5_000)
    track.add(100, 5_750)
    assert track.energy_uwh == 750


def test_energy_between_two_readings_is_interpolated() -> None:
    track = EnergyTrack(0)
    track.add(1_000, 100)
    track.add(2_000, 300)
    assert track.at(1_500) == 200
    assert track.at(500) == 100
    assert track.at(9_000) == 300


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 1_000)), min_size=1, max_size=40), st.integers(0, 30_000))
def test_interpolation_never_leaves_the_readings(steps: list[tuple[int, int]], at_ms: int) -> None:
    track, now, energy, seen = EnergyTrack(0), 0, 0, []
    for duration, more in steps:
        now += duration
        energy += more
        track.add(now, energy)
        seen.append(energy)
    assert min(seen) <= track.at(at_ms) <= max(seen)
    assert track.at(at_ms) <= track.at(at_ms + 1)


def test_a_moment_is_covered_once_a_reading_is_as_new() -> None:
    track = EnergyTrack(0)
    assert not track.covers(0)
    track.add(1_000, 1)
    assert track.covers(1_000)
    assert not track.covers(1_001)


def test_old_readings_are_forgotten_but_not_the_newest() -> None:
    track = EnergyTrack(0)
    for second in range(600):
        track.add(second * 1_000, second)
    assert track.at(0) == track.at(599_000 - MEMORY_MS - 1_000) > 0
    assert track.energy_uwh == 599


def test_a_chip_that_counted_through_is_believed() -> None:
    assert resume_energy(1_000, 0, 500, 1_800, 790, 10_000) == Resumption(1_000, 0, 0)


def test_a_chip_that_was_reset_leaves_the_gap_to_the_socket() -> None:
    resumed = resume_energy(1_000, 0, 500, 3, 700, 10_000)
    assert resumed == Resumption(base_uwh=3, extra_uwh=700, gap_uwh=200)
    track = EnergyTrack(resumed.base_uwh, resumed.extra_uwh)
    track.add(0, 53)
    assert track.energy_uwh == 750


def test_the_socket_cannot_claim_more_for_the_gap_than_could_flow() -> None:
    assert resume_energy(1_000, 0, 500, 3, 90_000, 250).extra_uwh == 750
