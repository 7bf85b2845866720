"""A socket that takes payments on a real chain: the real shell and ledger, with its outlets and its Lightning node in
memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.nodes import SOCKET, KeptNotes, NoChannels, NoJournal, SocketFunds, TrustingSigner
from harness.outlet_hardware import OutletHardware
from wattline.core.aggregate import MSAT_PER_SAT, Aggregate
from wattline.core.bitcoin.chain import Chain
from wattline.core.clock import Clock
from wattline.core.ledger.database import open_database
from wattline.core.ledger.ledger import Ledger
from wattline.core.session.session import Session
from wattline.core.settings import parse_settings
from wattline.plugin.app import NodeParts, build
from wattline.plugin.certificate import Identity
from wattline.plugin.outlet_hardware import OutletParts
from wattline.plugin.outlet_state import Condition
from wattline.plugin.settings import SocketSettings
from wattline.regtest.waiting import wait_until
from wattline.v1 import charging_pb2 as pb

OUTLETS = ("A1", "A2")
METER_INTERVAL_MS = 50
WATCH_INTERVAL_MS = 100
CONFIRMATIONS = 3
FLOOR_SAT = 546
CREDIT_CAP_SAT = 20_000
EXPOSURE_CAP_SAT = 10_000
SESSION_FEE_SAT = 1_000
"""Owed as soon as the relay closes, so that a session of a second is worth more than its floor."""
_ONCHAIN: dict[str, Any] = {
    "enabled": True,
    "floor_sat": FLOOR_SAT,
    "credit_cap_sat": CREDIT_CAP_SAT,
    "exposure_cap_sat": EXPOSURE_CAP_SAT,
    "watch_interval_ms": WATCH_INTERVAL_MS,
    "confirmations": CONFIRMATIONS,
    "final_timeout_s": 1,
    "bump_after_blocks": 2,
}


class Stall:
    """``with Stall(...) as stall:`` sells from two outlets of 1 kW, each second of it worth about 100 sat, and goes on
    with whatever the ledger in ``directory`` says was not over."""

    def __init__(
        self,
        directory: Path,
        chain: Chain,
        funds: SocketFunds,
        hardware: Mapping[str, OutletHardware] | None = None,
        notes: KeptNotes | None = None,
        **onchain: Any,
    ) -> None:
        """``hardware``: that of the process before, whose meters went on counting; ``notes``: what the node kept of it;
        ``onchain``: other settings."""
        settings = _settings(onchain)
        self.ledger = Ledger(open_database(directory / "socket.sqlite3"))
        self.funds = funds
        self.hardware = hardware or {outlet_id: OutletHardware() for outlet_id in OUTLETS}
        node = NodeParts(
            Identity(SOCKET, "regtest", bytes(32)),
            NoChannels(),
            TrustingSigner(),
            NoJournal(),
            notes or KeptNotes(),
            funds,
        )
        outlets = {outlet_id: _parts(self.hardware[outlet_id]) for outlet_id in OUTLETS}
        self.app = build(settings, self.ledger, node, chain, outlets, Clock())
        self.app.older_copy.look()
        assert self.app.onchain is not None
        self.onchain = self.app.onchain
        self.outlets = self.app.outlets

    def __enter__(self) -> Self:
        self.app.take_up()
        self.app.refunds.start()
        self.onchain.start()
        self.app.ready.set()
        wait_until("the outlets to be measured", self._measured)
        wait_until("the chain to be looked at", lambda: not self.onchain.trouble)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is concluded: what is under way stays in the ledger as it is. The guard opens the relays."""
        for outlet in self.outlets.values():
            outlet.stop()
            self.hardware[outlet.outlet_id].open(outlet.outlet_id)
        self.onchain.stop()
        self.app.closer.stop()
        self.app.refunds.stop()
        self.ledger.close()

    # What there is to see.

    def session(self, session_id: str) -> Session:
        """As it stands, live or over."""
        record = self.app.sessions.record(session_id)
        assert record is not None, f"no session {session_id}"
        return record.session

    def aggregate(self, session_id: str) -> Aggregate:
        aggregate = self.ledger.aggregate(session_id)
        assert aggregate is not None, f"no aggregate of {session_id}"
        return aggregate

    def receipt(self, session_id: str) -> pb.Receipt:
        saved = self.ledger.receipt(session_id)
        assert saved is not None, f"no receipt of {session_id}"
        return pb.Receipt.FromString(saved.content)

    def is_over(self, session_id: str) -> bool:
        """Its receipt is written and its outlet is free."""
        return not self.app.sessions.is_served(session_id) and self.ledger.receipt(session_id) is not None

    def credited_sat(self, session_id: str) -> int:
        """What the session's account counts: there is no other credit than the chain's."""
        credited_msat = self.session(session_id).account.credited_msat
        assert credited_msat % MSAT_PER_SAT == 0
        return credited_msat // MSAT_PER_SAT

    def is_relay_closed(self, outlet_id: str = "A1") -> bool:
        return self.hardware[outlet_id].is_closed

    def _measured(self) -> bool:
        return all(outlet.view.condition is not Condition.STARTING for outlet in self.outlets.values())


def _parts(hardware: OutletHardware) -> OutletParts:
    return OutletParts(lambda: hardware, hardware)


def _settings(onchain: dict[str, Any]) -> SocketSettings:
    """A kWh for 3.6 BTC makes 100 sat/s of 1 kW."""
    outlets = [
        {
            "outlet_id": outlet_id,
            "max_power_w": 1000,
            "meter": {"driver": "ina228", "bus": 1, "address": 0x40 + at, "shunt_ohms": 0.001, "max_current_a": 40.0},
            "relay": {"driver": "gpio", "chip": "/dev/gpiochip0", "line": 17 + at, "active_low": False},
        }
        for at, outlet_id in enumerate(OUTLETS)
    ]
    settings = {
        "outlet": outlets,
        "tariff": {"energy_msat_per_kwh": 360_000_000, "session_fee_msat": SESSION_FEE_SAT * MSAT_PER_SAT},
        "session": {
            "meter_interval_ms": METER_INTERVAL_MS,
            "credit_cap_msat": CREDIT_CAP_SAT * MSAT_PER_SAT,
            "min_refund_msat": MSAT_PER_SAT,
        },
        "onchain": _ONCHAIN | onchain,
    }
    return parse_settings(settings, SocketSettings, "the trial")
