"""Whatever a socket does to have more mined than is due, the cable ends by refusing it, every time of ten; and never an
honest one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import TlsPair
from tests.cable.robbery import HONESTY, ROBBERIES, WITH_REFUND, Robbery, Way

TIMES = 10


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end is not waited for long, nor a block."""
    monkeypatch.setattr("wattline.cable.service.MINED_WAIT_S", 0.0)
    monkeypatch.setattr("wattline.cable.closing.SETTLE_MS", 600)
    monkeypatch.setattr("wattline.cable.closing.RECEIPT_MS", 600)


@pytest.mark.parametrize("name", [*ROBBERIES, *HONESTY, *WITH_REFUND])
def test_ten_times_of_ten(name: str, tmp_path: Path, tls: TlsPair) -> None:
    """The ten go on side by side: they mostly wait."""
    way: Way = (ROBBERIES | HONESTY | WITH_REFUND)[name]

    def once(seed: int) -> None:
        folder = tmp_path / str(seed)
        folder.mkdir()
        bench = Bench(folder, tls)
        try:
            Robbery(bench, seed).prove(way)
        finally:
            bench.close()

    with ThreadPoolExecutor(TIMES) as pool:
        for outcome in [pool.submit(once, seed) for seed in range(TIMES)]:
            outcome.result()
