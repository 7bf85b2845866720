"""A load that gives a little back at the moments of the readings: what the socket charges, and what the cable finds."""

from __future__ import annotations

from dataclasses import replace

from tests.core.session import samples
from tests.device.meters.test_mixed_flow import Load, counted, repeated
from wattline.cable.policy.events import Claim
from wattline.cable.policy.reconciliation import Known, Tolerance, compare
from wattline.core.session.event import CreditArrived, MeterValue, Tick
from wattline.core.session.machine import step
from wattline.core.session.session import opened
from wattline.core.session.state import Method
from wattline.core.tariff import cost_msat

TERMS = replace(samples.TERMS, rated_power_mw=1_400_000)
CREDIT_MSAT = 200
INTERVAL_MSAT = 12
"""1400 W for 100 ms, rounded up."""


def test_a_load_that_gives_back_at_the_readings_gets_what_it_has_paid_for_and_no_more() -> None:
    load = Load(repeated([(3, -0.005), (175, 27.0), (22, -0.005)]))
    meter = load.meter()
    load.wait(0.1)
    session = opened("0" * 26, "A1", Method.KEYSEND, TERMS, load.now_ns // 10**6)
    base_uwh, start = meter.read().energy_uwh, load.flowed
    session, _ = step(session, MeterValue(0, 0, True), load.now_ns // 10**6)
    session, _ = step(session, CreditArrived(CREDIT_MSAT), load.now_ns // 10**6)
    while session.account.charged_msat < CREDIT_MSAT - INTERVAL_MSAT:
        load.until_look()
        reading, now_ms = meter.read(), load.now_ns // 10**6
        session, _ = step(session, MeterValue(reading.energy_uwh - base_uwh, reading.power_mw, True), now_ms)
        session, _ = step(session, Tick(), now_ms)
        worth_msat = (load.flowed.forward_uwh - start.forward_uwh) * 300_000 / 10**9
        assert worth_msat <= session.account.charged_msat + INTERVAL_MSAT
        assert worth_msat <= CREDIT_MSAT + INTERVAL_MSAT


def test_two_honest_meters_with_offsets_either_way_agree_on_a_load_that_switches() -> None:
    socket_uwh, _ = counted(lambda ms: 20.0 if ms % 1000 < 500 else 0.001, 20)
    cable_uwh, _ = counted(lambda ms: 20.0 if ms % 1000 < 500 else -0.001, 20)
    charged_msat = cost_msat(TERMS.tariff, socket_uwh, 20_000, True)
    claim = Claim(socket_uwh, 20_000, 10**6, charged_msat, 0, 10**6 - charged_msat)
    known = Known(cable_uwh, cable_uwh, 21_000, 10**6)
    assert compare(claim, known, TERMS.tariff, Tolerance(50_000, 50_000)) is None
