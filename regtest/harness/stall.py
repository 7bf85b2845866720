"""A socket that takes payments on a real chain: the real shell and ledger, put together as the shop does it, with its
outlets and its Lightning node in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.nodes import SOCKET, KeptNotes, NoChannels, NoJournal, SocketFunds, TrustingSigner
from harness.outlet_hardware import OutletHardware
from wattline.core.aggregate import MSAT_PER_SAT, Aggregate
from wattline.core.bitcoin.chain import Chain
from wattline.core.ledger.database import open_database
from wattline.core.ledger.ledger import Ledger
from wattline.core.payer import Payer
from wattline.core.session.event import CableLost
from wattline.core.session.session import Session
from wattline.core.settings import parse_settings
from wattline.plugin.closing import SessionCloser
from wattline.plugin.crediting import SmartSocket
from wattline.plugin.journal import JournalReader
from wattline.plugin.older_copy import NotedRefunds, OlderCopy
from wattline.plugin.onchain.payments import Onchain
from wattline.plugin.outlet import OutletLoop
from wattline.plugin.outlet_state import Condition
from wattline.plugin.receipts import Receipts
from wattline.plugin.requests import CableRequests, Identity
from wattline.plugin.reservations import Reservations
from wattline.plugin.sessions import Sessions
from wattline.plugin.settings import SocketSettings
from wattline.plugin.statements import Statements
from wattline.plugin.streams import Streams
from wattline.plugin.tariffs import PriceList
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
        signer, ready, reservations = TrustingSigner(), threading.Event(), Reservations()
        self.live = live = Sessions(self.ledger)
        streams = Streams(lambda session_id: live.post(session_id, CableLost()))
        prices = PriceList(self.ledger, settings)
        statements = Statements(settings, live, reservations, streams)
        wallet = NoChannels()
        copy = self.copy = OlderCopy(self.ledger, notes or KeptNotes(), wallet.forgets_sent_after_s)
        copy.look()
        receipts = Receipts(self.ledger, signer, SOCKET, copy)
        self.seller = SmartSocket(self.ledger, live, prices, statements, receipts, streams, reservations, ready, copy)
        bookkeeper = JournalReader(NoJournal(), self.ledger, self.seller, 1.0)
        self.onchain = Onchain(
            settings.onchain, SOCKET, "regtest", self.ledger, chain, funds, signer, self.seller, copy
        )
        payer = Payer(wallet, NotedRefunds(self.ledger.outgoing, copy))
        self._settlement = SessionCloser(
            self.seller, payer, self.ledger, reservations, bookkeeper, 10.0, 60.0, copy, self.onchain
        )
        self.outlets = {outlet_id: self._outlet(outlet_id, reservations) for outlet_id in OUTLETS}
        self.seller.furnish(list(self.outlets.values()), self._settlement)
        self.reception = CableRequests(
            settings,
            Identity(SOCKET, "regtest", bytes(32)),
            signer,
            self.ledger,
            live,
            self.outlets,
            prices,
            statements,
            receipts,
            streams,
            ready,
            self.onchain.desk,
        )
        self._ready = ready

    def __enter__(self) -> Self:
        records = self.ledger.live_sessions()
        for outlet in self.outlets.values():
            outlet.start()
        for record in records:
            self.seller.restore(record)
        self._settlement.start()
        self.onchain.start()
        self._ready.set()
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
        self._settlement.stop()
        self.ledger.close()

    # What there is to see.

    def session(self, session_id: str) -> Session:
        """As it stands, live or over."""
        record = self.live.record(session_id)
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
        return not self.seller.is_served(session_id) and self.ledger.receipt(session_id) is not None

    def credited_sat(self, session_id: str) -> int:
        """What the session's account counts: there is no other credit than the chain's."""
        credited_msat = self.session(session_id).account.credited_msat
        assert credited_msat % MSAT_PER_SAT == 0
        return credited_msat // MSAT_PER_SAT

    def is_relay_closed(self, outlet_id: str = "A1") -> bool:
        return self.hardware[outlet_id].is_closed

    def _measured(self) -> bool:
        return all(outlet.view.condition is not Condition.STARTING for outlet in self.outlets.values())

    def _outlet(self, outlet_id: str, reservations: Reservations) -> OutletLoop:
        hardware = self.hardware[outlet_id]
        return OutletLoop(outlet_id, METER_INTERVAL_MS, lambda: hardware, hardware, self.seller, reservations)


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
