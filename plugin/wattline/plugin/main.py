"""The plugin's executable: options, hook, notifications and methods registered with lightningd.

What the plugin's process needs of its surroundings: lightningd's pipe kept apart, logs in lightningd's log.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from pyln.client import Plugin
from pyln.client.plugin import PluginLogHandler

from wattline.core.errors import WattlineError
from wattline.core.settings import load_settings
from wattline.plugin.crediting import Crediting
from wattline.plugin.hook import PaymentHook, paid_keysend
from wattline.plugin.lifecycle import Lifecycle, load, parse_listen
from wattline.plugin.rpc import add_methods
from wattline.plugin.settings import SocketSettings

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
    lifecycle = Lifecycle()
    _register(plugin, lifecycle)
    plugin.run()
    _leave(lifecycle)


def _register(plugin: Plugin, lifecycle: Lifecycle) -> None:
    plugin.add_option(
        "wattline-config",
        DEFAULT_CONFIG,
        "wattline: the socket's configuration (TOML); absolute, or relative to the node's directory",
    )
    plugin.add_option("wattline-listen", DEFAULT_LISTEN, "wattline: host:port where cables are served (gRPC over TLS)")
    add_methods(plugin, lifecycle)
    plugin.add_hook(
        "htlc_accepted",
        PaymentHook(lambda: _crediting(lifecycle)).__call__,
        before=["keysend"],
    )

    def init(options: dict[str, Any], configuration: dict[str, Any], **_: Any) -> dict[str, Any]:
        directory = Path(configuration["lightning-dir"])
        config = directory / str(options["wattline-config"])
        try:
            listen = parse_listen(str(options["wattline-listen"]))
            settings = load_settings(config, SocketSettings)
            loaded = load(settings, config, directory, directory / configuration["rpc-file"], listen)
        except WattlineError as error:
            return {"disable": f"wattline: {error.code}: {error.message}"}
        lifecycle.start(loaded)
        return {}

    def on_invoice_payment(invoice_payment: dict[str, Any], **_: Any) -> None:
        paid = paid_keysend(invoice_payment)
        if paid is not None:
            lifecycle.paid(*paid)

    def on_shutdown(**_: Any) -> None:
        _leave(lifecycle)

    plugin.init()(init)
    plugin.add_subscription("invoice_payment", on_invoice_payment)
    plugin.add_subscription("shutdown", on_shutdown)


def _crediting(lifecycle: Lifecycle) -> Crediting | None:
    return lifecycle.app_if_built.crediting if lifecycle.app_if_built is not None else None


def _leave(lifecycle: Lifecycle) -> None:
    """Relays open first; then end at once: threads that wait for lightningd must not keep the process."""
    try:
        lifecycle.stop()
    finally:
        os._exit(0)


class WattlinePlugin(Plugin):  # type: ignore[misc]
    """A pyln plugin whose errors say what is wrong and no more: pyln puts a traceback into each of them."""

    def _write_locked(self, obj: dict[str, Any]) -> None:
        if isinstance(obj.get("error"), dict):
            obj = {**obj, "error": {key: value for key, value in obj["error"].items() if key != "traceback"}}
        super()._write_locked(obj)


def claim_stdout() -> TextIO:
    """Keep lightningd's pipe to ourselves: everybody else who writes to descriptor 1 (a library, a subprocess) writes
    to stderr instead, and children do not inherit the pipe."""
    sys.stdout.flush()
    private = os.dup(1)
    os.set_inheritable(private, False)
    os.dup2(2, 1)
    return os.fdopen(private, "w", encoding="utf-8")


def log_through(plugin: Plugin, level: int = logging.INFO) -> None:
    """Send this program's log records to lightningd's log."""
    handler = PluginLogHandler(plugin)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("wattline").setLevel(level)
