"""The recordings hold all that wattline asks of a node, hears from it and reads; by the code itself, not by a list of
what somebody remembered."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from harness.scenarios import SCENARIOS

from wattline.regtest.node import daemon
from wattline.regtest.node.options import Options
from wattline.regtest.node.rpc_server import Method, RpcServer
from wattline.regtest.scene import script

HERE = Path(__file__).parent
RECORDINGS = HERE / "recordings"
CODE = tuple(HERE.parent / root for root in ("core", "device", "cable", "plugin", "cli"))
OTHER_CALLS = ("wattline/core/bitcoin/", "wattline/device/i2c/simulated.py", "wattline/device/simulator/")
"""They call a bitcoind and a simulated world."""
PASSES_ON = {"wattline/core/lightning/rpc.py"}
"""Where the method that is called is a variable."""
ANY_ERROR = "errors"
ANSWERS = {"getroutes", "listinvoices", "listsendpays", "waitsendpay"}
READERS: Mapping[str, set[str]] = {
    "wattline/core/lightning/cln.py": ANSWERS | {"listpeerchannels", ANY_ERROR},
    "wattline/core/lightning/cln_onchain.py": {"feerates", "listfunds", "listtransactions", ANY_ERROR},
    "wattline/core/lightning/notes.py": {"listdatastore", "listsendpays"},
    "wattline/core/lightning/rpc.py": ANSWERS | {ANY_ERROR},
    "wattline/plugin/hook.py": {"htlc_accepted", "invoice_payment"},
    "wattline/plugin/main.py": {"init"},
    "wattline/device/controller/revival.py": {"plugin"},
}
"""Who reads what a node says, and whose answers or messages. A function that asks itself reads what it asked for."""
NOT_RECORDED = {
    # Of what we answer ourselves.
    ("wattline/plugin/main.py", "error"),
    # What an older lightningd calls node_id_out and cltv_in.
    ("wattline/core/lightning/rpc.py", "next_node_id"),
    ("wattline/core/lightning/rpc.py", "delay"),
    # What we send ourselves.
    ("wattline/core/lightning/cln.py", "layers"),
    # Of a forward that names a node in place of a channel.
    ("wattline/plugin/hook.py", "next_node_id"),
}
OWN_OPTIONS = "wattline-"
ANSWERED_UNRECORDED = {
    "fundchannel": "its transaction is pretended; what the harness reads of it, every scenario with a channel needs",
}
"""Commands of the practice node of which only refusals were recorded, or nothing, and why that will do."""


@dataclass
class Reading:
    """One file that speaks with a node."""

    asked: set[str] = field(default_factory=set)
    passes_on: bool = False
    fields: list[tuple[frozenset[str], str]] = field(default_factory=list)
    """What is read, with the methods that the function around it asks."""


@pytest.fixture(scope="module")
def code() -> dict[str, Reading]:
    """All of wattline, by path."""
    paths = {str(path.relative_to(root)): path for root in CODE for path in root.rglob("*.py")}
    return {
        name: reading_of(ast.parse(path.read_text(encoding="utf-8")))
        for name, path in paths.items()
        if not name.startswith(OTHER_CALLS)
    }


@pytest.fixture(scope="module")
def recorded() -> dict[str, set[str]]:
    """The names of all fields in answers and messages, by method."""
    found: dict[str, set[str]] = defaultdict(set)
    for steps in scenarios():
        for message in (message for step in steps for message in step.get("messages", [])):
            found[message["method"]] |= keys_of(message["params"])
        for method, step in answers_in(steps):
            found[method] |= keys_of(step.get("result"))
            found[ANY_ERROR] |= keys_of(step.get("error"))
    return found


def test_every_method_that_wattline_asks_is_in_the_recordings(
    code: Mapping[str, Reading], recorded: Mapping[str, set[str]]
) -> None:
    asked = {method for reading in code.values() for method in reading.asked}
    assert len(asked) > 20
    assert asked - set(recorded) == set()


def test_no_method_is_asked_under_a_name_that_this_test_does_not_see(code: Mapping[str, Reading]) -> None:
    assert {name for name, reading in code.items() if reading.passes_on} == PASSES_ON


def test_every_message_that_the_plugin_registers_for_is_in_the_recordings(recorded: Mapping[str, set[str]]) -> None:
    manifest = manifest_of(script("wattline-plugin"))
    heard = {"getmanifest", "init", *manifest["subscriptions"], *(hook["name"] for hook in manifest["hooks"])}
    assert heard >= {"htlc_accepted", "invoice_payment"}
    assert heard - set(recorded) == set()


def test_everybody_who_asks_is_known_as_a_reader(code: Mapping[str, Reading]) -> None:
    assert {name for name, reading in code.items() if reading.asked} <= set(READERS)


@pytest.mark.parametrize("reader", READERS)
def test_every_field_that_is_read_was_recorded_of_what_was_asked(
    code: Mapping[str, Reading], recorded: Mapping[str, set[str]], reader: str
) -> None:
    read = code[reader].fields
    assert read
    unknown = {
        (reader, name)
        for asked, name in read
        if not name.startswith(OWN_OPTIONS) and not any(name in recorded[what] for what in asked or READERS[reader])
    }
    assert unknown == {entry for entry in NOT_RECORDED if entry[0] == reader}


class Roll(RpcServer):
    """Also writes down what it serves."""

    names: ClassVar[set[str]] = set()

    def add(self, name: str, method: Method) -> None:
        self.names.add(name)
        super().add(name, method)


def test_every_command_of_the_practice_node_is_in_the_recordings_with_a_good_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # and back: a node goes to its own directory
    monkeypatch.setattr(daemon, "RpcServer", Roll)
    options = {"lightning-dir": tmp_path, "practice-gossip": tmp_path / "gossip", "practice-chain": tmp_path / "chain"}
    given = [f"--{name}={value}" for name, value in options.items()]
    daemon.PracticeNode(Options.parse(["--allow-deprecated-apis=true", *given]))
    answered = {method for steps in scenarios() for method, step in answers_in(steps) if "result" in step}
    assert {"getinfo", "keysend", "sendpsbt", "stop"} <= Roll.names
    assert Roll.names - answered == set(ANSWERED_UNRECORDED)


def scenarios() -> Iterator[list[Any]]:
    """The steps of every recording."""
    for name in SCENARIOS:
        lines = (RECORDINGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        yield [json.loads(line) for line in lines[1:]]


def answers_in(steps: list[Any]) -> Iterator[tuple[str, Any]]:
    """The method and the step of every answer."""
    for step in steps:
        if "call" in step or "end" in step:
            yield (step["call"] if "call" in step else steps[step["end"]]["method"]), step


def manifest_of(plugin: Path) -> Any:
    """What the plugin registers for, by its own words."""
    request = {"jsonrpc": "2.0", "id": 1, "method": "getmanifest", "params": {}}
    environment = {**os.environ, "LIGHTNINGD_PLUGIN": "1"}
    with subprocess.Popen(
        [plugin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n\n")
        process.stdin.flush()
        # What it logs may come first; its end, if it fails, ends the lines.
        answers = (json.loads(line) for line in process.stdout if line.strip())
        result = next(answer["result"] for answer in answers if answer.get("id") == 1)
        process.stdin.close()
    return result


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def reading_of(tree: ast.AST) -> Reading:
    reading = Reading()
    for scope in scopes(tree):
        asked: set[str] = set()
        for method in methods_called(scope):
            if method is None:
                reading.passes_on = True
            else:
                asked.add(method)
        reading.asked |= asked
        reading.fields += [(frozenset(asked), name) for name in fields_read(scope)]
    return reading


def scopes(tree: ast.AST) -> Iterator[list[ast.AST]]:
    """The nodes of every function, with all that is in it, and those outside of all functions."""
    outside: list[ast.AST] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield list(ast.walk(node))
        else:
            outside.append(node)
            waiting.extend(ast.iter_child_nodes(node))
    yield outside


def methods_called(nodes: list[ast.AST]) -> Iterator[str | None]:
    """The first argument of ``….call(METHOD)``, or None where it is no plain text; and, as pyln's client has them,
    the name in ``rpc.METHOD()``."""
    for node in nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        if node.func.attr == "call":
            first = node.args[0] if node.args else None
            yield first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
        elif name.lstrip("_") == "rpc":
            yield node.func.attr


def fields_read(nodes: list[ast.AST]) -> Iterator[str]:
    """The names in ``answer["name"]``, ``answer.get("name")`` and ``"name" in answer``."""
    for node in nodes:
        name: ast.AST | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            name = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            name = node.args[0] if node.args else None
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            name = node.left
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value
