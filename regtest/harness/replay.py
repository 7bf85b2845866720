"""Recordings held against a node: every step taken again, every answer compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from harness.comparison import Comparison
from harness.recorder import DIRECTORY, Outcome, ask, plain
from harness.stage import Stage

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a node does not do as was recorded."""

    line: int
    where: str
    recorded: Any
    answered: Any

    def __str__(self) -> str:
        return f"line {self.line}: {self.where}: recorded {self.recorded!r}, answered {self.answered!r}"


class Replay:
    """One recording, on the nodes of a stage."""

    def __init__(self, path: Path, stage: Stage) -> None:
        self._lines: list[Json] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][1:]
        self._stage = stage
        self._comparison = Comparison({DIRECTORY: str(stage.directory)})
        self._pool = ThreadPoolExecutor(8)
        self._waiting: dict[int, Future[Outcome]] = {}
        self.methods: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def differences(self) -> Iterator[Difference]:
        """Take every step; what differs, as it comes."""
        for number, line in enumerate(self._lines):
            for where, recorded, answered in self._step(number, line):
                yield Difference(number + 2, where, recorded, answered)

    def _step(self, number: int, line: Json) -> Iterator[tuple[str, Any, Any]]:
        if "look" in line:
            arguments = {key: value for key, value in line.items() if key not in ("look", "said")}
            seen = plain(self._stage.do(line["look"], **self._comparison.translated(arguments)))
            yield from self._comparison.differences(f"look: {line['look']}", line["said"], seen)
        elif "do" in line:
            arguments = {key: value for key, value in line.items() if key not in ("do", "said")}
            said = plain(self._stage.do(line["do"], **arguments))
            for key, value in (line.get("said") or {}).items():
                self._comparison.learn(value, said[key])
        elif "call" in line:
            self.methods[line["call"]] += 1
            outcome = ask(self._stage.node(line["node"]), line["call"], self._comparison.translated(line["params"]))
            yield from self._outcome(f"{line['node']}: {line['call']}", line, outcome)
        elif "begin" in line:
            self.methods[line["method"]] += 1
            node, params = self._stage.node(line["node"]), self._comparison.translated(line["params"])
            self._waiting[number] = self._pool.submit(ask, node, line["method"], params)
        elif "end" in line:
            began = self._lines[line["end"]]
            yield from self._outcome(f"{began['node']}: {began['method']}", line, self._waiting[line["end"]].result(90))
        else:
            for method in line["methods"]:
                self.methods[method] += 1
            messages = self._stage.heard(line["heard"], line["methods"])
            where = f"heard by {line['heard']}"
            recorded_order, order = ([m["method"] for m in heard] for heard in (line["messages"], messages))
            yield from self._comparison.differences(where, recorded_order, order)
            for recorded, answered in zip(line["messages"], messages, strict=False):
                yield from self._comparison.differences(f"{where}: {recorded['method']}", recorded, answered)

    def _outcome(self, where: str, line: Json, outcome: Outcome) -> Iterator[tuple[str, Any, Any]]:
        kind, value = outcome
        if kind not in line:
            yield where, {key: line[key] for key in ("result", "error") if key in line}, {kind: value}
            return
        yield from self._comparison.differences(where, line[kind], value)
