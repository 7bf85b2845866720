"""What is called of lightningd and bitcoind, against the gates and against docs/security.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.checkout import CHECKOUT, PRODUCT_ROOTS
from wattline.core.bitcoin import checked_calls as bitcoin_gate
from wattline.core.lightning import checked_calls as lightning_gate

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
    for _, tree in sources(CHECKOUT / "core" / "wattline" / "core" / folder):
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
    for root in PRODUCT_ROOTS:
        for path, tree in sources(CHECKOUT / root / "wattline"):
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            if names & clients:
                makers[str(path.relative_to(CHECKOUT))] = names & clients
    assert makers == {
        "core/wattline/core/bitcoin/bitcoind.py": {"BitcoindRpc"},
        "core/wattline/core/bitcoin/bitcoind_rpc.py": {"HTTPConnection"},
        "core/wattline/core/lightning/rpc.py": {"LightningRpc"},
        # The guard starts the plugin again, by its own path and options.
        "device/wattline/device/controller/revival.py": {"LightningRpc"},
    }
