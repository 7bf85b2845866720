"""What one worker has to do: of each kind the newest alone, so that no flood of requests makes a queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor

Task = Callable[[], None]


class Tasks:
    """Thread-safe. A task that raises does not end the worker: ``on_error`` is told."""

    def __init__(self, worker: Executor, on_error: Callable[[Exception], None]) -> None:
        """``worker``: of one thread."""
        self._worker = worker
        self._on_error = on_error
        self._lock = threading.Lock()
        self._waiting: dict[str, Task] = {}
        self._first: Task | None = None
        self._is_working = False
        self._is_halted = False

    def put(self, kind: str, task: Task) -> bool:
        """To be done in its turn, in place of what waits of that kind. False when nothing is begun any more."""
        with self._lock:
            if not self._is_halted:
                self._waiting[kind] = task
        return self._begin()

    def put_first(self, task: Task) -> bool:
        """To be done before all that waits."""
        with self._lock:
            self._first = task
        return self._begin()

    def halt(self) -> None:
        """Forget what waits, and begin nothing any more."""
        with self._lock:
            self._is_halted = True
            self._waiting.clear()
            self._first = None

    def _begin(self) -> bool:
        with self._lock:
            if self._is_halted:
                return False
            if self._is_working:
                return True
            self._is_working = True
        try:
            self._worker.submit(self._work)
        except RuntimeError:
            return False  # it was shut down
        return True

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next one is done
                self._on_error(error)

    def _next(self) -> Task | None:
        with self._lock:
            task, self._first = self._first, None
            if task is None and self._waiting:
                task = self._waiting.pop(next(iter(self._waiting)))
            self._is_working = task is not None
            return task
