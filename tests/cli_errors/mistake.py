"""A mistake that a person makes: how it comes about, the command, and how it must be answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.core.lightning.fake_lightningd import FakeLightningd

SIM = "sim:toaster@24"
METER = f'{{ driver = "ina228", bus = "{SIM}", address = 0x40, shunt_ohms = 0.001, max_current_a = 40 }}'
RELAY = f'{{ driver = "pcf8574", bus = "{SIM}", address = 0x20, bit = 0 }}'
NOBODY = "02" + 32 * "00"
WELL = (r"ok       \w+ +\S", r"warning  \w+ +\S")
"""The findings of ``wattline cable check`` that are no problem."""
TRIED = (r"A1: closing its relay for 0.5 s$", r"A1: (before|closed|after) +relay (open|closed) ")
"""What ``wattline outlet test`` shows of an outlet."""
ENDED = (r"(session|energy|paid|charged|refund) +\S", r" +\S+ Wh by the socket's")
"""The summary of a run."""


@dataclass
class Desk:
    """Where a mistake is made: a folder of its own, and what can be put into it."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    fixture: Callable[[str], Any]
    """A pytest fixture by its name, made when it is asked for."""
    closing: list[Callable[[], object]] = field(default_factory=list)
    """Called when the mistake has been answered."""

    def socket_toml(self, meter: str = METER, relay: str = RELAY, more: str = "", power: str = "1000") -> str:
        """The path of a socket's configuration with one outlet."""
        return self.file(
            "socket.toml",
            f'[[outlet]]\noutlet_id = "A1"\nmax_power_w = {power}\nmeter = {meter}\nrelay = {relay}\n{more}\n',
        )

    def cable_toml(self, changes: Mapping[str, Mapping[str, Any]] | None = None, address: str = "") -> str:
        """The path of a cable's configuration; ``changes`` override keys by table, None takes one out."""
        tables: dict[str, dict[str, Any]] = {
            "socket": {"address": address or f"{NOBODY}@127.0.0.1:9"},
            "node": {"rpc": "lightning-rpc"},
            "meter": {"driver": "ina228", "bus": SIM, "address": 0x44, "shunt_ohms": 0.001, "max_current_a": 40},
            "limits": {
                "max_price_msat_per_kwh": 300_000,
                "max_prepaid_msat": 5_000,
                "max_session_msat": 1_000_000,
                "max_day_msat": 1_000_000,
            },
        }
        for table, values in (changes or {}).items():
            tables.setdefault(table, {}).update(values)
        lines = []
        for table, values in tables.items():
            lines.append(f"[{table}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
        return self.file("cable.toml", "\n".join(lines) + "\n")

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def lightningd(self, version: str = "v26.06.6") -> FakeLightningd:
        """A node beside the configuration that can tell who it is, and no more."""
        node = FakeLightningd(self.folder / "lightning-rpc")
        self.closing.append(node.close)
        node.result("getinfo", {"id": "02" + "ab" * 32, "network": "regtest", "version": version, "blockheight": 1})
        return node


@dataclass(frozen=True)
class Mistake:
    """One row of the table."""

    name: str
    make: Callable[[Desk], list[str]]
    """Brings it about and gives the words after ``wattline``, or what else ``way`` needs."""
    status: int
    names: tuple[str, ...]
    """What the one line must name; nothing: it is answered by silence."""
    way: str = "command"
    """How it is tried: one of the ways in :mod:`tests.cli_errors.ways`."""
    beside: tuple[str, ...] = ()
    """Patterns of the lines that may stand beside the one, such as the other findings of a check."""
