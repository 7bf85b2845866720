"""The same demo with each of the meters: socket, cable and world agree within what the chips' data sheets promise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from wattline.device.simulator.world import CABLE_GAIN, CABLE_OHMS
from wattline.regtest.scene import Json, Scene
from wattline.regtest.toast import ToastMeter, ToastOrder, toast

pytestmark = [pytest.mark.lightningd, pytest.mark.timeout(180)]

SECONDS = 6.0
SUPPLY_V = 24
"""What all three can measure."""
SHUNT_UV_PER_A = 1000
"""One milliohm."""
SAMPLE_S = 0.1
"""Between two readings of a meter that does not count energy itself (``meter_interval_ms``)."""


@dataclass(frozen=True)
class Accuracy:
    """Of one chip, the worst of its grades over its whole range of temperature."""

    current_gain: float
    voltage_gain: float
    offset_uv: float
    """Of the voltage over the shunt."""
    time: float
    """Of the chip's own clock, where that counts the energy."""
    counts: bool
    """Whether it counts energy itself."""

    def of(self, power_w: float) -> float:
        """How far the energy may be from the truth at that power, as a part of it, without what a switching costs."""
        offset = self.offset_uv / (SHUNT_UV_PER_A * power_w / SUPPLY_V)
        return self.current_gain + self.voltage_gain + offset + self.time

    def switching_uwh(self, power_w: float) -> float:
        """What closing and opening once cost a meter that samples: half an interval each (docs/hardware.md)."""
        return 0 if self.counts else 2 * SAMPLE_S / 2 * power_w / 3600 * 1e6


ACCURACY = {
    # SLYS021: gain error of either voltage, offset of the shunt's, oscillator.
    ToastMeter.INA228: Accuracy(0.0005, 0.0005, 1, 0.01, counts=True),
    # SBOS547: gain errors, offset.
    ToastMeter.INA226: Accuracy(0.001, 0.001, 10, 0, counts=False),
    # SBOS448: grade A, over temperature.
    ToastMeter.INA219: Accuracy(0.01, 0.01, 100, 0, counts=False),
}


@pytest.mark.parametrize(
    "meter",
    [pytest.param(each, marks=() if each is ToastMeter.INA228 else pytest.mark.long) for each in ToastMeter],
)
def test_each_meter_drives_the_same_demo_and_tells_the_truth_within_its_accuracy(kind: str, meter: ToastMeter) -> None:
    def buy(scene: Scene, config: Path) -> Json:
        for written in (scene.config, config):
            assert f'"{meter}"' in written.read_text(encoding="utf-8")
        return scene.run_cable(config, for_s=SECONDS).result()[1]

    order = ToastOrder(node=kind, meter=meter, supply_v=SUPPLY_V)
    result = toast(order, buy, lambda text: None)
    assert result.stop_reason == "done", result
    assert result.is_good
    assert result.relay_closed == result.relay_opened == 1

    accuracy = ACCURACY[meter]
    power_w = max(point.power_mw for point in result.course) / 1000
    assert power_w == pytest.approx(order.power_w, rel=0.08)
    truth_uwh = result.energy_uwh_world
    assert truth_uwh > 0.8 * SECONDS / 3600 * order.power_w * 1e6
    socket_uwh = accuracy.of(power_w) * truth_uwh + accuracy.switching_uwh(power_w)
    assert result.energy_uwh_socket == pytest.approx(truth_uwh, abs=socket_uwh)
    # The cable's shunt is another one, and its wire takes a little before the cable's meter.
    beyond_wire_uwh = truth_uwh * (1 - CABLE_OHMS * power_w / SUPPLY_V**2)
    cable_uwh = socket_uwh + (1 - CABLE_GAIN) * truth_uwh
    assert result.energy_uwh_cable == pytest.approx(beyond_wire_uwh, abs=cable_uwh)
