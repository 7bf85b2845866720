"""bitcoind's JSON-RPC over HTTP: connections that stay open, a deadline, every error in wattline's own terms.

Every call that wattline makes may be made twice without harm; that is why one that was lost with a connection that had
grown old is simply made again.

bitcoin.conf, as far as a client of bitcoind needs it.

Where bitcoind is: what ``[bitcoind]`` in socket.toml says, else what lightningd was told, else what bitcoin-cli
would find by itself (lightningd asks bitcoind through bitcoin-cli, so the same bitcoind is found).
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, model_validator

from wattline.core.bitcoin import checked_calls as gate
from wattline.core.bitcoin.chain import ChainRefused, ChainUnavailable
from wattline.core.errors import UsageError
from wattline.core.settings import Settings, read_text
from wattline.core.text import printable

ANSWER_TIMEOUT_S = 60.0
"""How long bitcoind may be silent before it counts as unavailable: longer than it takes to connect a full block."""
CONNECTIONS_KEPT = 4
"""How many idle ones are kept; bitcoind serves 4 at a time by default (-rpcthreads)."""

_UNAUTHORIZED = 401
_FORBIDDEN = 403
_IN_WARMUP = -28
_WHAT_TO_DO = "set user and password, or cookie, in [bitcoind] of socket.toml"


@dataclass(frozen=True, slots=True)
class Access:
    """Where a bitcoind is, and how it knows us: by ``user`` and ``password``, else by its cookie file."""

    host: str
    port: int
    cookie: Path | None = None
    user: str = ""
    password: str = ""

    def __post_init__(self) -> None:
        if self.cookie is None and not self.password:
            raise ValueError("either a cookie or a password is needed")

    def __repr__(self) -> str:
        # Never the password: this may be logged.
        return f"Access({self.address}, {self.cookie or self.user})"

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def authorization(self) -> str:
        """The header's value. Raises ChainUnavailable while there is no cookie: bitcoind makes it when it starts and
        removes it when it ends; ChainRefused when it is not ours to read."""
        if self.password:
            secret = f"{self.user}:{self.password}".encode()
        else:
            assert self.cookie is not None
            try:
                secret = self.cookie.read_bytes()
            except PermissionError as error:
                raise ChainRefused(
                    "bitcoind_not_permitted",
                    f"{self.cookie}: {error.strerror}: let this user read it (rpccookieperms=group), or {_WHAT_TO_DO}",
                ) from error
            except OSError as error:
                raise ChainUnavailable(
                    "bitcoind_unavailable",
                    f"{self.cookie}: {error.strerror}: bitcoind is not running, or elsewhere ({_WHAT_TO_DO})",
                ) from error
        return "Basic " + base64.b64encode(secret).decode("ascii")


class BitcoindRpc:
    """Calls to one bitcoind. Thread-safe."""

    def __init__(self, access: Access | Callable[[], Access], answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """``access`` may be a way to find it (:func:`locate`), which is tried at each call until there is one: its
        UsageError is ChainRefused there, with the same code."""
        self._find_access = access
        self._answer_timeout_s = answer_timeout_s
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._authorization: str | None = None

    @property
    def access(self) -> Access:
        """Raises ChainRefused when there is nothing to go by."""
        if not isinstance(self._find_access, Access):
            try:
                self._find_access = self._find_access()
            except UsageError as error:
                raise ChainRefused(error.code, error.message) from error
        return self._find_access

    def call(self, method: str, *params: object) -> Any:
        """The result of ``method``; every number with a decimal point as Decimal, never as float.

        Raises ChainUnavailable when there is no answer or bitcoind is still starting, ChainRefused when the answer is
        an error or we are not let in, or with the code ``call_refused`` when a parameter is not one that bitcoind may
        be handed (:mod:`wattline.core.bitcoin.checked_calls`): nothing was sent then.
        """
        fault = gate.fault(method, params)
        if fault is not None:
            raise ChainRefused("call_refused", fault)
        answer = self._exchange(method, {"method": method, "params": params})
        if not isinstance(answer, dict) or "result" not in answer:
            raise ChainUnavailable("bitcoind_unavailable", self._says(method, "garbled answer"))
        error = answer.get("error")
        if error is None:
            return answer["result"]
        code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, error)
        message = printable(message)
        if code == _IN_WARMUP:
            raise ChainUnavailable("bitcoind_unavailable", self._says(method, f"still starting: {message}"))
        raise ChainRefused("bitcoind_refused", f"{method}: {message}", code if isinstance(code, int) else None)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(self, method: str, request: dict[str, object]) -> Any:
        """bitcoind's answer as JSON, whatever it says."""
        body = json.dumps(request)
        known = self._known_authorization()
        status, text = self._post(method, body, known)
        if status == _UNAUTHORIZED:
            # A bitcoind that was restarted has a new cookie.
            fresh = self._fresh_authorization()
            if fresh != known:
                status, text = self._post(method, body, fresh)
        if status in (_UNAUTHORIZED, _FORBIDDEN):
            who = self.access.cookie or f"user {self.access.user}"
            reason = (
                f"does not accept {who}" if status == _UNAUTHORIZED else "does not let us in (rpcallowip, rpcwhitelist)"
            )
            raise ChainRefused("bitcoind_not_permitted", f"bitcoind at {self.access.address} {reason}: {_WHAT_TO_DO}")
        try:
            return json.loads(text, parse_float=Decimal)
        except ValueError as error:
            # 503: its queue of work is full.
            raise ChainUnavailable(
                "bitcoind_unavailable", self._says(method, f"HTTP status {status} without an answer")
            ) from error

    def _post(self, method: str, body: str, authorization: str) -> tuple[int, bytes]:
        headers = {"Authorization": authorization, "Content-Type": "application/json"}
        connection, was_used = self._connection()
        while True:
            try:
                connection.request("POST", "/", body, headers)
                response = connection.getresponse()
                status, text = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # bitcoind closes what was idle for 30 s (-rpcservertimeout), and does not say so before.
                if was_used and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                    connection, was_used = self._new_connection(), False
                    continue
                raise ChainUnavailable("bitcoind_unavailable", self._says(method, f"no answer: {error}")) from error
            except BaseException:
                connection.close()
                raise
            self._keep(connection)
            return status, text

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """One that is open already, and True; else a new one."""
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        return self._new_connection(), False

    def _new_connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.access.host, self.access.port, timeout=self._answer_timeout_s)

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if connection.sock is not None and len(self._idle) < CONNECTIONS_KEPT:
                self._idle.append(connection)
                return
        connection.close()

    def _known_authorization(self) -> str:
        with self._lock:
            known = self._authorization
        return known if known is not None else self._fresh_authorization()

    def _fresh_authorization(self) -> str:
        fresh = self.access.authorization()
        with self._lock:
            self._authorization = fresh
        return fresh

    def _says(self, method: str, what: str) -> str:
        return f"bitcoind at {self.access.address}, {method}: {what}"


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
