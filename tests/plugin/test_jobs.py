"""What other threads ask of a loop, up to its end and after it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from wattline.plugin.outlet_state import Jobs, LoopEnded

THREADS, CALLS = 8, 200
PATIENCE_S = 10


def test_what_work_raises_belongs_to_who_waits_for_it() -> None:
    jobs = Jobs("the loop")
    failing, fine = jobs.ask(lambda: 1 // 0), jobs.ask(lambda: 7)
    jobs.work(0)
    jobs.work(0)
    with pytest.raises(ZeroDivisionError):
        failing.result(0)
    assert fine.result(0) == 7


def test_what_waits_when_the_loop_ends_and_what_comes_later_is_told_so_and_not_done() -> None:
    jobs = Jobs("the loop")
    done: list[str] = []
    waiting = jobs.ask(lambda: done.append("waiting"))
    jobs.end()
    late = jobs.ask(lambda: done.append("late"))
    for each in (waiting, late):
        with pytest.raises(LoopEnded, match="the loop has stopped") as told:
            each.result(0)
        assert told.value.code == "shutting_down"
    assert done == []


def test_whenever_the_loop_ends_nobody_waits_for_ever() -> None:
    jobs = Jobs("the loop")
    done: list[int] = []
    begun = threading.Barrier(THREADS + 1)

    def ask() -> list[Future[None]]:
        begun.wait(PATIENCE_S)
        return [jobs.ask(lambda: done.append(1)) for _ in range(CALLS)]

    with ThreadPoolExecutor(THREADS) as pool:
        asking = [pool.submit(ask) for _ in range(THREADS)]
        begun.wait(PATIENCE_S)
        while len(done) < THREADS * CALLS // 2:
            jobs.work(PATIENCE_S)
        jobs.end()
        ends = [each.exception(PATIENCE_S) for futures in asking for each in futures.result(PATIENCE_S)]
    assert all(end is None or isinstance(end, LoopEnded) for end in ends)
    assert sum(end is None for end in ends) == len(done)
