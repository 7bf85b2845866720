"""All chips over the same load: they must agree within what each of them promises."""

from __future__ import annotations

from typing import Any

import pytest

from wattline.device.meters.trust import TrustedMeter


@pytest.mark.parametrize(
    ("profile", "seconds"), [("toaster@24", 60), ("constant-60@24", 60), ("ev@24", 20), ("phone@12", 60)]
)
@pytest.mark.parametrize("side", ["socket", "cable"])
def test_three_chips_agree_on_what_a_session_delivered(make_bench: Any, profile: str, seconds: int, side: str) -> None:
    bench = make_bench(profile)
    max_a = 80 if profile.startswith("ev") else 40
    if side == "socket":
        opened = bench.meter(0x40, max_a), bench.ina226(0x48, max_a), bench.ina219(0x4A, max_a)
    else:
        opened = bench.meter(0x44, max_a), bench.ina226(0x4C, max_a), bench.ina219(0x4E, max_a)
    meters = [TrustedMeter(meter, 1_500_000) for meter in opened]

    def look() -> list[int]:
        bench.pass_s(0.1)
        return [meter.read().energy_uwh for meter in meters]

    base = [look() for _ in range(5)][-1]
    bench.switch_on()
    for _ in range(10 * seconds):
        look()
    bench.bus.write_byte(0x20, 0xFF)
    end = [look() for _ in range(5)][-1]
    ina228, ina226, ina219 = (last - first for last, first in zip(end, base, strict=True))

    # The cable's side lacks what its shunt and its wire take.
    assert ina228 == pytest.approx(bench.world.energy_uwh(0), rel=0.02 if side == "cable" else 0.001, abs=20)
    # A switching is seen to half an interval; the LSB of an INA219 is 10 mA here.
    switching_uwh = 50 * bench.world.energy_uwh(0) // (1000 * seconds)
    assert ina226 == pytest.approx(ina228, rel=0.002, abs=switching_uwh)
    assert ina219 == pytest.approx(ina228, rel=0.005, abs=switching_uwh)


@pytest.mark.parametrize(("looks", "within"), [(1000, 0.06), pytest.param(3000, 0.03, marks=pytest.mark.long)])
def test_a_load_that_flickers_between_readings_is_met_on_average(make_bench: Any, looks: int, within: float) -> None:
    bench = make_bench("noisy@24")
    ina228, ina226 = bench.meter(0x40, 80), bench.ina226(0x48, 80)
    bench.switch_on()
    for _ in range(looks):
        bench.pass_s(0.1)
        counted, sampled = ina228.read(), ina226.read()
    # Another power every 40 ms and a look at 17 of 100 ms: of 3000 such looks one percent is what chance leaves, of
    # 1000 nearly two.
    assert sampled.energy_uwh == pytest.approx(counted.energy_uwh, rel=within)
    assert sampled.energy_uwh != counted.energy_uwh
