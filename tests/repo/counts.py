"""What the house is held to, counted: ``python tests/repo/counts.py`` prints it and fails where a limit is passed.

Lines are lines of Python without generated code. A Protocol needs two implementations; a fake of the tests counts as
one at the seams to hardware, node, chain, network and clock (``SEAMS``).
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PRODUCT = ("core", "device", "cable", "plugin", "cli")
HARNESS = ("regtest/wattline", "regtest/bench")
"""The practice node, the demo and the benchmarks: neither product nor tests."""
MOST_FILES = 178
"""To come down to 150: whole concerns rather than crumbs."""
MOST_CABLE_FILES = 26
MOST_LINES = 400
STILL_LONGER = {"plugin/wattline/plugin/outlet.py": 500}
"""The outlet's loop is to be redrawn as a whole."""
SEAMS = frozenset(
    {
        *("I2CBus", "SmbusDevice", "Meter", "SamplingChip", "Expander", "Line", "Relay", "Running"),
        *("Wallet", "Signer", "Journal", "CableNode", "NodeNotes", "PayingFunds", "ReceivingFunds", "Rpc"),
        *("Chain", "Clock"),
    }
)
"""Protocols at the seams to hardware, node, chain, network and clock."""
ELSEWHERE = frozenset({"SmbusDevice", "Line", "Running"})
"""Those of which one implementation is a library's: smbus2, gpiod, subprocess."""


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file."""

    path: Path
    lines: int
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(CHECKOUT).as_posix()

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))


def sources(*folders: str) -> list[Source]:
    """All files below these folders, without generated ones."""
    found = []
    for folder in folders:
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            found.append(Source(path, text.count("\n"), ast.parse(text)))
    return found


def names_of(bases: list[ast.expr]) -> set[str]:
    """The last word of each base class."""
    return {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in bases}


class Classes:
    """The classes of some files, by name, with what they inherit from each other."""

    def __init__(self, files: list[Source]) -> None:
        self._found: dict[str, list[tuple[str, ast.ClassDef]]] = defaultdict(list)
        for source in files:
            for cls in source.classes():
                self._found[cls.name].append((source.name, cls))

    def __iter__(self) -> Iterator[tuple[str, ast.ClassDef]]:
        return (each for found in self._found.values() for each in found)

    def methods(self, cls: ast.ClassDef) -> set[str]:
        """What somebody else can call or read, inherited ones included."""
        own = {node.name for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        own |= {
            node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        own |= {
            node.attr for node in ast.walk(cls) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
        }
        for base in names_of(cls.bases) - {cls.name}:
            for _, parent in self._found.get(base, []):
                own |= self.methods(parent)
        return {name for name in own if not name.startswith("__") or name == "__call__"}


def single_implementations(product: list[Source], tests: list[Source]) -> list[str]:
    """Protocols that fewer than two classes carry out, by the methods that they have."""
    ours, all_of_them = Classes(product), Classes([*product, *tests])
    protocols = {cls.name: (where, cls) for where, cls in ours if "Protocol" in names_of(cls.bases)}
    found = []
    for name, (where, protocol) in sorted(protocols.items()):
        wanted = ours.methods(protocol)
        carriers = {
            cls.name
            for _, cls in (all_of_them if name in SEAMS else ours)
            if cls.name not in protocols and wanted <= all_of_them.methods(cls)
        }
        if len(carriers) + (name in ELSEWHERE) < 2:
            found.append(f"{name} ({where}): {', '.join(sorted(carriers)) or 'nobody'}")
    return found


def main() -> int:
    """Print the counts; 1 where a limit is passed."""
    product = sources(*(f"{root}/wattline" for root in PRODUCT))
    harness = sources(*HARNESS)
    tests = [each for each in sources("tests", "regtest") if each.path not in {source.path for source in harness}]
    lines, test_lines = (sum(source.lines for source in each) for each in (product, tests))
    cable = [source for source in product if source.name.startswith("cable/")]
    places: dict[str, list[str]] = defaultdict(list)
    for source in product:
        for cls in source.classes():
            places[cls.name].append(source.name)
    twice = [f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1]
    long = [
        f"{source.name}: {source.lines}"
        for source in product
        if source.lines > STILL_LONGER.get(source.name, MOST_LINES)
    ]
    single = single_implementations(product, [*tests, *harness])
    told = [
        f"product: {len(product)} files (at most {MOST_FILES}), {lines} lines",
        f"cable/: {len(cable)} files (at most {MOST_CABLE_FILES})",
        f"tests: {test_lines} lines, {test_lines / lines:.2f} of the product's",
        f"practice node, demo and benchmarks: {sum(source.lines for source in harness)} lines",
    ]
    faults = {
        f"files longer than {MOST_LINES} lines": long,
        "class names that are there twice": twice,
        "Protocols with one implementation": single,
        "too many files": [str(len(product))] if len(product) > MOST_FILES else [],
        "too many files in cable/": [str(len(cable))] if len(cable) > MOST_CABLE_FILES else [],
    }
    told += ["\n  ".join([f"{what}:", *found]) for what, found in faults.items() if found]
    sys.stdout.write("\n".join(told) + "\n")
    return 1 if any(faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
