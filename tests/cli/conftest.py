"""Worlds and configurations of their own for the tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTLINE_SIM_DIR", str(tmp_path / "sim"))
    monkeypatch.setenv("WATTLINE_SIM_IDLE_S", "2")


@pytest.fixture
def socket_toml(tmp_path: Path) -> Path:
    """Two outlets: one with an INA228 and a PCF8574, one with an INA226 and a PCA9554, at 24 V."""
    path = tmp_path / "socket.toml"
    bus = 'bus = "sim:toaster@24"'
    shunt = "shunt_ohms = 0.001, max_current_a = 40"
    path.write_text(f"""
[[outlet]]
outlet_id = "A1"
max_power_w = 400
meter = {{ driver = "ina228", {bus}, address = 0x40, {shunt} }}
relay = {{ driver = "pcf8574", {bus}, address = 0x20, bit = 0 }}

[[outlet]]
outlet_id = "A2"
max_power_w = 400
meter = {{ driver = "ina226", {bus}, address = 0x49, {shunt} }}
relay = {{ driver = "pca9554", {bus}, address = 0x21, bit = 1 }}
""")
    return path
