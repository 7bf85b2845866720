"""Telling a process from another one that got its number later."""

from __future__ import annotations

from pathlib import Path

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
