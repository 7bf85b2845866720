"""What one stream wants of the chain is done in its order, but a close waits for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.plugin.fakes import CABLE
from wattline.plugin.service import MAX_WAITING, ChargingService
from wattline.plugin.streams import Stream
from wattline.v1 import charging_pb2 as pb

TIMEOUT_S = 5.0
OPEN = pb.Open(token=bytes(32), outlet_id="A1", tariff_id="T", method=pb.METHOD_KEYSEND, cable_node_id=CABLE)


class Context:
    """Of a call whose client stays."""

    def cancel(self) -> None: ...

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def add_callback(self, _: object) -> bool:
        return True


class SlowSeller:
    """Takes versions as slowly as its bitcoind answers."""

    def __init__(self) -> None:
        self.stream = Stream("S")
        self.may_answer = threading.Event()
        self.closed = threading.Event()
        self.fails = False
        self.taken: list[int] = []
        self.all_taken = threading.Event()

    def open(self, request: pb.Open, peer: str) -> Stream:
        return self.stream

    def aggregate_version(self, session_id: str, version: pb.AggregateVersion) -> None:
        assert self.may_answer.wait(TIMEOUT_S)
        if self.fails:
            raise TimeoutError
        self.taken.append(version.number)
        if len(self.taken) == 3:
            self.all_taken.set()

    def close(self, session_id: str, reason: str) -> None:
        self.closed.set()

    def gone(self, stream: Stream) -> None: ...


def versions(count: int) -> list[pb.ChargeRequest]:
    return [pb.ChargeRequest(aggregate_version=pb.AggregateVersion(number=number)) for number in range(1, count + 1)]


@pytest.fixture
def seller() -> SlowSeller:
    return SlowSeller()


def talk(seller: SlowSeller, *said: pb.ChargeRequest) -> Iterator[pb.ChargeResponse]:
    """What comes down, while the client stays on the line."""
    hang_up = threading.Event()

    def requests() -> Iterator[pb.ChargeRequest]:
        yield pb.ChargeRequest(open=OPEN)
        yield from said
        hang_up.wait(TIMEOUT_S)

    return ChargingService(seller).Charge(requests(), Context())  # type: ignore[arg-type]


def listening(answers: Iterator[pb.ChargeResponse]) -> tuple[threading.Thread, list[pb.ChargeResponse]]:
    heard: list[pb.ChargeResponse] = []
    thread = threading.Thread(target=lambda: heard.extend(answers), daemon=True)
    thread.start()
    return thread, heard


def test_a_close_does_not_wait_for_a_version_that_is_being_looked_at(seller: SlowSeller) -> None:
    thread, _ = listening(talk(seller, *versions(3), pb.ChargeRequest(close=pb.Close(reason="done"))))
    assert seller.closed.wait(TIMEOUT_S)
    assert seller.taken == []
    seller.may_answer.set()
    assert seller.all_taken.wait(TIMEOUT_S)
    assert seller.taken == [1, 2, 3]
    seller.stream.end()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def test_a_stream_that_asks_for_too_much_at_once_is_ended(seller: SlowSeller) -> None:
    thread, heard = listening(talk(seller, *versions(MAX_WAITING + 1)))
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert [answer.refusal.code for answer in heard] == ["bad_request"]
    seller.may_answer.set()


def test_a_version_that_breaks_something_ends_the_stream_so_that_the_cable_comes_again(seller: SlowSeller) -> None:
    seller.fails = True
    seller.may_answer.set()
    thread, heard = listening(talk(seller, *versions(1)))
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert heard == []
