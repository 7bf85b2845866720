"""The practice node held against what real nodes were recorded to say: shapes, values, errors and order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.comparison import OPTIONAL, Comparison
from harness.needs import need_bitcoind
from harness.replay import Replay
from harness.scenarios import SCENARIOS
from harness.stage import Stage

from wattline.regtest.practice_network import PracticeLightningd, PracticeNetwork

RECORDINGS = Path(__file__).parent / "recordings"
ON_BITCOIND = {"onchain", "emergency"}
"""Scenarios for which the practice nodes need a bitcoind."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_practice_node_does_as_real_nodes_were_recorded_to_do(name: str) -> None:
    if name in ON_BITCOIND:
        need_bitcoind()
    with (
        PracticeNetwork(bitcoind=name in ON_BITCOIND) as network,
        Replay(RECORDINGS / f"{name}.jsonl", Stage(network)) as replay,
    ):
        differences = [str(difference) for difference in replay.differences()]
    assert differences == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_field_that_is_renamed_or_missing_anywhere_is_noticed(name: str) -> None:
    tried = 0
    for line in (RECORDINGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[1:]:
        step = json.loads(line)
        answer = step.get("result", step.get("error", step.get("messages")))
        assert list(Comparison({}).differences("same", answer, answer)) == []
        for changed in renamings(answer):
            tried += 1
            assert list(Comparison({}).differences("changed", answer, changed)), changed
    assert tried > 50


@pytest.mark.parametrize("recorded", ["ab" * 270, f"<640 characters: {'ab' * 8}>"])
def test_a_raw_transaction_may_lack_a_byte_of_its_signatures_and_nothing_else_may(recorded: str) -> None:
    length = 540 if recorded.startswith("ab") else 640

    def is_alike(key: str, answered: str) -> bool:
        return not list(Comparison({}).differences("answer", {key: recorded}, {key: answered}))

    assert is_alike("rawtx", "cd" * (length // 2))
    assert is_alike("rawtx", "cd" * (length // 2 - 1))
    assert not is_alike("rawtx", "cd" * (length // 2 - 20))
    assert is_alike("onion", "cd" * (length // 2))
    assert not is_alike("onion", "cd" * (length // 2 - 1))


RENAMING = """
import sys
from wattline.regtest.node import {module}
from wattline.regtest.node.__main__ import main

answer = {module}.{function}
{module}.{function} = lambda row: {{
    ("x_" + name if name == {field!r} else name): value for name, value in answer(row).items()
}}
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "function", "field", "recording"),
    [
        ("invoices", "invoice_object", "pay_index", "direct"),
        ("payments", "sendpay_object", "amount_sent_msat", "held"),
        ("about", "forward_object", "out_msat", "line"),
        ("strangers", "keysend_object", "parts", "other"),
    ],
)
def test_a_practice_node_that_calls_a_field_otherwise_is_found_out(
    monkeypatch: pytest.MonkeyPatch, module: str, function: str, field: str, recording: str
) -> None:
    program = RENAMING.format(module=module, function=function, field=field)
    command = PracticeLightningd._command

    def renaming(self: PracticeLightningd) -> list[str]:
        python, *rest = command(self)
        return [python, "-P", "-c", program, *rest[rest.index("wattline.regtest.node") + 1 :]]

    monkeypatch.setattr(PracticeLightningd, "_command", renaming)
    with PracticeNetwork() as network, Replay(RECORDINGS / f"{recording}.jsonl", Stage(network)) as replay:
        first = next(replay.differences())
    assert field in first.where


def renamings(value: Any) -> Iterator[Any]:
    """``value`` with one field renamed, for every field of it and of all that is in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in OPTIONAL:
                yield {(f"{name}_" if name == key else name): field for name, field in value.items()}
            for changed in renamings(inner):
                yield {**value, key: changed}
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for changed in renamings(inner):
                yield [*value[:index], changed, *value[index + 1 :]]
