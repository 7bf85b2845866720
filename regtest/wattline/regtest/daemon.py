"""A child process that is a server: started in its own session, followed, and ended by its process id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from wattline.core.errors import StopError
from wattline.regtest.waiting import DeadlineError, wait_until

STOP_TIMEOUT_S = 30.0
CHILDREN_TIMEOUT_S = 5.0


class DaemonDiedError(StopError):
    """The process ended although nobody asked it to; the message carries the end of its log."""


class Daemon:
    """One process. It has its own session, so that Ctrl-C at the terminal reaches us first and we end it in order."""

    def __init__(self, name: str, command: Sequence[str], log_path: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._sessions: list[int] = []

    @property
    def pid(self) -> int:
        """The process id. Raises StopError when it is not running."""
        if self._process is None or self._process.poll() is not None:
            raise StopError("not_running", f"{self.name} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; what it prints is appended to the log. Raises StopError when it cannot be run or already runs."""
        if self.is_running:
            raise StopError("already_running", f"{self.name} is running already (pid {self.pid})")
        with self.log_path.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    cwd=self.log_path.parent,
                    start_new_session=True,
                )
            except OSError as error:
                raise StopError("cannot_start", f"{self.name} cannot be started: {error}") from error
        self._sessions.append(self._process.pid)

    def set_command(self, command: Sequence[str]) -> None:
        """Change the command line for the next start."""
        self._command = list(command)

    def check(self) -> None:
        """Raise DaemonDiedError, with the end of the log, when it should be running and is not."""
        if self._process is not None and self._process.poll() is not None:
            raise DaemonDiedError(
                "daemon_died",
                f"{self.name} ended with status {self._process.returncode}; the end of {self.log_path}:\n"
                + self.log_tail(20),
            )

    def terminate(self) -> None:
        """Ask it to end (SIGTERM) without waiting, so that several can end at the same time."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to end and wait; SIGKILL to it and its children when it does not within ``timeout_s``."""
        self.terminate()
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                # It still holds its process id, so the group of that id is its own and nobody else's.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL to this process alone, as a crash: its children find out by themselves. Waits for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def close(self, children_timeout_s: float = CHILDREN_TIMEOUT_S) -> None:
        """Stop it, then see to it that what it started in its session (subdaemons, plugins) is gone too, also after a
        ``kill``: wait for their own end, and SIGKILL to those that stay longer than ``children_timeout_s``."""
        self.stop()
        for session in self._sessions:
            try:
                wait_until(f"the children of {self.name} to end", partial(_is_empty, session), children_timeout_s)
            except DeadlineError:
                for pid in _members(session):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        self._sessions.clear()

    def log_tail(self, lines: int) -> str:
        """The last ``lines`` lines of the log."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _is_empty(session: int) -> bool:
    return not _members(session)


def _members(session: int) -> list[int]:
    """The processes of a session whose leader we started and reaped (proc(5), field 6 of ``stat``).

    The kernel gives a session's number to nobody else while it has members; if a process of that number is alive, the
    session was empty and the number is a stranger's now.
    """
    if Path(f"/proc/{session}").exists():
        return []
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The second field is the command in parentheses and may itself hold spaces and parentheses.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def free_port() -> int:
    """A TCP port of loopback that is free now and that the kernel hands to nobody else for a minute.

    The closed connection leaves it in TIME_WAIT: not given out as an ephemeral port, but a server that sets
    SO_REUSEADDR, as bitcoind and lightningd do, may bind it.
    """
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        address = server.getsockname()
        with socket.create_connection(address):
            accepted, _ = server.accept()
            accepted.close()
        return int(address[1])
