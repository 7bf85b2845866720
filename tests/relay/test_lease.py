"""The guard's client, with the other end of its connection in the test's hand."""

from __future__ import annotations

import json
import socket

import pytest

from wattline.relay import GuardClient, RelayError


class Interrupting:
    """A connected socket whose next reading is broken off, as by Ctrl-C."""

    def __init__(self, connected: socket.socket) -> None:
        self.connected = connected
        self.interrupt = False

    def sendall(self, data: bytes) -> None:
        self.connected.sendall(data)

    def recv(self, size: int) -> bytes:
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        return self.connected.recv(size)

    def close(self) -> None:
        self.connected.close()


def relay(closed: bool) -> bytes:
    state = {"outlet_id": "A1", "closed": closed, "confirmed": True, "at_ms": 1, "lease_ends_ms": None, "fault": ""}
    return json.dumps({"relay": state}).encode() + b"\n"


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one() -> None:
    ours, guards = socket.socketpair()
    connected = Interrupting(ours)
    client = GuardClient(connected)  # type: ignore[arg-type]
    connected.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        client.hold("A1", 1000)
    guards.sendall(relay(closed=True) + relay(closed=False))
    assert not client.open("A1").closed
    client.close()
    guards.close()


def test_a_guard_that_closes_is_lost() -> None:
    ours, guards = socket.socketpair()
    client = GuardClient(ours)
    guards.close()
    with pytest.raises(RelayError) as caught:
        client.open("A1")
    assert caught.value.code == "guard_lost"
