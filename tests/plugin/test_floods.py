"""However often cables say a thing, over real gRPC: the socket keeps no more of it, and writes no more lines."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.core.wire.messages import EVIL
from tests.plugin.fakes import CABLE, Stall, node_id, wait_until
from tests.plugin.test_hostile_cable import end_sessions, logged
from wattline.plugin.limits import MAX_LINES
from wattline.plugin.service import ChargingService
from wattline.plugin.settings import LimitSettings
from wattline.plugin.streams import QUEUE_LENGTH, Stream
from wattline.v1 import charging_pb2 as pb
from wattline.v1 import charging_pb2_grpc as pb_grpc

LINES = 40
"""So many lines are written of whatever flood there is, within less than a minute."""
ANSWER_S = 20.0
LATER: dict[str, Callable[[int], pb.ChargeRequest]] = {
    "meter_value": lambda n: pb.ChargeRequest(meter_value=pb.MeterValue(energy_uwh=n)),
    "close": lambda n: pb.ChargeRequest(close=pb.Close(reason=f"{n} {EVIL}")),
    "onchain_request": lambda n: pb.ChargeRequest(onchain_request=pb.OnchainRequest(signature=f"{n:0104d}")),
    "aggregate_version": lambda n: pb.ChargeRequest(
        aggregate_version=pb.AggregateVersion(number=n, psbt=n.to_bytes(40, "big"))
    ),
    "nothing": lambda n: pb.ChargeRequest(),
    "what cannot be": lambda n: pb.ChargeRequest(meter_value=pb.MeterValue(power_mw=-(2**63) + n)),
}
FIRST: dict[str, Callable[[Stall, int], pb.ChargeRequest]] = {
    "open": lambda stall, n: pb.ChargeRequest(
        open=stall.request(n.to_bytes(32, "big"), cable_node_id=node_id(n % 1_000 + 100))
    ),
    "resume": lambda stall, n: pb.ChargeRequest(resume=pb.Resume(session_id=f"{n:026d}", token=n.to_bytes(32, "big"))),
}


@pytest.fixture(scope="module")
def stall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stall]:
    folder: Path = tmp_path_factory.mktemp("socket")
    with Stall(folder, takes_onchain=True) as stall:
        yield stall


@pytest.fixture(scope="module")
def stub(stall: Stall) -> Iterator[pb_grpc.ChargingServiceStub]:
    pool = ThreadPoolExecutor(12)
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_ChargingServiceServicer_to_server(ChargingService(stall.app.requests), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.ChargingServiceStub(channel)
    server.stop(0).wait()


@pytest.fixture(autouse=True)
def unhurried(stall: Stall, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stream that asks too much is not made to wait, so that it can ask more."""
    monkeypatch.setattr("wattline.plugin.requests.BACK_PRESSURE_S", 0.001)
    yield
    end_sessions(stall)
    wait_until(lambda: not stall.app.streams._streams)


def held(stall: Stall) -> dict[str, int]:
    """What could grow."""
    limits, outlet = stall.app.limits, stall.outlet.view
    return {
        "streams": len(stall.app.streams._streams),
        "unpaid": len(stall.app.limits.unpaid),
        "waiting": len(outlet.waiting),
        "kinds of lines": len(stall.app.requests._lines._lines),
        "addresses of opens": len(limits._opens),
        "of offers": len(limits._offers),
        "of the chain": len(limits._onchain),
    }


class Kept:
    """How long the queue of any stream has been."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.longest = 0
        put = Stream.put

        def watched(stream: Stream, message: pb.ChargeResponse) -> None:
            put(stream, message)
            self.longest = max(self.longest, stream._messages.qsize())

        monkeypatch.setattr(Stream, "put", watched)


def stream_of(
    stub: pb_grpc.ChargingServiceStub, first: pb.ChargeRequest, later: Iterator[pb.ChargeRequest]
) -> list[pb.ChargeResponse]:
    """All that comes down while this goes up, until either side has enough."""
    done = threading.Event()

    def requests() -> Iterator[pb.ChargeRequest]:
        yield first
        yield from later
        done.set()

    call = stub.Charge(requests(), timeout=ANSWER_S)
    heard: list[pb.ChargeResponse] = []
    ended = threading.Event()

    def listen() -> None:
        with contextlib.suppress(grpc.RpcError):
            for answer in call:
                if len(heard) < 10:
                    heard.append(answer)
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    wait_until(lambda: ended.is_set() or (bool(heard) and done.is_set()), ANSWER_S)
    call.cancel()
    assert ended.wait(ANSWER_S)
    return heard


LONG = [pytest.mark.long, pytest.mark.timeout(900)]
COUNTS = [400, pytest.param(2_000, marks=LONG)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", LATER)
def test_a_flood_within_a_session_is_some_lines_and_one_queue(
    stall: Stall, stub: pb_grpc.ChargingServiceStub, kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, said, threads = Kept(monkeypatch), iter(range(1, count + 1)), threading.active_count()
    sent = [0]

    def later() -> Iterator[pb.ChargeRequest]:
        for n in said:
            sent[0] = n
            yield LATER[kind](n)

    token = hash(kind).to_bytes(32, "big", signed=True)
    first = pb.ChargeRequest(open=stall.request(token, cable_node_id=CABLE))
    rows = len(stall.ledger.sessions(10_000))
    with logged() as records:
        while sent[0] < count:
            assert stream_of(stub, first, later()), "it was answered"
    assert len(records) <= LINES, [record.getMessage() for record in records]
    assert all(record.getMessage().isprintable() for record in records)
    assert kept.longest <= QUEUE_LENGTH
    assert len(stall.ledger.sessions(10_000)) <= rows + 1
    assert held(stall)["unpaid"] <= 2
    assert threading.active_count() <= threads + 20


@pytest.mark.parametrize("count", [150, pytest.param(600, marks=LONG)])
@pytest.mark.parametrize("kind", FIRST)
def test_a_flood_of_streams_leaves_no_more_than_what_may_be_open_at_once(
    stall: Stall, stub: pb_grpc.ChargingServiceStub, kind: str, count: int
) -> None:
    rows, most, began = len(stall.ledger.sessions(10_000)), LimitSettings(), time.monotonic()
    before = held(stall)["addresses of opens"]
    with logged() as records, ThreadPoolExecutor(8) as pool:

        def once(n: int) -> None:
            call = stub.Charge(iter([FIRST[kind](stall, n)]), timeout=ANSWER_S)
            assert next(iter(call)).WhichOneof("message") in ("opened", "refusal")
            call.cancel()

        first = 10**6 * count  # tokens of its own: a session that is over answers with its receipt
        list(pool.map(once, range(first, first + count)))
    wait_until(lambda: not stall.app.streams._streams)
    wait_until(lambda: held(stall)["waiting"] <= most.unpaid_sessions)  # those that are crowded out are just ending
    now = held(stall)
    assert now["unpaid"] <= most.unpaid_sessions
    assert now["kinds of lines"] <= MAX_LINES
    opened, minutes = len(stall.ledger.sessions(10_000)) - rows, 1 + (time.monotonic() - began) / 60
    assert opened <= most.opens_per_minute * minutes
    assert now["addresses of opens"] <= before + opened + 1
    assert len(records) <= LINES * minutes, [record.getMessage() for record in records[:50]]


@pytest.mark.parametrize("count", COUNTS)
def test_a_flood_of_questions_is_answered_within_its_budget_and_keeps_nothing(
    stall: Stall, stub: pb_grpc.ChargingServiceStub, count: int
) -> None:
    answers = [0]

    def once(n: int) -> None:
        with contextlib.suppress(grpc.RpcError):
            if n % 2:
                stub.GetOffer(pb.GetOfferRequest(nonce=n.to_bytes(16, "big")), timeout=ANSWER_S)
                answers[0] += 1
            else:
                request = pb.GetReceiptRequest(session_id=f"{n:026d}", token=n.to_bytes(32, "big"))
                stub.GetReceipt(request, timeout=ANSWER_S)

    with logged() as records, ThreadPoolExecutor(8) as pool:
        list(pool.map(once, range(1, count + 1)))
    assert 0 < answers[0] <= 2 * LimitSettings().offers_per_minute
    assert len(records) <= LINES
    assert held(stall)["of offers"] <= 2
