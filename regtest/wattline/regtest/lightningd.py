"""One real Core Lightning node on regtest: started, stopped, crashed and asked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyln.client import LightningRpc, RpcError

from wattline.core.errors import StopError
from wattline.core.lightning.cln import OLDEST_NAME, OLDEST_VERSION
from wattline.core.lightning.rpc import version_numbers
from wattline.regtest.chain import Chain
from wattline.regtest.daemon import Daemon, free_port
from wattline.regtest.waiting import wait_until

OptionValue = str | int | Path | bool | None | Sequence[str | Path]
"""True or None: the option stands alone; False: it is left out; a sequence: it is given once for each item."""

# Plugins that neither wattline nor its tests use; every one costs a process and time at start. cln-grpc would want one
# fixed port for all nodes.
_USELESS_PLUGINS = (
    "cln-grpc",
    "clnrest",
    "wss-proxy",
    "cln-bip353",
    "cln-currencyrate",
    "cln-renepay",
    "commando",
    "recklessrpc",
    "recover",
    "exposesecret",
    "funder",
)

XKEYSEND_SINCE = (26, 6)


@dataclass(frozen=True, slots=True)
class LightningdProgram:
    """A lightningd that can be run here."""

    path: Path
    version: tuple[int, int, int]
    """Year and month of the release, as in v26.06, and which one of them."""
    version_text: str

    def __post_init__(self) -> None:
        if self.version < OLDEST_VERSION:
            raise StopError("lightningd_old", f"{self.path} is {self.version_text}; {OLDEST_NAME} or newer is needed")


def find_lightningd() -> LightningdProgram:
    """The lightningd on PATH. Raises StopError when there is none or it is too old."""
    path = shutil.which("lightningd")
    if path is None:
        raise StopError(
            "lightningd_missing", f"lightningd is not on PATH; install Core Lightning {OLDEST_NAME} or newer"
        )
    result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    match = re.match(r"v?(\d+)\.(\d+)", result.stdout.strip())
    if result.returncode != 0 or match is None:
        raise StopError(
            "lightningd_broken", f"{path} --version says {result.stdout.strip() or result.stderr.strip()!r}"
        )
    text = result.stdout.strip()
    return LightningdProgram(Path(path), version_numbers(text), text)


class Node:
    """One lightningd with its own directory. Its node id is made from ``name``, so it is the same in every run.

    ``environment`` is what its process, and so its plugins, have besides this process's own."""

    def __init__(
        self,
        name: str,
        chain: Chain,
        directory: Path,
        options: Mapping[str, OptionValue],
        program: LightningdProgram | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name):
            raise StopError("node_name_invalid", f"node name {name!r}: lower-case letters, digits and hyphens only")
        self.name = name
        self.program = program or find_lightningd()
        self.lightning_dir = directory
        self.log_path = directory / "lightningd.log"
        self.rpc_path = directory / "regtest" / "lightning-rpc"
        self.port = free_port()
        self.node_id = ""
        """Hex; known once the node has answered for the first time."""
        self._chain = chain
        self._options = {**self._defaults(), **{key.replace("_", "-"): value for key, value in options.items()}}
        (directory / "regtest").mkdir(parents=True)
        secret = directory / "regtest" / "hsm_secret"
        secret.write_bytes(hashlib.sha256(f"wattline regtest {name}".encode()).digest())
        secret.chmod(0o400)
        # The plugins of a person's own may look for bitcoin-cli on PATH; lightningd's bcli is told where it is.
        path = f"{chain.programs.directory}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        inherited = {**os.environ, "PATH": path, **(environment or {})}
        self._daemon = Daemon(f"lightningd {name}", self._command(), self.log_path, inherited)

    @property
    def rpc(self) -> LightningRpc:
        """The node's JSON-RPC; it connects anew for every call, so it outlives restarts and may be used by threads."""
        return LightningRpc(str(self.rpc_path))

    @property
    def address(self) -> str:
        """``node_id@host:port``, as ``connect`` takes it."""
        return f"{self.node_id}@127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """lightningd's process id. Raises StopError when it is not running."""
        return self._daemon.pid

    @property
    def is_running(self) -> bool:
        return self._daemon.is_running

    def keysend(self, payee: Node, amount_msat: int, **more: Any) -> dict[str, Any]:
        """Pay ``payee`` by lightningd's own command, the newer one where there is one; ``more`` are its parameters.
        Raises RpcError when it fails."""
        command = "xkeysend" if self.program.version >= XKEYSEND_SINCE else "keysend"
        parameters = {"destination": payee.node_id, "amount_msat": amount_msat, **more}
        return dict(self.rpc.call(command, parameters))

    @property
    def blockheight(self) -> int:
        """The height that lightningd has processed."""
        return int(self.rpc.getinfo()["blockheight"])

    def launch(self) -> None:
        """Start the process without waiting, so that several can start at the same time; then ``wait_ready``."""
        # The last run's socket would refuse connections, and a started node would look like a dead one.
        self.rpc_path.unlink(missing_ok=True)
        self._daemon.start()

    def wait_ready(self) -> None:
        """Wait until it answers and has processed the chain's newest block. Raises DaemonDiedError, DeadlineError."""
        wait_until(f"{self.name} to answer", self._answers)
        self.wait_for_height(self._chain.height)

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        self.wait_ready()

    def stop(self) -> None:
        """End it in order (SIGTERM); returns when it is gone."""
        self._daemon.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash or a power cut of the process; its plugins find out by themselves."""
        self._daemon.kill()

    def restart(self) -> None:
        """Stop it in order and start it again with the same options."""
        self.stop()
        self.start()

    def terminate(self) -> None:
        """Ask it to end without waiting."""
        self._daemon.terminate()

    def close(self) -> None:
        """Stop it for good; nothing that it started is left."""
        self._daemon.close()

    def set_option(self, name: str, value: OptionValue) -> None:
        """Change an option of the command line for the next start."""
        self._options[name.replace("_", "-")] = value
        self._daemon.set_command(self._command())

    def start_plugin(self, path: Path | str, **options: str | int) -> None:
        """Start a plugin at run time (``plugin start``), with its options. Raises StopError when lightningd refuses."""
        values = {key.replace("_", "-"): value for key, value in options.items()}
        self._plugin("start", {"plugin": str(path), **values})

    def stop_plugin(self, path: Path | str) -> None:
        """Stop a plugin at run time (``plugin stop``); v26.06 kills it at once unless it subscribes to ``shutdown``."""
        self._plugin("stop", {"plugin": str(path)})

    def wait_for_height(self, height: int) -> None:
        """Wait until lightningd has processed the block at ``height``."""
        wait_until(f"{self.name} to reach block {height}", lambda: self._checked() and self.blockheight >= height)

    def wait_for_log(self, pattern: str, start: int = 0, timeout_s: float = 60.0) -> str:
        """The first line of the log, from byte ``start`` on, that ``pattern`` (a regular expression) is found in."""
        expression = re.compile(pattern)

        def search() -> str | None:
            with self.log_path.open("rb") as log:
                log.seek(start)
                lines = log.read().decode("utf-8", errors="replace").splitlines()
            return next((line for line in lines if expression.search(line)), None)

        return wait_until(f"{pattern!r} in the log of {self.name}", search, timeout_s)

    def log_tail(self, lines: int = 40) -> str:
        """The end of the log."""
        return self._daemon.log_tail(lines)

    def _plugin(self, subcommand: str, parameters: Mapping[str, Any]) -> None:
        try:
            self.rpc.call("plugin", {"subcommand": subcommand, **parameters})
        except RpcError as error:
            message = error.error.get("message", error) if isinstance(error.error, dict) else error
            raise StopError("plugin_refused", f"{self.name}: plugin {subcommand}: {message}") from error

    def _checked(self) -> bool:
        self._daemon.check()
        return True

    def _answers(self) -> bool:
        self._daemon.check()
        try:
            self.node_id = str(self.rpc.getinfo()["id"])
        except (OSError, RpcError, ValueError):
            # The socket is not there yet, or the node is still loading.
            return False
        return True

    def _defaults(self) -> dict[str, OptionValue]:
        return {
            "network": "regtest",
            "lightning-dir": self.lightning_dir,
            "addr": f"127.0.0.1:{self.port}",
            "alias": self.name,
            "log-level": "debug",
            "log-file": self.log_path,
            "bitcoin-cli": self._chain.programs.cli,
            "bitcoin-datadir": self._chain.directory,
            "bitcoin-rpcport": self._chain.rpc_port,
            "disable-dns": True,
            "dev-bitcoind-poll": 1,
            "dev-fast-gossip": True,
            "dev-fast-reconnect": True,
            "dev-allow-localhost": True,
            "disable-plugin": _USELESS_PLUGINS,
            # Otherwise nodes connect to each other by gossip, and a test's topology is not what it said.
            "autoconnect-seeker-peers": 0,
        }

    def _command(self) -> list[str]:
        # --developer must come before the dev- options, and a config file of the machine must not be read.
        command = [str(self.program.path), "--developer", f"--conf={self.lightning_dir / 'config'}"]
        (self.lightning_dir / "config").touch()
        for key, value in self._options.items():
            if value is False:
                continue
            if value is True or value is None:
                command.append(f"--{key}")
            elif isinstance(value, (str, int, Path)):
                command.append(f"--{key}={value}")
            else:
                command.extend(f"--{key}={item}" for item in value)
        return command
