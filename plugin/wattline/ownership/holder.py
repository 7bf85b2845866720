"""Who holds a lock, as the kernel says: nobody can pass for another."""

from __future__ import annotations

import datetime
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from wattline.ownership.files import user_name

LOCKS = Path("/proc/locks")
LONGEST_COMMAND = 80
AFTER_NAME_START_TIME = 19


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    uid: int
    command: str
    """Its command line: shortened, and without what a terminal would obey."""
    since: str
    """When it started, UTC; empty when that is hidden."""

    def __str__(self) -> str:
        text = f"process {self.pid} of user {user_name(self.uid)}"
        if self.command:
            text += f" ({self.command})"
        return f"{text}, running since {self.since}" if self.since else text


def holder_of(descriptor: int) -> Holder | None:
    """The process with the lock (flock) on an open file; None when nobody has it, or the kernel does not show whom: in
    a container the processes outside of it."""
    found = os.fstat(descriptor)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    # proc(5), /proc/locks: "1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF"; who only waits has "->" after the number.
    held = re.compile(rf"^\d+: FLOCK +\w+ +\w+ +(\d+) +{device}:{found.st_ino} ", re.MULTILINE)
    try:
        line = held.search(LOCKS.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return None if line is None else _told(int(line[1]))


def _told(pid: int) -> Holder | None:
    place = Path(f"/proc/{pid}")
    try:
        uid = place.stat().st_uid
        words = (place / "cmdline").read_bytes().split(b"\0")
        after_name = (place / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        start = int(after_name[AFTER_NAME_START_TIME])
    except (OSError, ValueError, IndexError):
        return None
    return Holder(pid, uid, _readable(b" ".join(words).decode("utf-8", "replace")), _since(start))


def _readable(command: str) -> str:
    """It is another user's text, and goes to a terminal and into a log."""
    shown = "".join(
        character if character.isascii() and character.isprintable() else "?" for character in command.strip()
    )
    return shown if len(shown) <= LONGEST_COMMAND else f"{shown[: LONGEST_COMMAND - 3]}..."


def _since(start_ticks: int) -> str:
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
    started = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s)
    return started.strftime("%Y-%m-%d %H:%M:%S UTC")
