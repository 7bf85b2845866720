"""The guard's client, with the other end of its connection in the test's hand."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from wattline.device.controller.client import GuardClient
from wattline.device.relays.relay import RelayError

T = TypeVar("T")


class Interrupting:
    """A connected socket at one of whose calls a signal comes, as by Ctrl-C: before it, or when it is done."""

    def __init__(self, connected: socket.socket, call: str, done: bool) -> None:
        self.connected = connected
        self.call: str | None = call
        self.done = done

    def sendall(self, data: bytes) -> None:
        self._carry_out("sendall", lambda: self.connected.sendall(data))

    def recv(self, size: int) -> bytes:
        return self._carry_out("recv", lambda: self.connected.recv(size))

    def close(self) -> None:
        self.connected.close()

    def _carry_out(self, name: str, call: Callable[[], T]) -> T:
        hit = self.call == name
        if hit:
            self.call = None
        if hit and not self.done:
            raise KeyboardInterrupt
        result = call()
        if hit:
            raise KeyboardInterrupt
        return result


def answering(guards: socket.socket) -> None:
    """The other end: says of every relay what was asked for, as the guard does."""
    with guards, guards.makefile("rb") as lines:
        for line in lines:
            request = json.loads(line)
            closed = request["ask"] == "hold"
            state = {"outlet_id": "A1", "closed": closed, "confirmed": True, "at_ms": 1}
            answer = {"relay": {**state, "lease_ends_ms": None, "fault": ""}, "number": request["number"]}
            guards.sendall(json.dumps(answer).encode() + b"\n")


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("call", ["sendall", "recv"])
def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(call: str, done: bool) -> None:
    ours, guards = socket.socketpair()
    ours.settimeout(5)
    guard = threading.Thread(target=answering, args=(guards,))
    guard.start()
    client = GuardClient(Interrupting(ours, call, done))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        client.hold("A1", 1000)
    assert not client.open("A1").closed
    assert client.hold("A1", 1000).closed
    client.close()
    guard.join()


def test_an_unnumbered_answer_is_that_of_the_request() -> None:
    ours, guards = socket.socketpair()
    client = GuardClient(ours)
    guards.sendall(b'{"code": "bad_request", "message": "not JSON"}\n')
    with pytest.raises(RelayError, match="not JSON"):
        client.open("A1")
    client.close()
    guards.close()


def test_a_guard_that_closes_is_lost() -> None:
    ours, guards = socket.socketpair()
    client = GuardClient(ours)
    guards.close()
    with pytest.raises(RelayError) as caught:
        client.open("A1")
    assert caught.value.code == "guard_lost"
