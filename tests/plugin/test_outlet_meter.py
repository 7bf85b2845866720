"""What an outlet makes of a supply that is gone, and of a meter that a later process opens anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from pydantic import ValidationError

from tests.plugin.test_outlet import SESSION, Rig, new_session, now_ms
from wattline.core.session.machine import restored
from wattline.core.session.session import Session
from wattline.core.session.state import State, StopReason
from wattline.device.meters.reading import Reading
from wattline.plugin.outlet_hardware import NO_VOLTAGE_RETRY_MS, SupplyWatch
from wattline.plugin.outlet_state import Condition
from wattline.plugin.settings import OutletSettings


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.loop.start()
    yield rig
    rig.loop.stop()


def saved(energy_uwh: int = 500) -> Session:
    return replace(
        new_session(),
        state=State.PAUSED,
        started=True,
        energy_uwh=energy_uwh,
        account=replace(new_session().account, credited_msat=900_000, payments=1),
    )


def test_a_session_without_voltage_ends_for_that_reason_and_costs_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.core.session.machine.NO_VOLTAGE_MS", 100)
    rig.wiring.voltage_mv = rig.wiring.power_mw = 0
    rig.serve()
    assert rig.loop.credit(SESSION, "aa", 400_000).result(1)
    rig.wait(lambda: rig.session.state is State.SETTLING)
    assert rig.session.stop_reason is StopReason.NO_VOLTAGE
    assert not rig.wiring.closed
    assert rig.session.account.charged_msat == 0
    rig.loop.booked(["aa"])
    rig.wait(lambda: rig.loop.close_books(SESSION).result(1))
    assert rig.loop.detach(SESSION).result(1)
    rig.wait(lambda: rig.loop.view.condition is Condition.FAULTED)
    assert rig.loop.view.fault.startswith("no_voltage: the last session had none")
    rig.wiring.voltage_mv = 48_000
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)


def test_an_outlet_whose_meter_sees_the_supply_sells_nothing_while_it_is_gone() -> None:
    rig = Rig(is_before_relay=True)
    rig.wiring.voltage_mv = 0
    rig.loop.start()
    try:
        rig.wait(lambda: rig.loop.view.condition is Condition.FAULTED)
        assert rig.loop.view.fault == "no_voltage: the supply is gone (0.0 V)"
        assert not rig.loop.attach(new_session()).result(1)
        rig.wiring.voltage_mv = 48_000
        rig.serve()
    finally:
        rig.loop.stop()


def test_without_voltage_an_outlet_is_tried_again_after_a_while() -> None:
    watch = SupplyWatch(3_000, is_before_relay=False)
    dark = Reading(0, 0, 0, 0, 0)
    assert watch.what_is_wrong(dark, 0) == ""
    watch.ended_dark(1_000)
    assert watch.what_is_wrong(dark, NO_VOLTAGE_RETRY_MS) != ""
    assert watch.what_is_wrong(dark, 1_000 + NO_VOLTAGE_RETRY_MS) == ""


def test_after_a_restart_a_meter_that_counts_from_zero_goes_on_from_what_the_ledger_has(rig: Rig) -> None:
    """As an INA226 or an INA219 in a new process, or a chip that lost its supply with it."""
    rig.wiring.counts_alone = False
    rig.wiring.begins_uwh = 30
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)
    session, effects = restored(saved(), now_ms())
    rig.loop.go_on(session, effects, chip_uwh=7_000_000).result(1)
    rig.wait(lambda: rig.session.state is State.DELIVERING and rig.session.energy_uwh > 500)
    assert rig.session.stop_reason is None
    assert rig.session.energy_uwh <= 500 + rig.wiring.energy_uwh - 30


def test_what_flowed_back_is_not_charged_after_a_restart_either(rig: Rig) -> None:
    """The chip's count is higher by it than the energy of the process that saw it flow back."""
    rig.wiring.backflow_uwh = 40_000
    rig.wait(lambda: rig.loop.view.reading is not None and rig.loop.view.reading.backflow_uwh > 0)
    rig.wiring.power_mw = 0
    rig.serve()
    assert rig.loop.credit(SESSION, "aa", 1_000).result(1)
    assert rig.loop.view.chip_uwh == 1_040_000
    assert rig.loop.detach(SESSION).result(1)
    rig.wiring.backflow_uwh, rig.wiring.begins_uwh = 0, 1_040_000
    rig.wait(lambda: rig.loop.view.condition is Condition.AVAILABLE)
    session, effects = restored(saved(), now_ms())
    rig.wiring.power_mw = 0
    rig.loop.go_on(session, effects, chip_uwh=1_040_000).result(1)
    rig.wait(lambda: rig.session.metered_at_ms is not None)
    assert rig.session.energy_uwh == 500
    assert rig.loop.view.chip_uwh == 1_040_000


def test_a_session_that_waits_knows_the_count_as_the_chip_has_it(rig: Rig) -> None:
    """A later process, which knows nothing of what flowed back before, goes on from there when it pays."""
    rig.wiring.backflow_uwh = 40_000
    rig.wiring.power_mw = 0
    rig.wait(lambda: rig.loop.view.reading is not None and rig.loop.view.reading.backflow_uwh > 0)
    rig.serve()
    view = rig.loop.view.of(SESSION)
    assert view is not None
    assert (view.meter_base_uwh, view.chip_uwh) == (1_000_000, 1_040_000)


def test_a_meter_that_is_opened_anew_in_mid_session_leaves_what_was_counted(rig: Rig) -> None:
    rig.serve()
    assert rig.loop.credit(SESSION, "aa", 900_000).result(1)
    rig.wait(lambda: rig.session.energy_uwh > 0)
    rig.wiring.counts_alone = False
    with rig.wiring.lock:
        rig.wiring.begins_uwh = 0
    # The count went back: a fault, and a meter of its own after it.
    rig.wait(lambda: rig.session.state is State.SETTLING)
    assert rig.session.stop_reason is StopReason.METER_BACKWARDS


@pytest.mark.parametrize(("driver", "most_mv"), [("ina219", 26_000), ("ina226", 36_000), ("ina228", 85_000)])
def test_a_voltage_that_the_chip_can_never_see_is_refused_when_the_configuration_is_read(
    driver: str, most_mv: int
) -> None:
    values = {
        "outlet_id": "A1",
        "max_power_w": 100,
        "min_voltage_mv": most_mv,
        "meter": {"driver": driver, "bus": 1, "address": 0x40, "shunt_ohms": 0.01, "max_current_a": 4.0},
        "relay": {"driver": "gpio", "chip": "/dev/gpiochip0", "line": 17},
    }
    assert OutletSettings.model_validate(values).min_voltage_mv == most_mv
    with pytest.raises(ValidationError, match="min_voltage_mv"):
        OutletSettings.model_validate(values | {"min_voltage_mv": most_mv + 1})
