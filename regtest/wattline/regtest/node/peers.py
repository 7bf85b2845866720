"""Connections to other practice nodes: lines of JSON over loopback.

What the two ends of a channel tell each other about it is numbered, kept until the other end has it, and said again
after a reconnection, so that every message has its effect exactly once, whoever dies when (what channel_reestablish is
for, BOLT #2). A message takes its time on the way, as the signatures of a real channel do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from wattline.regtest.node.fault import Fault
from wattline.regtest.node.log import Log
from wattline.regtest.node.plugin_host import FEATURES
from wattline.regtest.node.store import Store

Json = dict[str, Any]
CONNECT_FAILED = 401
RETRY_S = 0.2
ANSWER_S = 20.0


class Connection:
    """One peer, connected."""

    def __init__(self, node_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_ours: bool) -> None:
        self.node_id = node_id
        self.reader = reader
        self.writer = writer
        self.is_ours = is_ours
        self.is_reestablished = False
        host, port = writer.get_extra_info("peername")[:2]
        self.address: Json = {"type": "ipv4", "address": host, "port": port}
        self.local_port = writer.get_extra_info("sockname")[1]

    def send(self, message: Json) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.write(json.dumps(message).encode() + b"\n")


class Peers:
    """All peers. ``effect`` carries out one channel message inside of the unit of work that notes its number."""

    def __init__(self, node_id: str, store: Store, log: Log, latency_s: float) -> None:
        self.node_id = node_id
        self._store = store
        self._log = log
        self._latency_s = latency_s
        self._connections: dict[str, Connection] = {}
        self._dialling: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: dict[str, asyncio.Future[Json]] = {}
        self.effect: Callable[[str, Json], None] = lambda channel_id, message: None
        self.opened: Callable[[str, Json], Json] = lambda peer_id, request: {}
        self.came: Callable[[Connection], None] = lambda connection: None
        self.went: Callable[[str], None] = lambda node_id: None

    async def listen(self, host: str, port: int) -> None:
        await asyncio.start_server(self._accept, host, port)
        for row in self._store.rows("SELECT * FROM peers WHERE port IS NOT NULL"):
            self._keep_dialling(row["node_id"])

    def connection(self, node_id: str) -> Connection | None:
        return self._connections.get(node_id)

    def all(self) -> list[Connection]:
        return list(self._connections.values())

    def is_ready(self, node_id: str) -> bool:
        """Connected, and agreed about what was said before."""
        connection = self._connections.get(node_id)
        return connection is not None and connection.is_reestablished

    async def connect(self, node_id: str, host: str, port: int) -> Connection:
        """Raises Fault (401) when nobody answers there, or somebody else."""
        known = self._connections.get(node_id)
        if known is not None:
            return known
        try:
            connection = await self._dial(node_id, host, port)
        except OSError as error:
            reason = "Connection establishment: " + (error.strerror or str(error)).removeprefix("Connect call failed")
            if isinstance(error, ConnectionRefusedError):
                reason = "Connection establishment: Connection refused"
            raise Fault(CONNECT_FAILED, f"All addresses failed: {host}:{port}: {reason}. ") from error
        self._store.execute("INSERT OR REPLACE INTO peers VALUES (?, ?, ?)", node_id, host, port)
        return connection

    def say(self, channel_id: str, message: Json) -> None:
        """Tell the other end of a channel, now or when it is there again. Call it inside of a unit of work."""
        row = self._store.row("SELECT peer_id, sent FROM channels WHERE channel_id = ?", channel_id)
        assert row is not None, "a channel is told about only after it was made"
        number = row["sent"] + 1
        self._store.execute("UPDATE channels SET sent = ? WHERE channel_id = ?", number, channel_id)
        self._store.insert("outbox", channel_id=channel_id, number=number, message=json.dumps(message))
        connection = self._connections.get(row["peer_id"])
        if connection is not None and connection.is_reestablished:
            line = {"channel": channel_id, "number": number, "message": message}
            self._store.afterwards(lambda: connection.send(line))

    async def ask(self, node_id: str, request: Json) -> Json:
        """A question that is not about a channel yet. Raises Fault when the peer is not there."""
        connection = self._connections.get(node_id)
        if connection is None:
            raise Fault(306, "Unknown peer")
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._answers[str(request["channel_id"])] = future
        connection.send({"ask": request})
        return await asyncio.wait_for(future, ANSWER_S)

    # The connection.

    async def _dial(self, node_id: str, host: str, port: int) -> Connection:
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 24)
        writer.write(json.dumps(self._hello(node_id)).encode() + b"\n")
        hello = json.loads(await asyncio.wait_for(reader.readline(), ANSWER_S) or "{}")
        if hello.get("hello") != node_id:
            writer.close()
            raise ConnectionAbortedError("Cryptographic handshake: peer closed connection (wrong key?)")
        connection = Connection(node_id, reader, writer, is_ours=True)
        self._begin(connection, hello)
        return connection

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), ANSWER_S) or "{}")
            node_id = str(hello["hello"])
        except (TimeoutError, ValueError, KeyError, OSError):
            writer.close()
            return
        if hello.get("to") != self.node_id:
            writer.close()
            return
        writer.write(json.dumps(self._hello(node_id)).encode() + b"\n")
        self._begin(Connection(node_id, reader, writer, is_ours=False), hello)

    def _hello(self, node_id: str) -> Json:
        rows = self._store.rows("SELECT channel_id, received FROM channels WHERE peer_id = ?", node_id)
        received = {row["channel_id"]: row["received"] for row in rows}
        return {"hello": self.node_id, "to": node_id, "received": received}

    def _begin(self, connection: Connection, hello: Json) -> None:
        old = self._connections.get(connection.node_id)
        self._connections[connection.node_id] = connection
        if old is not None:
            old.writer.close()
        if self._store.row("SELECT 1 FROM peers WHERE node_id = ?", connection.node_id) is None:
            self._store.insert("peers", node_id=connection.node_id)
        for channel_id, received in hello.get("received", {}).items():
            self._forget(channel_id, received)
        for row in self._store.rows(
            "SELECT o.* FROM outbox o JOIN channels USING (channel_id) WHERE peer_id = ? ORDER BY channel_id, number",
            connection.node_id,
        ):
            connection.send(
                {"channel": row["channel_id"], "number": row["number"], "message": json.loads(row["message"])}
            )
        connection.is_reestablished = True
        self.came(connection)
        self._spawn(self._read(connection))

    async def _read(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[float, Json]] = asyncio.Queue()
        worker = asyncio.ensure_future(self._work(connection, arrived))
        try:
            while line := await connection.reader.readline():
                arrived.put_nowait((loop.time() + self._latency_s, json.loads(line)))
        except (OSError, ValueError) as error:
            self._log.debug(f"{connection.node_id}: {error}")
        # What had arrived counts as on its way still: it is said again.
        worker.cancel()
        connection.writer.close()
        if self._connections.get(connection.node_id) is connection:
            del self._connections[connection.node_id]
            self.went(connection.node_id)
            self._keep_dialling(connection.node_id)

    async def _work(self, connection: Connection, arrived: asyncio.Queue[tuple[float, Json]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, line = await arrived.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if "ask" in line:
                connection.send({"answer": self.opened(connection.node_id, line["ask"])})
            elif "answer" in line:
                future = self._answers.pop(str(line["answer"].get("channel_id")), None)
                if future is not None and not future.done():
                    future.set_result(line["answer"])
            elif "received" in line:
                self._forget(line["channel"], line["received"])
            else:
                self._take(connection, line["channel"], line["number"], line["message"])

    def _take(self, connection: Connection, channel_id: str, number: int, message: Json) -> None:
        with self._store.unit():
            is_next = self._store.execute(
                "UPDATE channels SET received = ? WHERE channel_id = ? AND peer_id = ? AND received = ?",
                number,
                channel_id,
                connection.node_id,
                number - 1,
            )
            if is_next:
                self.effect(channel_id, message)
        connection.send({"channel": channel_id, "received": number})

    def _forget(self, channel_id: str, received: int) -> None:
        self._store.execute("DELETE FROM outbox WHERE channel_id = ? AND number <= ?", channel_id, received)

    def _keep_dialling(self, node_id: str) -> None:
        if node_id not in self._dialling:
            self._dialling.add(node_id)
            self._spawn(self._redial(node_id))

    async def _redial(self, node_id: str) -> None:
        try:
            row = self._store.row("SELECT host, port FROM peers WHERE node_id = ? AND port IS NOT NULL", node_id)
            while row is not None and node_id not in self._connections:
                with contextlib.suppress(OSError, ValueError, asyncio.TimeoutError):
                    await self._dial(node_id, row["host"], row["port"])
                    return
                await asyncio.sleep(RETRY_S)
        finally:
            self._dialling.discard(node_id)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def peer_object(connection: Connection, channels: int) -> Json:
    """As ``listpeers`` shows it."""
    address = connection.address
    shown: Json = {
        "id": connection.node_id,
        "connected": True,
        "num_channels": channels,
        "netaddr": [f"{address['address']}:{address['port']}"],
        "features": FEATURES["init"],
    }
    if connection.is_ours:
        shown["remote_addr"] = f"127.0.0.1:{connection.local_port}"
    return shown
