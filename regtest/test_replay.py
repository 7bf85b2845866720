"""The practice node held against what real nodes were recorded to say: shapes, values, errors and order."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wattline.lightning import answers, cln, cln_onchain
from wattline.practice.comparison import OPTIONAL, Comparison
from wattline.practice.practice_network import PracticeLightningd, PracticeNetwork
from wattline.practice.replay import Replay
from wattline.practice.scenarios import SCENARIOS
from wattline.practice.stage import Stage

RECORDINGS = Path(__file__).parent / "recordings"
ON_BITCOIND = {"onchain", "emergency"}
"""Scenarios for which the practice nodes need a bitcoind."""
ASKED_BY_WATTLINE = {
    "addpsbtoutput",
    "bkpr-editdescriptionbyoutpoint",
    "checkmessage",
    "createonion",
    "feerates",
    "getinfo",
    "getroutes",
    "listconfigs",
    "listfunds",
    "listinvoices",
    "listpeerchannels",
    "listsendpays",
    "listtransactions",
    "newaddr",
    "plugin",
    "reserveinputs",
    "sendonion",
    "sendpsbt",
    "signmessage",
    "signpsbt",
    "unreserveinputs",
    "utxopsbt",
    "waitanyinvoice",
    "waitsendpay",
    "withdraw",
}
READERS = (answers, cln, cln_onchain)
"""Where the answers of a node are read."""
NOT_RECORDED = {"layers", "next_node_id"}
"""What we send ourselves, and what an older lightningd calls ``node_id_out``."""
HEARD_BY_WATTLINE = {"getmanifest", "init", "htlc_accepted", "invoice_payment", "shutdown"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_practice_node_does_as_real_nodes_were_recorded_to_do(name: str) -> None:
    with (
        PracticeNetwork(bitcoind=name in ON_BITCOIND) as network,
        Replay(RECORDINGS / f"{name}.jsonl", Stage(network)) as replay,
    ):
        differences = [str(difference) for difference in replay.differences()]
    assert differences == []


def test_all_that_wattline_asks_and_hears_is_in_the_recordings() -> None:
    methods: set[str] = set()
    for name in SCENARIOS:
        for line in (RECORDINGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            step = json.loads(line)
            methods.update({step.get("call"), step.get("method"), *step.get("methods", [])} - {None})
    assert methods >= ASKED_BY_WATTLINE | HEARD_BY_WATTLINE


def test_every_field_that_wattline_reads_was_recorded() -> None:
    recorded: set[str] = set()
    for name in SCENARIOS:
        for line in (RECORDINGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[1:]:
            step = json.loads(line)
            recorded |= keys_of(step.get("result", step.get("error", step.get("messages"))))
    read = {field for reader in READERS for field in fields_read(Path(reader.__file__ or ""))}
    assert len(read) > 40
    assert read - recorded == NOT_RECORDED


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


RENAMING = """
import sys
from wattline.practice.node import {module}
from wattline.practice.node.__main__ import main

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
    ],
)
def test_a_practice_node_that_calls_a_field_otherwise_is_found_out(
    monkeypatch: pytest.MonkeyPatch, module: str, function: str, field: str, recording: str
) -> None:
    program = RENAMING.format(module=module, function=function, field=field)
    command = PracticeLightningd._command

    def renaming(self: PracticeLightningd) -> list[str]:
        python, *rest = command(self)
        return [python, "-P", "-c", program, *rest[rest.index("wattline.practice.node") + 1 :]]

    monkeypatch.setattr(PracticeLightningd, "_command", renaming)
    with PracticeNetwork() as network, Replay(RECORDINGS / f"{recording}.jsonl", Stage(network)) as replay:
        first = next(replay.differences())
    assert field in first.where


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def fields_read(path: Path) -> Iterator[str]:
    """The names in ``answer["name"]`` and ``answer.get("name")``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            name: ast.AST = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            name = node.args[0]
        else:
            continue
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value


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
