"""A relay that is held without voltage delivers nothing: no time runs, no fee is due, and the session ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wattline.core.session.event import CableClosed, CreditArrived, MeterValue, Tick
from wattline.core.session.machine import NO_VOLTAGE_MS, restored, step
from wattline.core.session.session import Session, Terms, opened
from wattline.core.session.state import Method, State, StopReason
from wattline.core.tariff import Tariff, cost_msat

INTERVAL_MS = 100
TERMS = Terms(
    tariff=Tariff.of(300_000, 3_600_000, 5_000),
    rated_power_mw=1_000_000,
    meter_interval_ms=INTERVAL_MS,
    pause_max_s=30,
    open_timeout_s=20,
    cable_lost_s=10,
    credit_cap_msat=10**9,
    min_refund_msat=1000,
)
DARK = MeterValue(0, 0, has_voltage=False)


def beginning() -> Session:
    session = opened("0" * 26, "A1", Method.KEYSEND, TERMS, 0)
    for event in (MeterValue(0, 0), CreditArrived(10**8)):
        session, _ = step(session, event, 0)
    assert session.state is State.DELIVERING
    return session


def look(session: Session, now_ms: int, *, light: bool, energy_uwh: int = 0) -> Session:
    for event in (MeterValue(energy_uwh, 0, has_voltage=light), Tick()):
        session, _ = step(session, event, now_ms)
    return session


def test_a_session_without_voltage_from_its_beginning_ends_and_costs_nothing_at_all() -> None:
    session, now_ms = beginning(), 0
    while session.state is State.DELIVERING:
        now_ms += INTERVAL_MS
        session = look(session, now_ms, light=False)
    assert session.stop_reason is StopReason.NO_VOLTAGE
    assert now_ms == INTERVAL_MS + NO_VOLTAGE_MS
    assert session.account.charged_msat == 0


@given(st.lists(st.booleans(), max_size=60))
def test_time_is_charged_only_up_to_the_first_reading_without_voltage(lights: list[bool]) -> None:
    """Each outage costs the cable one meter interval at the most: that in which it began."""
    session, now_ms, outages, lit_ms, before = beginning(), 0, 0, 0, True
    for light in lights:
        now_ms += INTERVAL_MS
        outages += before and not light
        lit_ms += INTERVAL_MS if light and before else 0
        session, before = look(session, now_ms, light=light), light
        assert session.delivered_ms <= lit_ms + outages * INTERVAL_MS
        most_msat = cost_msat(TERMS.tariff, 0, lit_ms + outages * INTERVAL_MS, True)
        assert session.account.charged_msat <= (most_msat if session.started else 0)
    assert session.state is State.DELIVERING or session.stop_reason is StopReason.NO_VOLTAGE


def test_a_short_dip_of_the_supply_ends_nothing() -> None:
    session, now_ms = look(beginning(), INTERVAL_MS, light=True), INTERVAL_MS
    for _ in range(NO_VOLTAGE_MS // INTERVAL_MS):
        now_ms += INTERVAL_MS
        session = look(session, now_ms, light=False)
    session = look(session, now_ms + INTERVAL_MS, light=True)
    assert (session.state, session.dark_since_ms) == (State.DELIVERING, None)


def test_a_relay_is_not_closed_into_a_supply_that_is_known_to_be_gone() -> None:
    session = opened("0" * 26, "A1", Method.KEYSEND, TERMS, 0)
    for event in (DARK, CreditArrived(10**8), DARK):
        session, _ = step(session, event, 0)
    assert session.state is State.OPEN
    session, _ = step(session, MeterValue(0, 0), 100)
    assert session.state is State.DELIVERING


def test_a_load_that_draws_nothing_is_delivered_to_as_long_as_there_is_voltage() -> None:
    session, now_ms = beginning(), 0
    for _ in range(100):
        now_ms += INTERVAL_MS
        session = look(session, now_ms, light=True)
    assert session.delivered_ms == now_ms
    assert session.account.charged_msat == cost_msat(TERMS.tariff, 0, now_ms, True)


def test_a_delivery_that_ends_before_a_reading_is_charged_by_the_energy_that_has_flowed() -> None:
    session, _ = step(beginning(), CableClosed(), INTERVAL_MS // 2)
    assert session.account.charged_msat == 0
    session, _ = step(session, MeterValue(13_889, 0), 500)
    assert session.account.charged_msat == cost_msat(TERMS.tariff, 13_889, INTERVAL_MS // 2, True)


def test_a_process_that_dies_before_the_first_reading_leaves_a_delivery_that_has_begun() -> None:
    session, _ = restored(beginning(), 50)
    session, _ = step(session, MeterValue(50_000, 0), 100)
    assert session.account.charged_msat == cost_msat(TERMS.tariff, 50_000, 0, True)
