"""One plugin: a process that is asked over its stdin and answers on its stdout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wattline.regtest.node.fault import PLUGIN_TERMINATED, Fault
from wattline.regtest.node.log import Log

Json = dict[str, Any]
SHUTDOWN_S = 30.0
"""How long a plugin that wants to hear of its stop may take for it."""
LINE_BYTES = 64 * 1024 * 1024


class PluginGone(Fault):
    """It ended before it answered."""

    def __init__(self) -> None:
        super().__init__(PLUGIN_TERMINATED, "Plugin terminated before replying to RPC call.")


class Plugin:
    """A started process; ``manifest`` and ``options`` are filled in as the protocol goes on."""

    def __init__(self, path: Path, log: Log, gone: Callable[[Plugin], None]) -> None:
        self.path = path
        self.name = path.name
        self.manifest: Json = {}
        self.options: Json = {}
        self.is_ready = False
        self.is_leaving = False
        self._log = log
        self._gone = gone
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[str, asyncio.Future[Json]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def spawn(self) -> None:
        """Raises OSError."""
        self._process = await asyncio.create_subprocess_exec(
            str(self.path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "LIGHTNINGD_PLUGIN": "1", "LIGHTNINGD_VERSION": "v26.06.6"},
            limit=LINE_BYTES,
        )
        self._reader = asyncio.ensure_future(self._read(self._process))

    @property
    def subscriptions(self) -> list[str]:
        return list(self.manifest.get("subscriptions") or [])

    def write(self, message: Mapping[str, Any]) -> None:
        """What cannot be written any more belongs to a process whose end is about to be noticed."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n\n")

    async def request(self, request_id: str, method: str, params: Any) -> Json:
        """Its result. Raises Fault with its error, PluginGone when it ended."""
        if self._ended.is_set():
            raise PluginGone
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            self.write({"method": method, "params": params, "id": request_id})
            answer = await future
        finally:
            self._waiting.pop(request_id, None)
        if "error" in answer:
            error = answer["error"]
            raise Fault(int(error.get("code", -1)), str(error.get("message")), error.get("data"))
        return dict(answer["result"] or {})

    def notify(self, topic: str, params: Mapping[str, Any]) -> None:
        if topic in self.subscriptions or "*" in self.subscriptions:
            self.write({"method": topic, "params": params})

    async def stop(self) -> None:
        """A goodbye and 30 s for who subscribed to it, SIGKILL at once for the others."""
        self.is_leaving = True
        if "shutdown" in self.subscriptions:
            self.write({"method": "shutdown", "params": {"shutdown": {}}})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), SHUTDOWN_S)
        self.kill()
        await self._ended.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        decoder, buffer = json.JSONDecoder(), ""
        try:
            while data := await process.stdout.read(65536):
                buffer += data.decode()
                while "\n\n" in buffer:
                    text, buffer = buffer.split("\n\n", 1)
                    if text.strip():
                        self._take(decoder.decode(text))
        except (ValueError, KeyError) as error:
            self._log.unusual(f"Killing plugin {self.name}: it does not speak JSON-RPC: {error}")
            self.kill()
        await process.wait()
        self._ended.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(PluginGone())
        self._gone(self)

    def _take(self, message: Json) -> None:
        if "id" in message and "method" not in message:
            future = self._waiting.get(str(message["id"]))
            if future is not None and not future.done():
                future.set_result(message)
        elif message.get("method") == "log":
            params = message["params"]
            self._log.write(str(params.get("level", "info")), f"plugin-{self.name}", str(params.get("message", "")))
