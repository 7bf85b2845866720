"""What other threads ask of a loop: done in the loop's own thread, one after the other, and not after its end."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from wattline.core.errors import RetryError

T = TypeVar("T")


class LoopEnded(RetryError):
    """The loop does nothing any more; the next process takes it up. Code ``shutting_down``."""


class Jobs:
    """Thread-safe; :meth:`work` and :meth:`end` are for the loop's thread."""

    def __init__(self, name: str) -> None:
        """``name``: of the loop, for people."""
        self._name = name
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._has_ended = False

    def ask(self, work: Callable[[], T]) -> Future[T]:
        """What comes of ``work``; LoopEnded when the loop ends before it, or has ended."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                if self._has_ended:
                    raise LoopEnded("shutting_down", f"{self._name} has stopped; its sessions go on after a restart")
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - belongs to whoever waits for it
                future.set_exception(error)

        self._waiting.put(job)
        if self._has_ended:
            self._work_off()  # the loop may have looked for the last time before this was there
        return future

    def wake(self) -> None:
        """Let the loop go round once."""
        self._waiting.put(lambda: None)

    def work(self, timeout_s: float) -> None:
        """One job, if one comes in time."""
        try:
            job = self._waiting.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return
        job()

    def end(self) -> None:
        """Nothing is done any more, and nobody waits for it."""
        self._has_ended = True
        self._work_off()

    def _work_off(self) -> None:
        while True:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return
            job()
