"""What the code imports, against what pyproject.toml declares: nothing is there only because another needs it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions, requires
from pathlib import Path
from typing import Any

import pytest

from tests.repo.checkout import CHECKOUT, SOURCE_ROOTS

PROJECT: Mapping[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
PRODUCT = [CHECKOUT / root / "wattline" for root in SOURCE_ROOTS]
"""What the wheel holds."""
OWN = {"wattline", "tests", *(path.stem for path in (CHECKOUT / "regtest").iterdir())}


BROUGHT_BY = {"coincurve": "pyln-proto"}
"""Modules whose distribution has another name from version to version of what brings them: two at once would overwrite
each other."""


def name_of(requirement: str) -> str:
    """As package indexes compare names."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def declared(*, for_the_checkout: bool) -> set[str]:
    requirements = [*PROJECT["project"]["dependencies"]]
    if for_the_checkout:
        groups = PROJECT["dependency-groups"]
        requirements += [each for group in ("dev", "build") for each in groups[group] if isinstance(each, str)]
    return {name_of(each) for each in requirements}


def imported(root: Path) -> Iterator[tuple[str, Path]]:
    """The modules of others that the sources below ``root`` name, wherever in a file they do."""
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names):
                    modules = [each.name for each in names]
                case ast.ImportFrom(str(module), _, 0):
                    modules = [module]
                case _:
                    continue
            for module in modules:
                if module.partition(".")[0] not in OWN | sys.stdlib_module_names:
                    yield module, path


def modules_of(distribution: Distribution) -> Iterator[str]:
    """The modules that it brings, and the packages that they lie in."""
    for file in distribution.files or ():
        if file.suffix in (".py", ".so", ".pyd", ".pyi") and ".." not in file.parts:
            parts = [*file.parts[:-1], file.name.partition(".")[0]]
            for length in range(1, len(parts) + 1):
                yield ".".join(parts[:length])


def owners() -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for distribution in distributions():
        for module in modules_of(distribution):
            found.setdefault(module, set()).add(name_of(distribution.metadata["Name"]))
    return found


OWNERS = owners()


def brought_with(module: str) -> set[str]:
    """What the bringer of such a module needs; nothing of any other."""
    bringer = BROUGHT_BY.get(module)
    return {name_of(each) for each in requires(bringer) or ()} if bringer is not None else set()


@pytest.mark.parametrize("for_the_checkout", [False, True], ids=["the product", "the checkout"])
def test_what_is_imported_is_declared(for_the_checkout: bool) -> None:
    roots = [CHECKOUT / name for name in (*SOURCE_ROOTS, "tests")] if for_the_checkout else PRODUCT
    allowed = declared(for_the_checkout=for_the_checkout)
    missing = {
        f"{path.relative_to(CHECKOUT)}: {module}, which is of {sorted(OWNERS.get(module, ()))}"
        for root in roots
        for module, path in imported(root)
        if not OWNERS.get(module, set()) & (brought_with(module) or allowed)
    }
    assert not missing, "\n".join(sorted(missing))


def test_what_the_product_declares_is_imported() -> None:
    assert set(BROUGHT_BY.values()) <= declared(for_the_checkout=False)
    used = {owner for root in PRODUCT for module, _ in imported(root) for owner in OWNERS.get(module, ())}
    here = set[str]().union(*OWNERS.values())  # some are for other systems than this one
    assert (declared(for_the_checkout=False) & here) - used == set()
