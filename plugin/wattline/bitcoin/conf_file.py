"""bitcoin.conf, as far as a client of bitcoind needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from wattline.errors import UsageError
from wattline.settings import read_text

NAME = "bitcoin.conf"


class ConfFile:
    """The settings for one network. Source: bitcoind's src/common/config.cpp and src/common/settings.cpp: what stands
    in the network's section (or as ``regtest.key=``) goes before what stands above all sections, and of several lines
    the first counts."""

    def __init__(self, lines: Iterator[tuple[str, str]], section: str) -> None:
        self._of_network: dict[str, str] = {}
        self._of_all: dict[str, str] = {}
        for key, value in lines:
            if key.startswith(f"{section}."):
                self._of_network.setdefault(key.removeprefix(f"{section}."), value)
            elif "." not in key:
                self._of_all.setdefault(key, value)
        self._is_main = section == "main"

    @classmethod
    def read(cls, directory: Path, section: str) -> Self:
        """From ``bitcoin.conf`` in ``directory`` and the files that it includes; without one there are no settings.
        Raises UsageError ``config_unreadable``."""
        path = directory / NAME
        if not path.is_file():
            return cls(iter(()), section)
        lines = list(_lines(path))
        included = [value for key, value in lines if key in ("includeconf", f"{section}.includeconf")]
        for name in included:
            lines.extend(_lines(directory / name))
        return cls(iter(lines), section)

    def get(self, key: str) -> str | None:
        return self._of_network.get(key, self._of_all.get(key))

    def get_of_network(self, key: str) -> str | None:
        """For settings such as ``rpcport`` that hold for the main network alone unless they stand in a section."""
        return self.get(key) if self._is_main else self._of_network.get(key)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Keys, with the section before them (``regtest.rpcport``), and values."""
    if not path.exists():
        raise UsageError("config_unreadable", f"{path}: cannot be read: no such file")
    section = ""
    for line in read_text(path).splitlines():
        content = line.partition("#")[0].strip()
        if content.startswith("[") and content.endswith("]"):
            section = f"{content[1:-1]}."
            continue
        key, is_setting, value = content.partition("=")
        if is_setting:
            yield section + key.strip().removeprefix("-"), value.strip()
