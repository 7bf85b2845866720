"""bitcoind's JSON-RPC over HTTP: connections that stay open, a deadline, every error in wattline's own terms.

Every call that wattline makes may be made twice without harm; that is why one that was lost with a connection that had
grown old is simply made again.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from wattline.bitcoin import gate
from wattline.bitcoin.chain import ChainRefused, ChainUnavailable
from wattline.wire import printable

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

    def __init__(self, access: Access, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._access = access
        self._answer_timeout_s = answer_timeout_s
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._authorization: str | None = None

    def call(self, method: str, *params: object) -> Any:
        """The result of ``method``; every number with a decimal point as Decimal, never as float.

        Raises ChainUnavailable when there is no answer or bitcoind is still starting, ChainRefused when the answer is
        an error or we are not let in, or with the code ``call_refused`` when a parameter is not one that bitcoind may
        be handed (:mod:`wattline.bitcoin.gate`): nothing was sent then.
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
            who = self._access.cookie or f"user {self._access.user}"
            reason = (
                f"does not accept {who}" if status == _UNAUTHORIZED else "does not let us in (rpcallowip, rpcwhitelist)"
            )
            raise ChainRefused("bitcoind_not_permitted", f"bitcoind at {self._access.address} {reason}: {_WHAT_TO_DO}")
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
        return http.client.HTTPConnection(self._access.host, self._access.port, timeout=self._answer_timeout_s)

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
        fresh = self._access.authorization()
        with self._lock:
            self._authorization = fresh
        return fresh

    def _says(self, method: str, what: str) -> str:
        return f"bitcoind at {self._access.address}, {method}: {what}"
