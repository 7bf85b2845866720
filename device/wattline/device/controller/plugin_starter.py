"""When the guard starts the plugin again, and when it gives up.

Telling a process from another one that got its number later.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from wattline.device.controller.settings import LightningdSettings

log = logging.getLogger(__name__)


class Running(Protocol):
    """What is used of :class:`subprocess.Popen`."""

    def poll(self) -> int | None: ...


def run_revival(settings: LightningdSettings) -> Running:
    """A process that asks lightningd to start the plugin: it may take a minute, for which no relay must wait."""
    command = [sys.executable, "-P", "-m", "wattline.device.controller.revival", "--rpc", settings.rpc_path]
    command += ["--plugin", settings.plugin]
    for name, value in settings.options.items():
        command += ["--option", f"{name}={value}"]
    # Its output goes where the guard's goes.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


class PluginStarter:
    """Counts tries and waits between them; the clock is given, time passes in ``tick``."""

    def __init__(
        self,
        settings: LightningdSettings,
        clock_ms: Callable[[], int],
        run: Callable[[LightningdSettings], Running] = run_revival,
    ) -> None:
        self._settings = settings
        self._clock_ms = clock_ms
        self._run = run
        self._running: Running | None = None
        self._due_ms: int | None = None
        self._came_ms = 0
        self.tries = 0
        """Since a client last lived for long."""

    def client_came(self) -> None:
        self._due_ms = None
        self._came_ms = self._clock_ms()

    def client_vanished(self) -> None:
        """The client is gone without a goodbye."""
        if self._clock_ms() - self._came_ms >= self._settings.settled_s * 1000:
            self.tries = 0
        self._plan()

    def tick(self) -> None:
        """Do what is due. Call it a few times a second."""
        if self._running is not None:
            status = self._running.poll()
            if status is None:
                return
            self._running = None
            log.info("start of the plugin, try %d: %s", self.tries, "done" if status == 0 else "failed")
            if self._due_ms is not None:
                # Nobody has come meanwhile: wait anew, from now on.
                self._plan()
        if self._due_ms is None or self._clock_ms() < self._due_ms:
            return
        self.tries += 1
        log.warning("starting the plugin %s, try %d", self._settings.plugin, self.tries)
        self._running = self._run(self._settings)

    def _plan(self) -> None:
        delays = self._settings.restart_delays_s
        if not self._settings.restart:
            return
        if self.tries >= len(delays):
            log.error("the plugin does not come back after %d tries; giving up", self.tries)
            self._due_ms = None
        else:
            self._due_ms = self._clock_ms() + round(delays[self.tries] * 1000)


AFTER_NAME_STATE = 0
AFTER_NAME_START_TIME = 19


def process_start_time(pid: int) -> int | None:
    """When process ``pid`` started, in clock ticks since boot; None when there is none, or only its zombie.

    proc(5), /proc/pid/stat: field 3 is the state, field 22 the start time; the name before them may hold anything.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    if len(fields) <= AFTER_NAME_START_TIME or fields[AFTER_NAME_STATE] in ("Z", "X"):
        return None
    return int(fields[AFTER_NAME_START_TIME])


def is_running(pid: int, start_time: int) -> bool:
    """Whether the process that had this number and started at this time still runs."""
    return process_start_time(pid) == start_time
