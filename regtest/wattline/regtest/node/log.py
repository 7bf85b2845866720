"""The node's log, in lightningd's format (lightningd/log.c)."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

LEVELS = {"io": 0, "trace": 0, "debug": 1, "info": 2, "unusual": 3, "warn": 3, "broken": 4, "error": 4}
_NAMES = {0: "TRACE  ", 1: "DEBUG  ", 2: "INFO   ", 3: "UNUSUAL", 4: "**BROKEN**"}


class Log:
    """Lines with a time, a level and who speaks; to a file, or to stdout."""

    def __init__(self, path: Path | None, level: str) -> None:
        self._out: TextIO = path.open("a", encoding="utf-8", buffering=1) if path is not None else sys.stdout
        self._lowest = LEVELS.get(level, 2)

    def write(self, level: str, who: str, message: str) -> None:
        number = LEVELS.get(level, 2)
        if number >= self._lowest:
            for line in message.splitlines() or [""]:
                self._out.write(f"{timestamp()} {_NAMES[number]} {who}: {line}\n")

    def debug(self, message: str) -> None:
        self.write("debug", "lightningd", message)

    def info(self, message: str) -> None:
        self.write("info", "lightningd", message)

    def unusual(self, message: str) -> None:
        self.write("unusual", "lightningd", message)

    def broken(self, message: str) -> None:
        self.write("broken", "lightningd", message)


def timestamp() -> str:
    """Now, as lightningd writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
