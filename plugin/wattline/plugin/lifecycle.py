"""The socket in lightningd's process, from load to unload.

Loading the plugin must be quick and must not need the node, so only configuration, ledger and certificate are looked at
there. The rest starts in a thread of its own; until the journal has been read to its end, payments that carry the
record are failed and cables are told to come back.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc

from wattline.core.bitcoin.bitcoind import Bitcoind
from wattline.core.bitcoin.bitcoind_rpc import locate
from wattline.core.bitcoin.chain import Chain
from wattline.core.clock import Clock
from wattline.core.errors import RetryError, StopError, UsageError, WattlineError
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.notes import CoreLightningNotes
from wattline.core.ownership import ForeignFile, check_folder
from wattline.device.controller.client import guard_for
from wattline.device.controller.plugin_starter import process_start_time
from wattline.device.controller.settings import GUARD_SOCKET, GuardSettings, LightningdSettings
from wattline.device.meters.opening import open_meter
from wattline.plugin.app import App, NodeParts, build
from wattline.plugin.certificate import Certificate, Identity, load_or_make
from wattline.plugin.outlet_hardware import GuardedRelays, OutletParts
from wattline.plugin.report import Json
from wattline.plugin.service import ChargingService, serve
from wattline.plugin.settings import SocketSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

AUTOCLEAN_SAFE_S = 86_400


@dataclass(frozen=True, slots=True)
class Loaded:
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


def load(settings: SocketSettings, config: Path, directory: Path, rpc_path: Path, listen: str) -> Loaded:
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
    return Loaded(settings, config, directory, rpc_path, listen, ledger, certificate)


class Lifecycle:
    """The socket from load to unload."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self._app: App | None = None
        self._relays: GuardedRelays | None = None
        self._server: grpc.Server | None = None
        self._stopping = threading.Event()
        self._failure: WattlineError | None = None

    def start(self, loaded: Loaded) -> None:
        """Returns at once."""
        self._loaded = loaded
        threading.Thread(target=self._start, args=(loaded,), name="starter", daemon=True).start()

    def stop(self) -> None:
        """Every relay opens, cables are told to come back, the ledger is closed. The sessions stay in it."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        app = self._app
        if app is not None:
            app.leave()
        if self._relays is not None:
            self._relays.bye()
        if app is not None:
            app.send_cables_away()
        if self._server is not None:
            self._server.stop(grace=1.0).wait(2.0)
        if app is not None:
            app.stop()
        if self._loaded is not None:
            self._loaded.ledger.close()

    # What the hook and the RPC methods work on.

    @property
    def app_if_built(self) -> App | None:
        """From when its sessions are taken up."""
        return self._app

    @property
    def app(self) -> App:
        """Raises WattlineError while there is none."""
        if self._app is None:
            raise self._failure or RetryError("starting", "the socket is starting; see wattline-status")
        return self._app

    @property
    def running_app(self) -> App:
        """Raises WattlineError while it sells nothing."""
        if self._app is None or not self._app.ready.is_set():
            raise self._failure or RetryError("starting", "the socket is starting; see wattline-status")
        return self._app

    def paid(self, payment_hash: str, amount_msat: int) -> None:
        """lightningd says that a keysend was paid."""
        if self._app is None:
            return
        session_id = self._app.crediting.paid(payment_hash, amount_msat)
        if session_id is not None:
            self._app.journal.told(session_id, payment_hash, amount_msat)
        self._app.journal.wake()

    def status(self) -> Json:
        """Also answers when the socket failed to start."""
        failure = self._failure
        status = self._app.report.status() if self._app is not None else {"state": "starting"}
        if failure is not None:
            status |= {"state": "failed", "code": failure.code, "message": failure.message}
        return status

    # The start, in a thread of its own.

    def _start(self, loaded: Loaded) -> None:
        try:
            self._open(loaded)
        except WattlineError as error:
            self._failure = error
            log.error("the socket cannot start: %s: %s", error.code, error.message)
        except Exception:
            self._failure = StopError("internal_error", "the socket cannot start: internal error, see the log")
            log.exception("the socket cannot start")

    def _open(self, loaded: Loaded) -> None:
        settings = loaded.settings
        node = CoreLightning(loaded.rpc_path)
        info = self._patiently(node.check_version)
        self._warn_of_autoclean(node)
        relays = self._relays = GuardedRelays(lambda: guard_for(_guard_settings(loaded)))
        self._patiently(relays.start)
        identity = Identity(info.node_id, info.network, loaded.certificate.sha256, loaded.listen)
        funds = CoreLightningFunds(node.rpc)
        parts = NodeParts(identity, node, node, node, CoreLightningNotes(node.rpc), funds)
        chain = self._chain(loaded, funds, info.network)
        app = build(settings, loaded.ledger, parts, chain, _outlets(settings, relays), Clock())
        self._patiently(app.older_copy.look)
        self._app = app
        app.take_up()
        self._patiently(app.journal.read_to_end)
        app.start()
        self._server = serve(ChargingService(app.requests), loaded.listen, loaded.certificate)
        # Last, so that nobody is told that the socket runs before cables can reach it.
        app.ready.set()
        log.info("selling from %d outlet(s) on %s", len(settings.outlet), loaded.listen)

    def _chain(self, loaded: Loaded, funds: CoreLightningFunds, network: str) -> Chain | None:
        """None when the socket does not take payments on it. What was handed over before the operator turned them off
        is followed to its end all the same."""
        if not loaded.settings.onchain.enabled and not loaded.ledger.unfinished_aggregates():
            return None
        options = self._patiently(funds.bitcoin_options)
        # Where bitcoind cannot be found, only what needs it is not for sale (`onchain_unavailable` says why).
        return Bitcoind(lambda: locate(loaded.settings.bitcoind, options, network))

    def _patiently(self, work: Callable[[], T]) -> T:
        """Until the node answers. Raises what is not worth waiting for."""
        while True:
            try:
                return work()
            except RetryError as error:
                log.info("the start waits: %s", error)
                if self._stopping.wait(0.5):
                    raise

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


def _outlets(settings: SocketSettings, relays: GuardedRelays) -> Mapping[str, OutletParts]:
    return {
        outlet.outlet_id: OutletParts(
            partial(open_meter, outlet.meter, outlet.max_power_w * 1000),
            relays,
            outlet.min_voltage_mv,
            outlet.meter_before_relay,
        )
        for outlet in settings.outlet
    }


def _guard_settings(loaded: Loaded) -> GuardSettings:
    lightningd = os.getppid()
    return GuardSettings(
        socket=str(loaded.home / GUARD_SOCKET),
        log=str(loaded.home / "guard.log"),
        relays={outlet.outlet_id: outlet.relay for outlet in loaded.settings.outlet},
        lightningd=LightningdSettings(
            pid=lightningd,
            start_time=process_start_time(lightningd) or 0,
            rpc_path=str(loaded.rpc_path),
            plugin=str(Path(sys.argv[0]).absolute()),
            options={"wattline-config": str(loaded.config), "wattline-listen": loaded.listen},
            restart=loaded.settings.guard.restart_plugin,
        ),
    )


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
