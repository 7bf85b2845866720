"""A socket and its cables on real nodes: configurations, processes and what both sides say afterwards."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pyln.client import RpcError

from wattline.core.errors import StopError
from wattline.device.controller.client import GuardClient
from wattline.device.simulator.control import SimulatedWorld
from wattline.device.simulator.profile import NOMINAL_V
from wattline.regtest.daemon import free_port
from wattline.regtest.lightningd import Node, OptionValue
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.waiting import wait_until

Json = dict[str, Any]

UNKNOWN_COMMAND = -32601
"""JSON-RPC's code; what lightningd answers when no plugin offers the method."""


def script(name: str) -> Path:
    """A console script of this installation. Raises StopError when wattline is not installed."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        raise StopError("not_installed", f"{path} is missing: install wattline in this environment (make install)")
    return path


@dataclass(frozen=True, slots=True)
class Trade:
    """What is sold and how: the numbers of a socket's configuration."""

    energy_msat_per_kwh: int = 300_000
    time_msat_per_hour: int = 0
    session_fee_msat: int = 0
    profiles: Sequence[str] = ("toaster",)
    """One outlet A1, A2, ... for each, all circuits of one simulated world."""
    max_power_w: int = 1400
    meter: str = "ina228"
    """The chip that measures, on the socket's side and on the cable's: the driver's name."""
    supply_v: int = NOMINAL_V
    """Of the simulated world. A resistive load takes less at less."""
    session: Mapping[str, int] = field(default_factory=dict)
    """Keys of ``[session]``."""
    payment: Mapping[str, int] = field(default_factory=dict)
    """Keys of ``[payment]``."""
    allow_node_ids: Sequence[str] = ()
    """Of ``[access]``; none: everybody may buy."""
    onchain: Mapping[str, int] | None = None
    """Keys of ``[onchain]``, which is enabled unless this is None."""


@dataclass(frozen=True, slots=True)
class Books:
    """What three witnesses say was paid for sessions: amounts in msat by payment_hash."""

    credited: Mapping[str, int]
    """By the socket's ledger."""
    orphans: Mapping[str, int]
    """By the socket's ledger: paid for a session that could not use it."""
    received: Mapping[str, int]
    """By the socket's node (listinvoices)."""
    delivered: Mapping[str, int]
    """By the cable's node (listsendpays)."""

    @property
    def agree(self) -> bool:
        """Whether all three tell of the same payments, to the msat."""
        return {**self.credited, **self.orphans} == dict(self.received) == dict(self.delivered)


class Scene:
    """A socket's node with the plugin, and cables that buy from it. Use it inside a RegtestNetwork's block."""

    def __init__(self, network: RegtestNetwork, trade: Trade, *, name: str = "socket") -> None:
        self.network = network
        self.trade = trade
        self.directory = network.directory / f"scene-{name}"
        self.directory.mkdir()
        profile = trade.profiles[0] if trade.supply_v == NOMINAL_V else f"{trade.profiles[0]}@{trade.supply_v}"
        self.world_spec = f"sim:{profile}/{network.directory.name}-{name}"
        self.listen = f"127.0.0.1:{free_port()}"
        self.config = self.directory / "socket.toml"
        self.write_config(trade)
        self._name = name
        self._processes: list[CableProcess] = []
        self.world = SimulatedWorld.connect(self.world_spec, network.worlds)
        for circuit, profile in enumerate(trade.profiles):
            self.world.plug(circuit, profile)
        self._node: Node | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the cables that still run; the nodes belong to the network."""
        self.kill_cables()
        self.world.close()

    def kill_cables(self) -> None:
        """End the cables that still run."""
        for process in self._processes:
            process.close()

    def write_config(self, trade: Trade) -> None:
        """The socket's configuration, as a person would write it."""
        lines = [
            "[tariff]",
            f"energy_msat_per_kwh = {trade.energy_msat_per_kwh}",
            f"time_msat_per_hour = {trade.time_msat_per_hour}",
            f"session_fee_msat = {trade.session_fee_msat}",
            "[session]",
            *(f"{key} = {value}" for key, value in trade.session.items()),
            "[payment]",
            *(f"{key} = {value}" for key, value in trade.payment.items()),
            "[access]",
            f"allow_node_ids = {json.dumps(list(trade.allow_node_ids))}",
            "[onchain]",
            f"enabled = {json.dumps(trade.onchain is not None)}",
            *(f"{key} = {value}" for key, value in (trade.onchain or {}).items()),
        ]
        for circuit in range(len(trade.profiles)):
            meter = SimulatedWorld.socket_meter(circuit, trade.meter)
            lines += [
                "[[outlet]]",
                f'outlet_id = "A{circuit + 1}"',
                f"max_power_w = {trade.max_power_w}",
                (
                    f'meter = {{ driver = "{trade.meter}", bus = "{self.world_spec}", address = {meter:#x}, '
                    "shunt_ohms = 0.001, max_current_a = 40 }"
                ),
                (
                    f'relay = {{ driver = "pcf8574", bus = "{self.world_spec}", address = 0x20, bit = {circuit}, '
                    "active_low = true }"
                ),
            ]
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @property
    def node_options(self) -> dict[str, OptionValue]:
        """Options with which a node becomes this socket's."""
        return {
            "plugin": script("wattline-plugin"),
            "wattline_config": self.config,
            "wattline_listen": self.listen,
        }

    @property
    def node(self) -> Node:
        assert self._node is not None, "adopt() or start_node() comes first"
        return self._node

    def adopt(self, node: Node) -> None:
        """This node runs (or will run) the plugin."""
        self._node = node

    def start_node(self) -> Node:
        """A node with the plugin loaded statically."""
        self._node = self.network.node(self._name, **self.node_options)
        return self._node

    def wait_running(self) -> Json:
        """Until cables are served; the status then."""

        def running() -> Json | None:
            try:
                status = self.status()
            except RpcError as error:
                if isinstance(error.error, dict) and error.error.get("code") == UNKNOWN_COMMAND:
                    return None  # the plugin is just being loaded
                raise
            if status["state"] == "failed":
                raise StopError(str(status["code"]), str(status["message"]))
            return status if status["state"] == "running" else None

        return wait_until("the socket runs", running, 30)

    def status(self) -> Json:
        return dict(self.node.rpc.call("wattline-status"))

    def sessions(self) -> list[Json]:
        return list(self.node.rpc.call("wattline-sessions")["sessions"])

    def session(self, session_id: str) -> Json:
        return dict(self.node.rpc.call("wattline-sessions", {"session_id": session_id})["sessions"][0])

    # What a crash needs to know.

    @property
    def ledger_path(self) -> Path:
        """The socket's ledger."""
        return self.directory / "socket.sqlite3"

    @property
    def guard_socket(self) -> Path:
        return self.node.lightning_dir / "regtest" / "wattline" / "guard.sock"

    def books(self, wallet: Node, session_id: str = "") -> Books:
        """What was paid from ``wallet`` for one session, or for all."""
        mark = f"wattline:1:{session_id}"
        with closing(sqlite3.connect(f"file:{self.ledger_path}?mode=ro", uri=True)) as ledger:
            rows = ledger.execute("SELECT kind, payment_hash, amount_msat, session_id FROM payments").fetchall()
        booked = {
            wanted: {row[1]: row[2] for row in rows if row[0] == wanted and session_id in ("", row[3])}
            for wanted in ("credit", "orphan")
        }
        received = {
            row["payment_hash"]: int(row["amount_received_msat"])
            for row in self.node.rpc.listinvoices()["invoices"]
            if row["status"] == "paid" and row.get("description", "").startswith(f"keysend: {mark}")
        }
        delivered = {
            row["payment_hash"]: int(row["amount_msat"])
            for row in wallet.rpc.listsendpays()["payments"]
            if row["status"] == "complete" and row.get("label", "").startswith(mark)
        }
        return Books(booked["credit"], booked["orphan"], received, delivered)

    def plugin_pid(self) -> int:
        """The process of the plugin, once lightningd has one."""

        def find() -> int | None:
            for path in Path("/proc").glob("[0-9]*"):
                try:
                    parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                    command = (path / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue  # it has just ended
                if parent == self.node.pid and any(
                    Path(os.fsdecode(part)).name == "wattline-plugin" for part in command
                ):
                    return int(path.name)
            return None

        return wait_until("the plugin's process", find, 30)

    def guard_pid(self) -> int:
        """The process of the guard. Raises RelayError when there is none."""
        client = GuardClient.connect(self.guard_socket)
        try:
            return client.state().pid
        finally:
            client.close()

    def load_plugin(self) -> None:
        """As ``lightning-cli plugin start`` does. Raises StopError when lightningd refuses."""
        self.node.start_plugin(script("wattline-plugin"), wattline_config=str(self.config), wattline_listen=self.listen)

    def unload_plugin(self) -> None:
        """As ``lightning-cli plugin stop`` does; the plugin's process is gone when this returns."""
        self.node.stop_plugin(script("wattline-plugin"))

    def is_loaded(self) -> bool:
        """Whether lightningd counts the plugin among its own."""
        plugins = self.node.rpc.call("plugin", {"subcommand": "list"})["plugins"]
        return any(Path(plugin["name"]).name == "wattline-plugin" for plugin in plugins)

    def write_cable_config(
        self,
        wallet: Node,
        name: str = "cable",
        circuit: int = 0,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Path:
        """A cable's configuration; ``changes`` override keys by table."""
        tables: dict[str, dict[str, Any]] = {
            "socket": {"address": f"{self.node.node_id}@{self.listen}", "outlet_id": f"A{circuit + 1}"},
            "node": {"rpc": str(wallet.rpc_path)},
            "meter": {
                "driver": self.trade.meter,
                "bus": self.world_spec,
                "address": SimulatedWorld.cable_meter(circuit, self.trade.meter),
                "shunt_ohms": 0.001,
                "max_current_a": 40,
            },
            "storage": {"path": f"{name}.sqlite3"},
            "limits": {
                "max_price_msat_per_kwh": max(500_000, self.trade.energy_msat_per_kwh),
                "max_time_price_msat_per_hour": self.trade.time_msat_per_hour,
                "max_session_fee_msat": self.trade.session_fee_msat,
                "max_prepaid_msat": 5_000,
                "max_session_msat": 1_000_000,
                "max_day_msat": 10_000_000,
            },
        }
        for table, values in (changes or {}).items():
            tables.setdefault(table, {}).update(values)
        lines = []
        for table, values in tables.items():
            lines.append(f"[{table}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
        path = self.directory / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def run_cable(self, config: Path, for_s: float | None = None, *, quiet: bool = True) -> CableProcess:
        """``wattline cable run --json`` in a process of its own."""
        process = CableProcess(config, for_s, self.network.environment, quiet=quiet)
        self._processes.append(process)
        return process


class CableProcess:
    """A running cable."""

    def __init__(self, config: Path, for_s: float | None, environment: Mapping[str, str], *, quiet: bool) -> None:
        command = [str(script("wattline")), "cable", "run", "--config", str(config), "--json"]
        if for_s is not None:
            command += ["--for", str(for_s)]
        self.log_path = config.with_suffix(".log")
        self._log = self.log_path.open("ab") if quiet else None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log or sys.stderr,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def interrupt(self) -> None:
        """As Ctrl-C does: it stops paying, closes and waits for the receipt."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it neither pays nor speaks."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def result(self, timeout_s: float = 60.0) -> tuple[int, Json]:
        """Exit status and summary, when it has ended."""
        out, _ = self._process.communicate(timeout=timeout_s)
        lines = out.strip().splitlines()
        summary: Json = json.loads(lines[-1]) if lines else {}
        return self._process.returncode, summary

    def log_text(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        if self.is_running:
            self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._log is not None:
            self._log.close()
