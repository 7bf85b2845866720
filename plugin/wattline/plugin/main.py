"""The plugin's executable: options, hook, notifications and methods registered with lightningd."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from pyln.client import Plugin

from wattline.core.errors import WattlineError
from wattline.core.settings import load_settings
from wattline.plugin.address import parse_listen
from wattline.plugin.hook import PaymentHook, paid_keysend
from wattline.plugin.process import WattlinePlugin, claim_stdout, log_through
from wattline.plugin.rpc import add_methods
from wattline.plugin.settings import SocketSettings
from wattline.plugin.shop import Shop

DEFAULT_LISTEN = "127.0.0.1:9750"
DEFAULT_CONFIG = "wattline/socket.toml"


def main() -> None:
    """Run until lightningd says `shutdown` or is gone."""
    # lightningd lives on when its terminal is closed, if it has a log file; and so do we, as long as it does.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stdout = claim_stdout()
    plugin = WattlinePlugin(autopatch=False, dynamic=True)
    plugin.stdout = stdout
    log_through(plugin)
    shop = Shop()
    _register(plugin, shop)
    plugin.run()
    _leave(shop)


def _register(plugin: Plugin, shop: Shop) -> None:
    plugin.add_option(
        "wattline-config",
        DEFAULT_CONFIG,
        "wattline: the socket's configuration (TOML); absolute, or relative to the node's directory",
    )
    plugin.add_option("wattline-listen", DEFAULT_LISTEN, "wattline: host:port where cables are served (gRPC over TLS)")
    add_methods(plugin, shop)
    plugin.add_hook(
        "htlc_accepted",
        PaymentHook(shop.gate, shop.payment_refused).__call__,
        before=["keysend"],
    )

    def init(options: dict[str, Any], configuration: dict[str, Any], **_: Any) -> dict[str, Any]:
        directory = Path(configuration["lightning-dir"])
        config = directory / str(options["wattline-config"])
        try:
            listen = parse_listen(str(options["wattline-listen"]))
            settings = load_settings(config, SocketSettings)
            shop.prepare(settings, config, directory, directory / configuration["rpc-file"], listen)
        except WattlineError as error:
            return {"disable": f"wattline: {error.code}: {error.message}"}
        shop.start()
        return {}

    def on_invoice_payment(invoice_payment: dict[str, Any], **_: Any) -> None:
        paid = paid_keysend(invoice_payment)
        if paid is not None:
            shop.paid(*paid)

    def on_shutdown(**_: Any) -> None:
        _leave(shop)

    plugin.init()(init)
    plugin.add_subscription("invoice_payment", on_invoice_payment)
    plugin.add_subscription("shutdown", on_shutdown)


def _leave(shop: Shop) -> None:
    """Relays open first; then end at once: threads that wait for lightningd must not keep the process."""
    try:
        shop.stop()
    finally:
        os._exit(0)
