"""Where bitcoind is: what ``[bitcoind]`` in socket.toml says, else what lightningd was told, else what bitcoin-cli
would find by itself (lightningd asks bitcoind through bitcoin-cli, so the same bitcoind is found)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, model_validator

from wattline.bitcoin.conf_file import ConfFile
from wattline.bitcoin.json_rpc import Access
from wattline.errors import UsageError
from wattline.settings import Settings

_HINT = "set url, and cookie or user and password, in [bitcoind] of socket.toml"

# Core Lightning's name of a network: bitcoind's port for RPC, its folder in the data directory, and its section of
# bitcoin.conf (src/chainparamsbase.cpp, src/util/chaintype.cpp).
_NETWORKS = {
    "bitcoin": (8332, "", "main"),
    "testnet": (18332, "testnet3", "test"),
    "testnet4": (48332, "testnet4", "testnet4"),
    "signet": (38332, "signet", "signet"),
    "regtest": (18443, "regtest", "regtest"),
}


class BitcoindSettings(Settings):
    """Where bitcoind is; what is left out is taken from lightningd's own options and from bitcoin.conf."""

    url: str | None = Field(default=None, description="Where bitcoind answers RPC, `http://host:port`.")
    user: str | None = Field(default=None, min_length=1, description="User for RPC, with `password`.")
    password: str | None = Field(default=None, min_length=1, description="Password for RPC, with `user`.")
    cookie: str | None = Field(
        default=None, min_length=1, description="Path of bitcoind's cookie file, instead of `user` and `password`."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together")
        if self.user is not None and self.cookie is not None:
            raise ValueError("either cookie, or user and password")
        if self.url is not None and not _is_http(_split(self.url)):
            # The value itself is not repeated: it may hold a password.
            raise ValueError("url: must be http://host:port (user and password have keys of their own)")
        return self


def locate(settings: BitcoindSettings, options: Mapping[str, str], network: str, home: Path | None = None) -> Access:
    """How to reach the bitcoind of lightningd's ``network``.

    ``options`` are lightningd's ``bitcoin-…`` options; ``home`` is the user's home directory, where bitcoind's data
    directory is by default. Nothing is asked over the network. Raises UsageError ``bitcoind_unknown`` when there is
    nothing to go by, ``config_unreadable`` for a bitcoin.conf that cannot be read.
    """
    if network not in _NETWORKS:
        raise UsageError("bitcoind_unknown", f"there is no bitcoind for network {network}")
    default_port, folder, section = _NETWORKS[network]
    directory = _path(options.get("bitcoin-datadir")) or (home or Path.home()) / ".bitcoin"
    conf = ConfFile.read(directory, section)
    if "bitcoin-datadir" not in options and (elsewhere := conf.get("datadir")) is not None:
        directory = Path(elsewhere)
    host, port = _host_and_port(settings, options, conf, default_port)
    if settings.password is not None and settings.user is not None:
        return Access(host, port, user=settings.user, password=settings.password)
    if settings.cookie is not None:
        return Access(host, port, cookie=Path(settings.cookie).expanduser())
    if password := options.get("bitcoin-rpcpassword") or conf.get("rpcpassword"):
        return Access(host, port, user=options.get("bitcoin-rpcuser") or conf.get("rpcuser") or "", password=password)
    if not directory.is_dir():
        raise UsageError(
            "bitcoind_unknown",
            f"no way to a bitcoind: there is neither a password for its RPC nor its directory {directory}; {_HINT}",
        )
    # Relative to the network's folder (src/rpc/request.cpp, GetAuthCookieFile).
    return Access(host, port, cookie=directory / folder / (conf.get("rpccookiefile") or ".cookie"))


def _host_and_port(
    settings: BitcoindSettings, options: Mapping[str, str], conf: ConfFile, default_port: int
) -> tuple[str, int]:
    if settings.url is not None:
        url = _split(settings.url)
        assert url is not None
        return url.hostname or "", url.port or default_port
    # As bitcoin-cli does it: a port in rpcconnect counts only when rpcport says nothing.
    connect = options.get("bitcoin-rpcconnect") or conf.get("rpcconnect") or "127.0.0.1"
    bare_ipv6 = connect.count(":") > 1 and not connect.startswith("[")
    place = _split(f"//[{connect}]" if bare_ipv6 else f"//{connect}")
    if place is None or not place.hostname:
        raise UsageError("bitcoind_unknown", f"rpcconnect={connect} names no host; {_HINT}")
    port = options.get("bitcoin-rpcport") or conf.get_of_network("rpcport") or str(place.port or default_port)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError("bitcoind_unknown", f"rpcport={port} is no port; {_HINT}")
    return place.hostname, int(port)


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _is_http(url: SplitResult | None) -> bool:
    return (
        url is not None
        and url.scheme == "http"
        and bool(url.hostname)
        and url.username is None
        and url.path in ("", "/")
        and not url.query
        and not url.fragment
    )


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None
