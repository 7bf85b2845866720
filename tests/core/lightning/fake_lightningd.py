"""A unix socket that speaks lightningd's JSON-RPC and answers as it is told: the real client code is tested on it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = dict[str, Any] | bytes | None
"""A JSON object with ``result`` or ``error``; raw bytes; or None: the connection is closed without a word."""


class FakeLightningd:
    """One connection per call, as pyln-client makes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], Answer]] = {}
        self.hold = threading.Event()
        self.hold.set()
        """Cleared: answers are held back."""
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def result(self, method: str, result: object) -> None:
        self.answers[method] = lambda _params: {"result": result}

    def error(self, method: str, code: int, message: str = "no", data: object = None) -> None:
        body: dict[str, Any] = {"code": code, "message": message}
        if data is not None:
            body["data"] = data
        self.answers[method] = lambda _params: {"error": body}

    def params(self, method: str) -> dict[str, Any]:
        """Those of the newest call of ``method``."""
        return next(params for called, params in reversed(self.calls) if called == method)

    def close(self) -> None:
        self.hold.set()
        with contextlib.suppress(OSError):  # shut down already
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            request = _read(connection)
            self.calls.append((request["method"], request["params"]))
            answer = self.answers[request["method"]](request["params"])
            self.hold.wait()
            if isinstance(answer, dict):
                answer = json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}).encode() + b"\n\n"
            if answer is not None:
                with contextlib.suppress(OSError):  # the caller has not waited
                    connection.sendall(answer)


def _read(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while True:
        data += connection.recv(65536)
        try:
            request: dict[str, Any] = json.loads(data)
        except ValueError:
            continue
        return request


@contextmanager
def fake_lightningd(directory: Path) -> Iterator[FakeLightningd]:
    server = FakeLightningd(directory / "lightning-rpc")
    try:
        yield server
    finally:
        server.close()
