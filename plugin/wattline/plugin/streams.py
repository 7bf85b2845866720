"""The open connections of cables: one per session, the newest wins."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from wattline.core.errors import StopError
from wattline.v1 import charging_pb2 as pb

QUEUE_LENGTH = 256
"""Messages that may wait for a slow cable before its connection is given up (it resumes)."""


class Stream:
    """What goes down to one cable."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.cut: Callable[[], object] = lambda: None
        """Breaks the connection, also while a message is stuck in it."""
        self._messages: queue.Queue[pb.ChargeResponse | None] = queue.Queue(QUEUE_LENGTH)

    def put(self, message: pb.ChargeResponse) -> None:
        """Queue a message; a connection that does not drain is cut."""
        try:
            self._messages.put_nowait(message)
        except queue.Full:
            self.end()
            self.cut()

    def end(self) -> None:
        """No more messages: what is queued is sent, then the connection closes."""
        while True:
            try:
                self._messages.put_nowait(None)
            except queue.Full:
                try:
                    self._messages.get_nowait()
                except queue.Empty:
                    continue
            else:
                return

    def __iter__(self) -> Iterator[pb.ChargeResponse]:
        while (message := self._messages.get()) is not None:
            yield message


class Streams:
    """All open streams, by session. Thread-safe."""

    def __init__(self, lost: Callable[[str], object]) -> None:
        self._lost = lost
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}

    def attach(self, session_id: str) -> Stream:
        """A new stream for the session; an older one is told and ended."""
        stream = Stream(session_id)
        with self._lock:
            old = self._streams.get(session_id)
            self._streams[session_id] = stream
        if old is not None:
            old.put(refusal("replaced", "the session was resumed on another connection"))
            old.end()
        return stream

    def is_attached(self, session_id: str) -> bool:
        with self._lock:
            return session_id in self._streams

    def detach(self, stream: Stream) -> None:
        """The connection is gone."""
        with self._lock:
            current = self._streams.get(stream.session_id) is stream
            if current:
                del self._streams[stream.session_id]
        if current:
            self._lost(stream.session_id)

    def send(self, session_id: str, message: pb.ChargeResponse) -> None:
        with self._lock:
            stream = self._streams.get(session_id)
        if stream is not None:
            stream.put(message)

    def finish(self, session_id: str, message: pb.ChargeResponse) -> None:
        """The last message of a session."""
        with self._lock:
            stream = self._streams.pop(session_id, None)
        if stream is not None:
            stream.put(message)
            stream.end()

    def broadcast(self, message: pb.ChargeResponse) -> None:
        with self._lock:
            streams = list(self._streams.values())
        for stream in streams:
            stream.put(message)

    def finish_all(self, message: pb.ChargeResponse) -> None:
        with self._lock:
            session_ids = list(self._streams)
        for session_id in session_ids:
            self.finish(session_id, message)


def refusal(code: str, message: str) -> pb.ChargeResponse:
    return pb.ChargeResponse(refusal=pb.Refusal(code=code, message=message))


class Refused(StopError):
    """What a cable asked for is not done; ``code`` is one of the codes of ``Refusal`` in charging.proto."""
