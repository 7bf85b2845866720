"""The running socket, put together from its parts, and its start and end.

Loading the plugin must be quick and must not need the node, so only configuration, ledger and certificate are looked at
there. The rest starts in a thread of its own; until the journal has been read to its end, payments that carry the
record are failed and cables are told to come back.

The address on which cables are served.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from wattline.core.bitcoin.bitcoind import Bitcoind
from wattline.core.bitcoin.bitcoind_rpc import locate
from wattline.core.clock import WallWatch, told
from wattline.core.errors import RetryError, StopError, UsageError, WattlineError
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.node import NodeInfo
from wattline.core.lightning.notes import CoreLightningNotes
from wattline.core.ownership import ForeignFile, check_folder
from wattline.core.payer import Payer
from wattline.core.session.event import CableLost
from wattline.device.controller.client import guard_for
from wattline.device.controller.plugin_starter import process_start_time
from wattline.device.controller.settings import GUARD_SOCKET, GuardSettings, LightningdSettings
from wattline.device.meters.opening import open_meter
from wattline.device.meters.reading import Meter, MeterError
from wattline.plugin.certificate import Certificate, load_or_make
from wattline.plugin.closing import SessionCloser
from wattline.plugin.crediting import SmartSocket
from wattline.plugin.hook import Htlc, KeysendGate, Refuse
from wattline.plugin.journal import JournalReader
from wattline.plugin.older_copy import NotedRefunds, OlderCopy
from wattline.plugin.onchain.payments import Onchain
from wattline.plugin.outlet import OutletLoop
from wattline.plugin.outlet_hardware import GuardedRelays, RemovedRelay, SupplyWatch
from wattline.plugin.outlet_state import RelayControl
from wattline.plugin.preconditions import Preconditions
from wattline.plugin.receipts import Receipts
from wattline.plugin.report import Json, Report
from wattline.plugin.requests import CableRequests, Identity
from wattline.plugin.reservations import Reservations
from wattline.plugin.resolving import Resolving
from wattline.plugin.service import ChargingService, serve
from wattline.plugin.sessions import Sessions
from wattline.plugin.settings import OutletSettings, SocketSettings
from wattline.plugin.statements import Statements
from wattline.plugin.streams import Streams
from wattline.plugin.tariffs import PriceList

log = logging.getLogger(__name__)

T = TypeVar("T")

SAVE_INTERVAL_S = 1.0
FORGET_INTERVAL_S = 60.0
AUTOCLEAN_SAFE_S = 86_400


@dataclass(frozen=True, slots=True)
class Premises:
    """What is known when the plugin is loaded."""

    settings: SocketSettings
    config: Path
    directory: Path
    """Of the node; everything of ours lies in ``wattline/`` below it."""
    rpc_path: Path
    listen: str
    ledger: Ledger
    certificate: Certificate

    @property
    def home(self) -> Path:
        return self.directory / "wattline"


class Shop:
    """The socket from load to unload."""

    def __init__(self) -> None:
        self.reservations = Reservations()
        self.gate = KeysendGate(self, self.reservations)
        self._premises: Premises | None = None
        self._seller: SmartSocket | None = None
        self._live: Sessions | None = None
        self._report: Report | None = None
        self._resolving: Resolving | None = None
        self._bookkeeper: JournalReader | None = None
        self._settlement: SessionCloser | None = None
        self._onchain: Onchain | None = None
        self._preconditions: Preconditions | None = None
        self._holder: GuardedRelays | None = None
        self._outlets: list[OutletLoop] = []
        self._server: grpc.Server | None = None
        self._stopping = threading.Event()
        self._failure: WattlineError | None = None
        self._starter = threading.Thread(target=self._start, name="starter", daemon=True)

    # From load to unload.

    def prepare(self, settings: SocketSettings, config: Path, directory: Path, rpc_path: Path, listen: str) -> None:
        """Look at everything that needs no node. Raises WattlineError: the plugin cannot be loaded like this."""
        home = directory / "wattline"
        try:
            home.mkdir(mode=0o700, exist_ok=True)
            check_folder(home)
        except ForeignFile as error:
            raise StopError("home_unusable", f"{home}: {error.strerror}; allowed: mode 0700") from error
        except OSError as error:
            raise StopError("home_unusable", f"{home}: cannot be made: {error.strerror}") from error
        check_free(listen)
        url = settings.ledger.url
        ledger = open_ledger(url if "://" in url else config.parent / url)
        certificate = load_or_make(home, is_pinned=bool(ledger.live_sessions()))
        self._premises = Premises(settings, config, directory, rpc_path, listen, ledger, certificate)

    def start(self) -> None:
        self._starter.start()

    def stop(self) -> None:
        """Every relay opens, cables are told to come back, the ledger is closed. The sessions stay in it."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._settlement is not None:
            self._settlement.stop()  # an outlet that has stopped closes no books
        for outlet in self._outlets:
            outlet.leave()
        if self._holder is not None:
            self._holder.bye()
        if self._seller is not None:
            self._seller.shut_down()
        if self._server is not None:
            self._server.stop(grace=1.0).wait(2.0)
        for outlet in self._outlets:
            outlet.stop()
        if self._onchain is not None:
            self._onchain.stop()
        if self._preconditions is not None:
            self._preconditions.stop()
        if self._bookkeeper is not None:
            self._bookkeeper.stop()
        if self._live is not None:
            self._live.save_changed()
        if self._premises is not None:
            self._premises.ledger.close()

    # What the hook and the RPC methods ask for.

    def refusal(self, session_id: str, amount_msat: int, in_flight_msat: int) -> tuple[str, str] | None:
        """See SmartSocket.refusal."""
        if self._seller is None:
            return "starting", "the socket is starting and does not take payments yet"
        return self._seller.refusal(session_id, amount_msat, in_flight_msat)

    def outlet_id_of(self, session_id: str) -> str:
        return self._seller.outlet_id_of(session_id) if self._seller is not None else ""

    def was_received(self, payment_hash: str) -> bool:
        return self._seller is not None and self._seller.was_received(payment_hash)

    def payment_refused(self, htlc: Htlc, refuse: Refuse) -> None:
        if self._seller is not None:
            self._seller.payment_refused(htlc, refuse)

    def paid(self, payment_hash: str, amount_msat: int) -> None:
        """lightningd says that a keysend was paid."""
        session_id = self._seller.paid(payment_hash, amount_msat) if self._seller is not None else None
        if self._bookkeeper is not None:
            if session_id is not None:
                self._bookkeeper.told(session_id, payment_hash, amount_msat)
            self._bookkeeper.wake()

    @property
    def seller(self) -> SmartSocket:
        if self._seller is None or not self._seller.is_ready:
            raise self._failure or RetryError("starting", "the socket is starting; see wattline-status")
        return self._seller

    @property
    def report(self) -> Report:
        if self._report is None:
            raise self._failure or RetryError("starting", "the socket is starting; see wattline-status")
        return self._report

    @property
    def resolving(self) -> Resolving:
        if self._resolving is None:
            raise self._failure or RetryError("starting", "the socket is starting; see wattline-status")
        return self._resolving

    def status(self) -> Json:
        if self._report is None:
            failure = self._failure
            return (
                {"state": "failed", "code": failure.code, "message": failure.message}
                if failure
                else {"state": "starting"}
            )
        status = self._report.status()
        if self._failure is not None:
            status |= {"state": "failed", "code": self._failure.code, "message": self._failure.message}
        return status

    # The start, in a thread of its own.

    def _start(self) -> None:
        try:
            self._open_shop()
        except WattlineError as error:
            self._failure = error
            log.error("the socket cannot start: %s: %s", error.code, error.message)
        except Exception:
            self._failure = StopError("internal_error", "the socket cannot start: internal error, see the log")
            log.exception("the socket cannot start")

    def _open_shop(self) -> None:
        premises = self._premises
        assert premises is not None, "prepare() comes first"
        settings, ledger = premises.settings, premises.ledger
        node = CoreLightning(premises.rpc_path)
        info = self._patiently(node.check_version)
        self._warn_of_autoclean(node)
        self._holder = GuardedRelays(lambda: guard_for(self._guard_settings(premises)))
        self._patiently(self._holder.start)
        copy = OlderCopy(ledger, CoreLightningNotes(node.rpc), node.forgets_sent_after_s)
        self._patiently(copy.look)
        live = self._live = Sessions(ledger)
        prices = PriceList(ledger, settings)
        streams = Streams(lambda session_id: live.post(session_id, CableLost()))
        statements = Statements(settings, live, self.reservations, streams)
        receipts = Receipts(ledger, node, info.node_id, copy)
        ready = threading.Event()
        seller = SmartSocket(ledger, live, prices, statements, receipts, streams, self.reservations, ready, copy)
        bookkeeper = JournalReader(node, ledger, seller, settings.payment.journal_interval_s)
        payer = Payer(node, NotedRefunds(ledger.outgoing, copy))
        onchain = self._onchain = self._take_onchain(premises, info, node, seller, copy)
        settlement = SessionCloser(
            seller,
            payer,
            ledger,
            self.reservations,
            bookkeeper,
            settings.payment.drain_timeout_s,
            settings.payment.refund_retry_s,
            copy,
            onchain,
        )
        records = ledger.live_sessions()
        sold = {outlet.outlet_id: self._outlet(outlet, seller) for outlet in settings.outlet}
        gone = sorted({record.session.outlet_id for record in records} - sold.keys())
        self._outlets = [*sold.values()]
        self._outlets += [self._removed_outlet(outlet_id, seller) for outlet_id in gone]
        seller.furnish(self._outlets, settlement)
        self._seller, self._bookkeeper, self._settlement = seller, bookkeeper, settlement
        preconditions = self._preconditions = Preconditions(
            node, lambda: onchain.trouble if onchain is not None else ""
        )
        identity_shown = self._identity(info, premises)
        self._report = Report(
            seller, live, ledger, bookkeeper, identity_shown, copy, onchain, lambda: preconditions.problems
        )
        self._resolving = Resolving(ledger, copy, onchain, seller.settle_owed, payer=payer, hurry=settlement.hurry)
        for outlet in self._outlets:
            outlet.start()
        for record in records:
            log.info("session %s goes on (it was %s)", record.session.session_id, record.session.state)
            seller.restore(record)
        self._patiently(bookkeeper.read_to_end)
        bookkeeper.start()
        settlement.start()
        preconditions.look()
        preconditions.start()
        if onchain is not None:
            onchain.start()
        threading.Thread(target=self._save, name="saver", daemon=True).start()
        identity = Identity(info.node_id, info.network, premises.certificate.sha256)
        reception = CableRequests(
            settings,
            identity,
            node,
            ledger,
            live,
            sold,
            prices,
            statements,
            receipts,
            streams,
            ready,
            onchain.desk if onchain is not None and settings.onchain.enabled else None,
            takes_keysend=lambda: preconditions.takes_keysend,
        )
        self._server = serve(ChargingService(reception), premises.listen, premises.certificate)
        # Last, so that nobody is told that the socket runs before cables can reach it.
        ready.set()
        log.info("selling from %d outlet(s) on %s", len(settings.outlet), premises.listen)

    def _take_onchain(
        self, premises: Premises, info: NodeInfo, node: CoreLightning, seller: SmartSocket, copy: OlderCopy
    ) -> Onchain | None:
        """Payments on the chain; None when the socket does not take them. What was handed over before the operator
        turned them off is followed to its end all the same."""
        settings, ledger = premises.settings.onchain, premises.ledger
        if not settings.enabled and not ledger.unfinished_aggregates():
            return None
        funds = CoreLightningFunds(node.rpc)
        options = self._patiently(funds.bitcoin_options)
        # Where bitcoind cannot be found, only what needs it is not for sale (`onchain_unavailable` says why).
        chain = Bitcoind(lambda: locate(premises.settings.bitcoind, options, info.network))
        return Onchain(settings, info.node_id, info.network, ledger, chain, funds, node, seller, copy)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Until the node answers. Raises what is not worth waiting for."""
        while True:
            try:
                return work()
            except RetryError as error:
                log.info("the start waits: %s", error)
                if self._stopping.wait(0.5):
                    raise

    def _save(self) -> None:
        wall = WallWatch()
        forgotten = 0.0
        while not self._stopping.wait(SAVE_INTERVAL_S):
            jump_s = wall.look()
            if jump_s:
                log.warning("%s", told(jump_s))
            if self._live is not None:
                try:
                    self._live.save_changed()
                    if time.monotonic() - forgotten > FORGET_INTERVAL_S:
                        forgotten = time.monotonic()
                        self._live.forget_unpaid()
                except WattlineError as error:
                    log.error("the sessions cannot be saved: %s", error)
                except Exception:
                    log.exception("the sessions cannot be saved")

    def _outlet(self, outlet: OutletSettings, seller: SmartSocket) -> OutletLoop:
        def open_trusted() -> Meter:
            return open_meter(outlet.meter, outlet.max_power_w * 1000)

        supply = SupplyWatch(outlet.min_voltage_mv, is_before_relay=outlet.meter_before_relay)
        return self._loop(outlet.outlet_id, open_trusted, self._relays(), seller, supply)

    def _removed_outlet(self, outlet_id: str, seller: SmartSocket) -> OutletLoop:
        """Ends a session whose outlet is no longer configured."""

        def no_meter() -> Meter:
            raise MeterError("outlet_removed", f"outlet {outlet_id} is no longer in the configuration")

        return self._loop(outlet_id, no_meter, RemovedRelay(), seller, SupplyWatch())

    def _loop(
        self, outlet_id: str, meter: Callable[[], Meter], holder: RelayControl, seller: SmartSocket, supply: SupplyWatch
    ) -> OutletLoop:
        assert self._premises is not None
        interval_ms = self._premises.settings.session.meter_interval_ms
        return OutletLoop(outlet_id, interval_ms, meter, holder, seller, self.reservations, supply)

    def _relays(self) -> GuardedRelays:
        assert self._holder is not None
        return self._holder

    def _guard_settings(self, premises: Premises) -> GuardSettings:
        lightningd = os.getppid()
        return GuardSettings(
            socket=str(premises.home / GUARD_SOCKET),
            log=str(premises.home / "guard.log"),
            relays={outlet.outlet_id: outlet.relay for outlet in premises.settings.outlet},
            lightningd=LightningdSettings(
                pid=lightningd,
                start_time=process_start_time(lightningd) or 0,
                rpc_path=str(premises.rpc_path),
                plugin=str(Path(sys.argv[0]).absolute()),
                options={"wattline-config": str(premises.config), "wattline-listen": premises.listen},
                restart=premises.settings.guard.restart_plugin,
            ),
        )

    def _warn_of_autoclean(self, node: CoreLightning) -> None:
        pays_age_s = self._patiently(node.forgets_sent_after_s)
        if pays_age_s is not None and pays_age_s < AUTOCLEAN_SAFE_S:
            log.warning(
                "autoclean deletes succeeded pays after %d s, but they tell whether a refund in doubt was paid; "
                "let it wait a day (%d s) at least",
                pays_age_s,
                AUTOCLEAN_SAFE_S,
            )
        age_s = self._patiently(node.autoclean_paid_age_s)
        if age_s is not None and age_s < AUTOCLEAN_SAFE_S:
            log.warning(
                "autoclean deletes paid invoices after %d s, but they are the journal of what cables paid; "
                "let it wait a day (%d s) at least",
                age_s,
                AUTOCLEAN_SAFE_S,
            )

    def _identity(self, info: NodeInfo, premises: Premises) -> Json:
        return {
            "node_id": info.node_id,
            "network": info.network,
            "listen": premises.listen,
            "address": f"{info.node_id}@{premises.listen}",
            "certificate_sha256": premises.certificate.sha256.hex(),
        }


def parse_listen(value: str) -> str:
    """``host:port`` checked; an IPv6 address stands in brackets. Raises UsageError."""
    host, separator, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UsageError("listen_invalid", f"wattline-listen: host:port with a port from 1 to 65535, not {value!r}")
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        if host != "localhost":
            raise UsageError(
                "listen_invalid", f"wattline-listen: {host!r} is not an IP address (0.0.0.0 or [::] for all of them)"
            ) from None
        host, version = "127.0.0.1", 4
    return f"[{host}]:{port}" if version == 6 else f"{host}:{port}"


def check_free(address: str) -> None:
    """Raises UsageError when nobody could listen on ``address``."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise UsageError("port_taken", f"wattline-listen: cannot listen on {address}: {error.strerror}") from error
