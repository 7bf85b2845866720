"""JSON-RPC on the unix socket, as lightning-cli and pyln speak it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wattline.regtest.node.fault import UNKNOWN_METHOD, Fault
from wattline.regtest.node.log import Log

Given = Mapping[str, Any] | Sequence[Any]
Method = Callable[[Given, str], Awaitable[dict[str, Any]]]
"""Gets the parameters and the id of the request."""


class RpcServer:
    """Serves the methods of the node and of its plugins."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._methods: dict[str, Method] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def add(self, name: str, method: Method) -> None:
        self._methods[name] = method

    def remove(self, name: str) -> None:
        self._methods.pop(name, None)

    def knows(self, name: str) -> bool:
        return name in self._methods

    async def start(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(path))
        path.chmod(0o600)

    async def call(self, name: str, given: Given, request_id: str) -> dict[str, Any]:
        """The result. Raises Fault."""
        method = self._methods.get(name)
        if method is None:
            raise Fault(UNKNOWN_METHOD, f"Unknown command '{name}'")
        return await method(given, request_id)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder, buffer = json.JSONDecoder(), ""
        try:
            while data := await reader.read(65536):
                buffer += data.decode()
                while buffer := buffer.lstrip():
                    try:
                        request, end = decoder.raw_decode(buffer)
                    except ValueError:
                        break  # the rest is still to come
                    buffer = buffer[end:]
                    call = asyncio.ensure_future(self._answer(request, writer))
                    self._calls.add(call)
                    call.add_done_callback(self._calls.discard)
        except (ConnectionError, UnicodeDecodeError) as error:
            self._log.debug(f"a client was lost: {error}")
        finally:
            writer.close()

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request.get("id")}
        name = str(request.get("method"))
        try:
            answer["result"] = await self.call(name, request.get("params") or {}, str(request.get("id")))
        except Fault as fault:
            answer["error"] = fault.to_json()
        except Exception as error:  # noqa: BLE001 - one call must not end the node; its log says what is wrong
            self._log.broken(f"{name}: {type(error).__name__}: {error}")
            answer["error"] = {"code": -32603, "message": f"the practice node failed: {error}"}
        try:
            writer.write(json.dumps(answer).encode() + b"\n\n")
            await writer.drain()
        except ConnectionError as error:
            self._log.debug(f"nobody waits for the answer to {name}: {error}")
