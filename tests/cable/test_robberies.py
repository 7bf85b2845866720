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
WAYS: dict[str, Way] = ROBBERIES | HONESTY | WITH_REFUND
PARTS = 2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end is not waited for long, nor a block."""
    monkeypatch.setattr("wattline.cable.service.MINED_WAIT_S", 0.0)
    monkeypatch.setattr("wattline.cable.closing.SETTLE_MS", 600)
    monkeypatch.setattr("wattline.cable.closing.RECEIPT_MS", 600)


def proved(name: str, seed: int, tmp_path: Path, tls: TlsPair) -> None:
    folder = tmp_path / f"{name}-{seed}".replace(" ", "-")
    folder.mkdir()
    bench = Bench(folder, tls)
    try:
        Robbery(bench, seed).prove(WAYS[name])
    except AssertionError as error:
        error.add_note(f"{name}, seed {seed}")
        raise
    finally:
        bench.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_every_way_once(part: int, tmp_path: Path, tls: TlsPair) -> None:
    """Side by side: they mostly wait."""
    names = list(WAYS)[part::PARTS]
    with ThreadPoolExecutor(len(names)) as pool:
        for outcome in [pool.submit(proved, name, TIMES, tmp_path, tls) for name in names]:
            outcome.result()


@pytest.mark.long
@pytest.mark.parametrize("name", WAYS)
def test_ten_times_of_ten(name: str, tmp_path: Path, tls: TlsPair) -> None:
    with ThreadPoolExecutor(TIMES) as pool:
        for outcome in [pool.submit(proved, name, seed, tmp_path, tls) for seed in range(TIMES)]:
            outcome.result()
