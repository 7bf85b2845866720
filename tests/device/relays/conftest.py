"""Worlds of their own for the tests of relays, and a wait for things to happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest


def _wait_for(what: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Until a condition holds; fails after a while."""
    return _wait_for


@pytest.fixture(autouse=True)
def _own_worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTLINE_SIM_DIR", str(tmp_path / "sim"))
    monkeypatch.setenv("WATTLINE_SIM_IDLE_S", "2")
