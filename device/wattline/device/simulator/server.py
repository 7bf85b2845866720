"""The process in which a simulated world lives: JSON lines over a unix socket, one thread, real time.

Started by :mod:`wattline.device.i2c.simulated` with its listening socket already open. It ends by itself when
nobody has been connected for a while; the state of its chips ends with it, as if their supply had been cut.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wattline.core.ownership import open_own
from wattline.device.i2c.bus import BusError
from wattline.device.simulator.world import MeterFault, RelayFault, World, WorldBus

TICK_S = 0.1
LONGEST_LINE = 65_536
DEFAULT_IDLE_S = 30.0


@dataclass(frozen=True, slots=True)
class Files:
    """What a world has on disk while it runs."""

    socket: Path
    lock: Path
    """Held by who connects or starts a world, and by the world when it leaves."""
    log: Path


class WorldServer:
    """Answers requests of any number of connections."""

    def __init__(self, world: World, listener: socket.socket, files: Files, idle_s: float) -> None:
        self._world = world
        self._listener = listener
        self._files = files
        self._idle_s = idle_s
        self._selector = selectors.DefaultSelector()
        self._buffers: dict[socket.socket, bytes] = {}
        self._calls = _calls(world, WorldBus(world))

    def run(self) -> None:
        """Serve until nobody has been connected for ``idle_s``."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        last_seen = time.monotonic()
        while True:
            for key, _ in self._selector.select(TICK_S):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._serve(key.fileobj)
            self._world.advance()
            if self._buffers:
                last_seen = time.monotonic()
            elif self._is_over(last_seen) and self._leave():
                return

    def _is_over(self, last_seen: float) -> bool:
        # Without its socket nobody finds it any more: what it was started for has been removed.
        return time.monotonic() - last_seen > self._idle_s or not self._files.socket.exists()

    def _leave(self) -> bool:
        """Take the socket and all else away, unless somebody is just connecting (clients hold the lock meanwhile)."""
        try:
            lock = os.fdopen(open_own(self._files.lock), "ab")
        except FileNotFoundError:
            # Its directory was removed, so nobody finds it any more.
            self._listener.close()
            return True
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._accept()
            if self._buffers:
                return False
            self._files.socket.unlink(missing_ok=True)
            self._listener.close()
            self._files.log.unlink(missing_ok=True)
            # The last thing: who waits for it sees then that it is another file, and takes the new one.
            self._files.lock.unlink(missing_ok=True)
            return True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            client.settimeout(1.0)
            self._buffers[client] = b""
            self._selector.register(client, selectors.EVENT_READ)

    def _serve(self, client: socket.socket) -> None:
        try:
            data = client.recv(65_536)
            lines = (self._buffers[client] + data).split(b"\n")
            self._buffers[client] = lines.pop()
            for line in lines:
                client.sendall(json.dumps(self._answer(line)).encode() + b"\n")
        except OSError:
            data = b""
        if not data or len(self._buffers[client]) > LONGEST_LINE:
            self._selector.unregister(client)
            del self._buffers[client]
            client.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            return {"result": self._calls[request.pop("call")](**request)}
        except BusError as error:
            return {"code": error.code, "message": error.message}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            return {"code": "bad_request", "message": f"{type(error).__name__}: {error}"}


def _calls(world: World, bus: WorldBus) -> dict[str, Callable[..., Any]]:
    """What a connection can ask: the transfers of a bus, and the hands of who plays with the world."""

    def history(circuit: int) -> list[dict[str, Any]]:
        return [asdict(switching) for switching in world.circuits[circuit].history]

    def break_meter(address: int, fault: str, ratio: float) -> None:
        world.break_meter(address, MeterFault(fault), ratio)

    def break_relay(circuit: int, fault: str, expander: int) -> None:
        world.break_relay(circuit, RelayFault(fault), expander)

    return {
        "read_byte": bus.read_byte,
        "write_byte": bus.write_byte,
        "write_byte_register": bus.write_byte_register,
        "read_word": bus.read_word,
        "write_word": bus.write_word,
        "peek": bus.peek,
        "read_block": lambda **where: bus.read_block(**where).hex(),
        "plug": world.plug,
        "profile": lambda circuit: world.circuits[circuit].profile,
        "relay_closed": lambda circuit: world.circuits[circuit].closed,
        "history": history,
        "energy_uwh": world.energy_uwh,
        "set_meter_energy": world.set_meter_energy,
        "break_meter": break_meter,
        "mend_meter": world.mend_meter,
        "break_relay": break_relay,
        "mend_relay": world.mend_relay,
        "pid": os.getpid,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--listener", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--idle", type=float, default=float(os.environ.get("WATTLINE_SIM_IDLE_S", DEFAULT_IDLE_S)))
    arguments = parser.parse_args()
    listener = socket.socket(fileno=arguments.listener)
    world = World(arguments.profile, time.monotonic_ns)
    files = Files(arguments.socket, arguments.lock, arguments.log)
    server = WorldServer(world, listener, files, arguments.idle)
    # Whoever started us waits for this process only; its child belongs to nobody.
    if os.fork():
        os._exit(0)
    os.setsid()
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
