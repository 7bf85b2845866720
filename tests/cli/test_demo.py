from __future__ import annotations

import io
import sys

import pytest

from tests.cli.command import run
from wattline.regtest.toast import ToastMeter, ToastOrder


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--meter", "ina219", "--volts", "48"], ("demo_volts: 48 V", "INA219", "12 to 26 V")),
        (["--meter", "ina226", "--volts", "37"], ("demo_volts: 37 V", "INA226", "12 to 36 V")),
        (["--volts", "60"], ("demo_volts: 60 V", "INA228", "12 to 48 V")),
        (["--volts", "11"], ("demo_volts: 11 V", "12 to 48 V")),
    ],
)
def test_a_voltage_that_the_meter_does_not_measure_is_refused_before_anything_starts(
    words: list[str], names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("demo", *words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert all(name in line for name in names)


@pytest.mark.parametrize("meter", ToastMeter)
def test_each_meter_can_measure_its_usual_voltage(meter: ToastMeter) -> None:
    order = ToastOrder(meter=meter, supply_v=meter.usual_v)
    assert order.power_w == {48: 1300, 24: 325}[order.supply_v]


def test_what_the_terminal_cannot_show_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run("--nonsense") == 2
    sys.stdout.write("1×, 5 µWh")
    sys.stdout.flush()
    assert raw.getvalue().endswith(b"1?, 5 ?Wh")
