"""The gRPC service that cables talk to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message

from wattline.core.errors import RetryError, StopError, WattlineError
from wattline.core.wire.reading import OutOfRange, admitted
from wattline.plugin.certificate import Certificate
from wattline.plugin.outlet_state import LoopEnded
from wattline.plugin.requests import CableRequests
from wattline.plugin.streams import Refused, Stream, refusal
from wattline.v1 import charging_pb2 as pb
from wattline.v1 import charging_pb2_grpc

log = logging.getLogger(__name__)

MessageT = TypeVar("MessageT", bound=Message)
MAX_STREAMS = 64
"""Cables connected at once: each holds a thread."""
MAX_METADATA_BYTES = 8 * 1024
MAX_WAITING = 16
"""On-chain messages of one stream that may wait; a cable has one version under way."""
FIRST_MESSAGE_S = 5.0
"""A connection that has not said by then what it wants is cut: it would keep its thread from a cable that pays."""


class OnchainLane:
    """What one stream wants of the chain, one after the other, in a thread of its own: a bitcoind that is slow to
    answer must hold up neither a close nor a sign of life."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pool: ThreadPoolExecutor | None = None
        self._room = threading.BoundedSemaphore(MAX_WAITING)

    def do(self, work: Callable[[], None]) -> None:
        """Soon. A stream that asks for too much at once is ended."""
        if not self._room.acquire(blocking=False):
            self._stream.put(refusal("bad_request", f"more than {MAX_WAITING} on-chain messages wait for an answer"))
            self._stream.end()
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"chain {self._stream.session_id}")
        self._pool.submit(self._work, work)

    def close(self) -> None:
        """Begin nothing any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("the on-chain payments of session %s failed", self._stream.session_id)
            self._stream.end()  # the cable takes it up again
        finally:
            self._room.release()


class ChargingService(charging_pb2_grpc.ChargingServiceServicer):
    """Translates between the wire and what answers cables; keeps no state of its own."""

    def __init__(self, requests: CableRequests) -> None:
        self._requests = requests

    def GetOffer(  # noqa: N802 - named by the protocol
        self, request: pb.GetOfferRequest, context: grpc.ServicerContext
    ) -> pb.GetOfferResponse:
        try:
            return self._requests.offer(_admitted(request).nonce, context.peer())
        except WattlineError as error:
            _abort(context, error)

    def GetReceipt(  # noqa: N802 - named by the protocol
        self, request: pb.GetReceiptRequest, context: grpc.ServicerContext
    ) -> pb.GetReceiptResponse:
        try:
            _admitted(request)
            signed = self._requests.receipt(request.session_id, request.token, context.peer())
            return pb.GetReceiptResponse(receipt=signed)
        except WattlineError as error:
            _abort(context, error)

    def Charge(  # noqa: N802 - named by the protocol
        self, request_iterator: Iterator[pb.ChargeRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ChargeResponse]:
        deadline = threading.Timer(FIRST_MESSAGE_S, context.cancel)
        deadline.daemon = True
        deadline.start()
        try:
            first = next(request_iterator, None)
        finally:
            deadline.cancel()
        try:
            stream = self._begin(first, context.peer())
        except WattlineError as error:
            yield refusal(error.code, error.message)
            return
        stream.cut = context.cancel
        context.add_callback(stream.end)
        threading.Thread(
            target=self._read, args=(request_iterator, stream), name=f"stream {stream.session_id}", daemon=True
        ).start()
        try:
            yield from stream
        finally:
            with suppress(LoopEnded):  # the next process takes every session up without its cable
                self._requests.gone(stream)

    def _begin(self, first: pb.ChargeRequest | None, peer: str) -> Stream:
        match _admitted(first).WhichOneof("message") if first is not None else None:
            case "open":
                assert first is not None
                return self._requests.open(first.open, peer)
            case "resume":
                assert first is not None
                return self._requests.resume(first.resume)
            case other:
                raise Refused("bad_request", f"the first message must be open or resume, not {other or 'nothing'}")

    def _read(self, requests: Iterator[pb.ChargeRequest], stream: Stream) -> None:
        """What comes up, until the cable goes away."""
        lane = OnchainLane(stream)
        try:
            for request in requests:
                match _admitted(request).WhichOneof("message"):
                    case "meter_value":
                        self._requests.meter_value(stream.session_id, request.meter_value)
                    case "close":
                        self._requests.close(stream.session_id, request.close.reason)
                    case "onchain_request":
                        lane.do(partial(self._requests.onchain_request, stream.session_id, request.onchain_request))
                    case "aggregate_version":
                        lane.do(partial(self._requests.aggregate_version, stream.session_id, request.aggregate_version))
                    case other:
                        stream.put(refusal("bad_request", f"{other or 'an empty message'} is not allowed here"))
                        stream.end()
                        return
        except (Refused, LoopEnded) as error:
            stream.put(refusal(error.code, error.message))
            stream.end()
        except grpc.RpcError:
            pass  # the connection was cut: the stream's end is told by context's callback
        except Exception:
            log.exception("the stream of session %s failed", stream.session_id)
            stream.end()  # the cable takes it up again
        finally:
            lane.close()
        # A cable that has only finished sending still gets its receipt: the stream itself ends elsewhere.


def serve(service: ChargingService, address: str, certificate: Certificate) -> grpc.Server:
    """Listen on ``host:port`` with TLS. Raises StopError when the port cannot be had."""
    server = grpc.server(
        ThreadPoolExecutor(MAX_STREAMS + 8, thread_name_prefix="grpc"),
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", 64 * 1024),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ],
        maximum_concurrent_rpcs=MAX_STREAMS + 8,
    )
    charging_pb2_grpc.add_ChargingServiceServicer_to_server(service, server)
    credentials = grpc.ssl_server_credentials([(certificate.key_pem, certificate.certificate_pem)])
    try:
        bound: Any = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise StopError("port_taken", f"cannot listen on {address}: {error}") from error
    if bound == 0:
        raise StopError("port_taken", f"cannot listen on {address}: the port is taken or the host is not ours")
    server.start()
    return server


def _admitted(message: MessageT) -> MessageT:
    try:
        return admitted(message)
    except OutOfRange as error:
        raise Refused("bad_request", error.message) from error


def _abort(context: grpc.ServicerContext, error: WattlineError) -> NoReturn:
    status = grpc.StatusCode.UNAVAILABLE if isinstance(error, RetryError) else grpc.StatusCode.FAILED_PRECONDITION
    context.abort(status, f"{error.code}: {error.message}")
