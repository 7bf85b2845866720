"""Each import contract in pyproject.toml, tried on a copy of the package's skeleton that breaks it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.repo.checkout import CHECKOUT, SOURCE_ROOTS, subpackages

IMPURE = (
    "asyncio",
    "datetime",
    "google.protobuf",
    "grpc",
    "io",
    "logging",
    "os",
    "pathlib",
    "pydantic",
    "pyln.client",
    "random",
    "secrets",
    "socket",
    "sqlalchemy",
    "subprocess",
    "threading",
    "time",
    "wattline.core.ledger",
    "wattline.core.lightning",
    "wattline.cable.link",
    "wattline.cable.pay",
    "wattline.cable.settings",
    "wattline.v1",
)


def contract(name: str) -> dict[str, Any]:
    """One of those in pyproject.toml."""
    values = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    (found,) = [each for each in values["tool"]["importlinter"]["contracts"] if each["id"] == name]
    return dict(found)


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """The roots with every package and module in its place, each of them empty, and the contracts that are in force."""
    for folder in subpackages().values():
        for source in folder.rglob("*.py"):
            copy = tmp_path / source.relative_to(CHECKOUT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.touch()
        (tmp_path / folder.relative_to(CHECKOUT) / "__init__.py").touch()
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    return tmp_path


def write(skeleton: Path, module: str, source: str) -> None:
    """``source`` as the module, or the package, of this name."""
    _, room, *path = module.split(".")
    (root,) = skeleton.glob(f"*/wattline/{room}")
    target = root.joinpath(*path)
    (target / "__init__.py" if target.is_dir() else target.with_suffix(".py")).write_text(source + "\n")


def lint_imports(skeleton: Path, *contracts: str) -> tuple[int, str]:
    """Exit status and words of lint-imports. Without `site`, or the linked checkout would be in the namespace too."""
    path = [*(str(skeleton / root) for root in SOURCE_ROOTS), str(CHECKOUT), sysconfig.get_path("purelib")]
    done = subprocess.run(
        [
            *(sys.executable, "-S", "-c", "from importlinter.cli import lint_imports_command as run; run()"),
            *("--no-cache", "--no-logo", *(word for contract in contracts for word in ("--contract", contract))),
        ],
        cwd=skeleton,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_skeleton_without_imports_keeps_every_contract(skeleton: Path) -> None:
    status, words = lint_imports(skeleton)

    assert status == 0, words
    assert "0 broken" in words
    assert " 0 kept" not in words


PURE = contract("pure")["pure_packages"]


@pytest.mark.parametrize("package", PURE)
def test_a_pure_package_may_import_neither_clock_nor_node_nor_database(skeleton: Path, package: str) -> None:
    write(skeleton, package, "".join(f"def later{n}() -> None:\n    import {m}\n" for n, m in enumerate(IMPURE)))

    status, words = lint_imports(skeleton, "pure")

    assert status == 1
    unseen = [
        module
        for number, module in enumerate(IMPURE)
        if f"{package} (line {2 * number + 2}): {module if 'wattline' in module else module.split('.')[0]}" not in words
    ]
    assert unseen == [], words


def test_a_pure_package_may_import_values_and_its_pure_neighbours(skeleton: Path) -> None:
    neighbours = "import wattline.core.tariff, wattline.core.errors\nfrom collections.abc import Set"
    write(skeleton, "wattline.core.session.session", neighbours)

    status, words = lint_imports(skeleton, "pure")

    assert status == 0, words


ROWS: list[list[str]] = [row.split(" | ") for row in contract("rooms")["layers"]]
AGAINST = [
    (one, other) for number, row in enumerate(ROWS) for one in row for above in ROWS[:number] for other in above
] + [(one, other) for row in ROWS for one in row for other in row if one != other]


def test_every_import_against_the_table_of_rooms_is_refused(skeleton: Path) -> None:
    for one, other in AGAINST:
        write(skeleton, f"wattline.{one}.to_{other}", f"def later() -> None:\n    import wattline.{other}.aim")
        write(skeleton, f"wattline.{other}.aim", "")

    status, words = lint_imports(skeleton, "rooms")

    assert status == 1
    unseen = [(a, b) for a, b in AGAINST if f"wattline.{a}.to_{b} -> wattline.{b}.aim" not in words]
    assert unseen == [], words


LAYERS: list[list[str]] = [row.split(" | ") for row in contract("cable")["layers"]]


def test_every_import_up_the_layers_of_the_cable_is_refused(skeleton: Path) -> None:
    up = {
        one: [each for above in LAYERS[:number] for each in above] for number, row in enumerate(LAYERS) for one in row
    }
    for one, above in up.items():
        imports = (f"def later{n}() -> None:\n    import wattline.cable.{each}\n" for n, each in enumerate(above))
        write(skeleton, f"wattline.cable.{one}", "".join(imports))

    status, words = lint_imports(skeleton, "cable")

    assert status == 1
    unseen = [
        (one, each)
        for one, above in up.items()
        for each in above
        if f"wattline.cable.{one} -> wattline.cable.{each}" not in words
    ]
    assert unseen == [], words


def test_a_room_that_is_not_in_the_table_is_refused(skeleton: Path) -> None:
    (skeleton / "core" / "wattline" / "attic").mkdir()
    (skeleton / "core" / "wattline" / "attic" / "__init__.py").touch()

    status, words = lint_imports(skeleton, "rooms")

    assert status == 1
    assert "attic" in words


def test_the_page_of_the_architecture_has_the_same_table() -> None:
    page = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## The rooms", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)

    assert [re.findall(r"`(\w+)`", row) for row in rows] == ROWS


def test_every_source_root_is_a_room() -> None:
    assert {room for row in ROWS for room in row} == {name.removeprefix("wattline.") for name in subpackages()}
