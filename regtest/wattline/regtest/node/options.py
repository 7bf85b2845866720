"""lightningd's command line, as far as the harness uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = frozenset(
    {
        "addr",
        "alias",
        "allow-deprecated-apis",
        "autoclean-cycle",
        "autoclean-paidinvoices-age",
        "autoconnect-seeker-peers",
        "bitcoin-cli",
        "bitcoin-datadir",
        "bitcoin-rpcport",
        "conf",
        "dev-allow-localhost",
        "dev-bitcoind-poll",
        "dev-fast-gossip",
        "dev-fast-reconnect",
        "developer",
        "disable-dns",
        "disable-plugin",
        "fee-base",
        "fee-per-satoshi",
        "lightning-dir",
        "log-file",
        "log-level",
        "network",
        "plugin",
        "practice-chain",
        "practice-gossip",
    }
)


class OptionError(Exception):
    """A command line that lightningd would not start with."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was given: each option's values in their order; an option that stands alone has ``""``."""

    values: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Options:
        """Raises OptionError for what is no option."""
        values: dict[str, list[str]] = {}
        for argument in arguments:
            if not argument.startswith("--"):
                raise OptionError(f"{argument}: not an option")
            name, _, value = argument[2:].partition("=")
            values.setdefault(name, []).append(value)
        return cls(values)

    def text(self, name: str, default: str = "") -> str:
        return self.values.get(name, [default])[-1]

    def all(self, name: str) -> list[str]:
        return self.values.get(name, [])

    def is_disabled(self, plugin: str) -> bool:
        """Whether a plugin of lightningd's own was not to be started."""
        return plugin in self.all("disable-plugin")

    def number(self, name: str, default: int) -> int:
        try:
            return int(self.text(name, str(default)))
        except ValueError:
            raise OptionError(f"--{name}: '{self.text(name)}' is not a number") from None

    def path(self, name: str) -> Path:
        if name not in self.values:
            raise OptionError(f"--{name} is missing")
        return Path(self.text(name))

    def check(self, of_plugins: Sequence[str]) -> None:
        """Raises OptionError for an option that neither the node nor a plugin knows."""
        for name in self.values:
            if name not in KNOWN and name not in of_plugins:
                raise OptionError(f"--{name}: unrecognized option")
