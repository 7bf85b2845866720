"""Asking lightningd to start the plugin: ``python -m wattline.device.controller.revival``, run by the guard.

A process of its own, because lightningd answers only when the plugin has come up (or after 60 s), and the guard has
leases to mind meanwhile. Exit status 0: it runs, 1: it does not.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any, Protocol

from pyln.client import LightningRpc, RpcError

ANSWER_TIMEOUT_S = 120


class Rpc(Protocol):
    """What is used of :class:`pyln.client.LightningRpc`."""

    def call(self, method: str, payload: dict[str, Any], /) -> dict[str, Any]: ...


def revive(rpc: Rpc, plugin: str, options: dict[str, str]) -> str:
    """Start ``plugin`` unless it runs; what was done, for the log. Raises RpcError, OSError.

    Options are passed as parameters of their own (lightning-plugin(7), ``start``). The list of running plugins has
    their canonical paths.
    """
    path = str(Path(plugin).resolve())
    listed = rpc.call("plugin", {"subcommand": "list"})["plugins"]
    if any(str(Path(item["name"]).resolve()) == path for item in listed):
        return f"{plugin} runs already"
    rpc.call("plugin", {"subcommand": "start", "plugin": plugin, **options})
    return f"{plugin} was started"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rpc", required=True)
    parser.add_argument("--plugin", required=True)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    # lightningd answers within a minute; one that hangs must not keep the guard from trying again.
    signal.alarm(ANSWER_TIMEOUT_S)
    options = dict(option.split("=", 1) for option in arguments.option)
    try:
        done = revive(LightningRpc(arguments.rpc), arguments.plugin, options)
    except (RpcError, OSError) as error:
        sys.stderr.write(f"{arguments.plugin} could not be started: {error}\n")
        return 1
    sys.stderr.write(f"{done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
