"""What is called of lightningd and bitcoind, against the gates and against docs/security.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.checkout import CHECKOUT
from wattline.bitcoin import gate as bitcoin_gate
from wattline.lightning import gate as lightning_gate

SECTION = "## What reaches lightningd and bitcoind\n"
GATES = {"lightningd": (lightning_gate.CALLS, "lightning"), "bitcoind": (bitcoin_gate.CALLS, "bitcoin")}


def told(node: str) -> set[str]:
    """The calls in the tables of the page, and those without a foreign value, of one node."""
    page = (CHECKOUT / "docs" / "security.md").read_text(encoding="utf-8")
    section = page.split(SECTION, 1)[1].split("\n## ", 1)[0]
    part = re.split(r"^To ", section, flags=re.MULTILINE)[1 if node == "lightningd" else 2]
    assert part.startswith(node)
    cells = re.findall(r"^\| (`[^|]*) \|", part, re.MULTILINE)
    (none,) = re.findall(r"^With none: ([^.]*)\.", part, re.MULTILINE)
    return {call for text in (*cells, none) for call in re.findall(r"`([^`]+)`", text)}


def calls(folder: str) -> set[str]:
    """Every method that the sources below ``folder`` ask a node for."""
    found = set()
    for _, tree in sources(CHECKOUT / "plugin" / "wattline" / folder):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "call":
                method = node.args[0]
                if isinstance(method, ast.Constant):
                    found.add(str(method.value))
                else:
                    assert ast.unparse(method) == "method", "only the client itself calls what it is told to"
    return found


def sources(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("node", GATES)
def test_the_page_names_what_the_gate_lets_through_and_nothing_else(node: str) -> None:
    assert told(node) == set(GATES[node][0])


@pytest.mark.parametrize("node", GATES)
def test_the_gate_lets_through_what_is_called_and_nothing_else(node: str) -> None:
    allowed, folder = GATES[node]
    assert calls(folder) == set(allowed)


def test_nobody_goes_past_the_gates() -> None:
    clients = {"LightningRpc", "BitcoindRpc", "HTTPConnection"}
    makers = {}
    for root in ("plugin", "device"):
        for path, tree in sources(CHECKOUT / root / "wattline"):
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            if names & clients:
                makers[str(path.relative_to(CHECKOUT))] = names & clients
    assert makers == {
        "plugin/wattline/bitcoin/bitcoind.py": {"BitcoindRpc"},
        "plugin/wattline/bitcoin/json_rpc.py": {"HTTPConnection"},
        "plugin/wattline/lightning/rpc.py": {"LightningRpc"},
        # The guard starts the plugin again, by its own path and options.
        "device/wattline/relay/revival.py": {"LightningRpc"},
    }
