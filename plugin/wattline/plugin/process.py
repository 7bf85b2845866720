"""What the plugin's process needs of its surroundings: lightningd's pipe kept apart, logs in lightningd's log."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, TextIO

from pyln.client import Plugin
from pyln.client.plugin import PluginLogHandler


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
