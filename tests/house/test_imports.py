"""Each import contract in pyproject.toml, tried on a copy of the package's skeleton that breaks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.house.checkout import CHECKOUT, SOURCE_ROOTS, subpackages

IMPURE = (
    "asyncio",
    "datetime",
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
    "wattline.lightning",
)


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """The four roots with every subpackage in its place, each of them empty, and the contracts that are in force."""
    for folder in subpackages().values():
        copy = tmp_path / folder.relative_to(CHECKOUT)
        copy.mkdir(parents=True)
        (copy / "__init__.py").touch()
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    return tmp_path


def write(skeleton: Path, module: str, source: str) -> None:
    _, subpackage, name = module.split(".")
    (root,) = skeleton.glob(f"*/wattline/{subpackage}")
    (root / f"{name}.py").write_text(source + "\n")


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


@pytest.mark.parametrize("package", ["wattline.session", "wattline.tariff", "wattline.errors"])
def test_a_pure_package_may_import_neither_clock_nor_node_nor_database(skeleton: Path, package: str) -> None:
    for number, module in enumerate(IMPURE):
        write(skeleton, f"{package}.impure{number}", f"def later() -> None:\n    import {module}")

    status, words = lint_imports(skeleton, "pure")

    assert status == 1
    unseen = [
        module
        for number, module in enumerate(IMPURE)
        if f"{package}.impure{number} (line 2): {module if 'wattline' in module else module.split('.')[0]}" not in words
    ]
    assert unseen == [], words


def test_a_pure_package_may_import_values_and_its_pure_neighbours(skeleton: Path) -> None:
    write(
        skeleton, "wattline.session.account", "import wattline.tariff, wattline.errors\nfrom collections.abc import Set"
    )

    status, words = lint_imports(skeleton, "pure")

    assert status == 0, words


def test_nobody_may_import_the_shell(skeleton: Path) -> None:
    others = sorted(set(subpackages()) - {"wattline.plugin"})
    for package in others:
        write(skeleton, f"{package}.stray", "import wattline.plugin")

    status, words = lint_imports(skeleton, "shell")

    assert status == 1
    assert {"wattline.bus", "wattline.meter", "wattline.relay", "wattline.cable", "wattline.cli"} <= set(others)
    unseen = [package for package in others if f"{package}.stray -> wattline.plugin" not in words]
    assert unseen == [], words


@pytest.mark.parametrize("package", ["wattline.payment", "wattline.ledger", "wattline.lightning"])
@pytest.mark.parametrize("buyer", ["wattline.cable", "wattline.cli"])
def test_what_turns_money_into_credit_may_not_reach_the_buyer(skeleton: Path, package: str, buyer: str) -> None:
    # Over a third package, since it is the reach that counts.
    write(skeleton, f"{package}.stray", "import wattline.settings.bridge")
    write(skeleton, "wattline.settings.bridge", f"import {buyer}")

    status, words = lint_imports(skeleton, "seller")

    assert status == 1
    assert f"{package} is not allowed to import {buyer}" in words
