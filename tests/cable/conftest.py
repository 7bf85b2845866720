"""A cable on the bench: the real service, payer and ledger between fakes of everything outside."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.cable.fake_funds import FakeFunds
from tests.cable.fakes import (
    FakeLightning,
    FakeMeter,
    FakeSocket,
    Signing,
    TlsPair,
    World,
    make_certificate,
    wait_for,
)
from wattline.cable.closing import StopWish, Summary
from wattline.cable.opening import Equipment, Progress
from wattline.cable.service import CableService
from wattline.cable.settings import CableSettings
from wattline.cli.cable_view import Snapshot, snapshot_of
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.clock import WallWatch, since_boot_ns
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.lightning.node import NodeUnavailable
from wattline.core.payer import Payer

WORKERS = {"cable-pay", "cable-resolve"}


class Crash(BaseException):
    """The process dies here: nothing of the service may catch it."""


class Recorder:
    """Keeps what was shown; dies when told to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.snapshots: list[Snapshot] = []
        self.crash = False

    def event(self, text: str) -> None:
        self.lines.append(text)

    def show(self, progress: Progress) -> None:
        self.snapshots.append(snapshot_of(progress))
        if self.crash:
            raise Crash


class Mortal:
    """The node in the hands of one process: once that is dead, nothing more that it wanted to send leaves."""

    def __init__(self, node: FakeLightning) -> None:
        self._node = node
        self._alive = threading.Lock()
        self._is_dead = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def send(self, *arguments: Any, **named: Any) -> None:
        with self._alive:
            if self._is_dead:
                raise NodeUnavailable("node_unavailable", "the process that asks is dead")
            self._node.send(*arguments, **named)

    def die(self) -> None:
        with self._alive:
            self._is_dead = True


class Bench:
    """Everything around one cable."""

    def __init__(self, folder: Path, tls: TlsPair, socket_node: Signing | None = None) -> None:
        self.folder = folder
        self.tls = tls
        self.world = World()
        self.socket = FakeSocket(self.world, tls, socket_node)
        self.node = FakeLightning(self.socket.take_payment)
        self.socket.refund_to = self.node.receive
        self.meter = FakeMeter(self.world)
        self.funds = FakeFunds()
        self.onchain: dict[str, Any] = {}
        self.ledger: Ledger = open_ledger(folder / "cable.sqlite3")
        self.listener = Recorder()
        self.wish = StopWish()
        self.summary: Summary | None = None
        self.died = False
        self._mortal = Mortal(self.node)
        self._thread: threading.Thread | None = None
        self.limits: dict[str, Any] = {
            "max_price_msat_per_kwh": 300_000,
            "max_prepaid_msat": 5_000,
            "max_session_msat": 1_000_000,
            "max_day_msat": 10_000_000,
            "energy_tolerance_uwh": 200_000,
        }
        self.payment: dict[str, Any] = {"pace_ms": 200, "max_failures_in_a_row": 3}
        self.socket_settings: dict[str, Any] = {"address": self.socket.address}
        self.identify = False
        self.wall = WallWatch()

    @property
    def settings(self) -> CableSettings:
        return CableSettings.model_validate(
            {
                "socket": self.socket_settings,
                "node": {"rpc": "lightning-rpc", "identify": self.identify},
                "meter": {
                    "driver": "ina228",
                    "bus": "sim:toaster",
                    "address": 0x41,
                    "shunt_ohms": 0.001,
                    "max_current_a": 40,
                },
                "limits": self.limits,
                "payment": self.payment,
                "onchain": self.onchain,
            }
        )

    @property
    def equipment(self) -> Equipment:
        return Equipment(
            node=self.node,
            payer=Payer(cast(FakeLightning, self._mortal), self.ledger.outgoing, pause=lambda seconds: None),
            ledger=self.ledger,
            funds=self.funds,
            open_meter=lambda max_power_mw: self.meter,
            clock_ms=lambda: since_boot_ns() // 1_000_000,
            sent_since=self.node.sent_since,
            wall=self.wall,
        )

    def service(self) -> CableService:
        return CableService(self.settings, self.equipment, self.listener, self.wish)

    def start(self) -> None:
        """Run the service in the background until :meth:`finish`."""
        self._mortal = Mortal(self.node)
        service = self.service()
        self.died = False

        def run() -> None:
            try:
                self.summary = service.run()
            except Crash:
                self.died = True

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def finish(self, reason: str = "done") -> Summary:
        """Ask the service to end and wait for its summary."""
        self.wish.want(reason, "the test has seen enough")
        return self.wait()

    def wait(self, timeout_s: float = 30) -> Summary:
        """Wait for the service to end by itself."""
        assert self._thread is not None
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the service does not end; it said {self.listener.lines}"
        assert self.summary is not None
        return self.summary

    def run(self) -> Summary:
        """Run the service to an end that it finds by itself."""
        self.start()
        return self.wait()

    def crash(self) -> None:
        """Kill the running service in the middle of its work; a restarted one is :meth:`start`."""
        self.listener.crash = True
        assert self._thread is not None
        self._thread.join(10)
        assert self.died
        self._mortal.die()
        self.listener = Recorder()
        self.wish = StopWish()
        self.meter = FakeMeter(self.world, self.meter.base_uwh)

    def copy_of_ledger(self) -> bytes:
        """As a backup makes it while the cable runs."""
        with (
            closing(sqlite3.connect(self.folder / "cable.sqlite3")) as source,
            closing(sqlite3.connect(":memory:")) as copy,
        ):
            source.backup(copy)
            return copy.serialize()

    def put_back(self, copy: bytes) -> None:
        """While nothing runs: an older copy stands in the ledger's place. No worker of a dead process runs either: its
        last connection would take the new file's journal away with its own."""
        wait_for(lambda: not any(thread.name in WORKERS for thread in threading.enumerate()), what="workers to end")
        self.ledger.close()
        for path in self.folder.glob("cable.sqlite3*"):
            path.unlink()
        (self.folder / "cable.sqlite3").write_bytes(copy)
        self.ledger = open_ledger(self.folder / "cable.sqlite3")

    def mine(self, psbt: bytes) -> None:
        """Have a version mined, and see that the wallet has a coin for a further session."""
        self.funds.mine_psbt(psbt)
        self.node.height = self.funds.blocks
        height = self.funds.blocks - 10
        self.funds.free.append(replace(self.funds.free[-1], outpoint=Outpoint(f"{height:064x}", 7), blockheight=height))

    def close(self) -> None:
        """End whatever runs."""
        self.wish.want("done", "the test is over")
        self.node.hold.set()
        self.socket.stop()
        if self._thread is not None:
            self._thread.join(10)
        self.ledger.close()

    @property
    def shown(self) -> Snapshot:
        """What was shown last, waited for when nothing was yet."""
        wait_for(lambda: self.listener.snapshots, what=f"a first snapshot; {self.listener.lines}")
        return self.listener.snapshots[-1]

    def until(self, payments: int) -> None:
        """Wait until so many payments have arrived at the socket, and something was delivered for them."""
        wait_for(lambda: len(self.socket.orders) >= payments, what=f"{payments} payments; {self.listener.lines}")
        wait_for(lambda: self.socket.session.delivered_ms > 0, what="delivery")


@pytest.fixture(scope="session")
def tls() -> TlsPair:
    return make_certificate()


@pytest.fixture
def bench(tmp_path: Path, tls: TlsPair) -> Iterator[Bench]:
    bench = Bench(tmp_path, tls)
    yield bench
    bench.close()
