"""The four source roots stay one package, and nothing in the checkout ties it to one machine or one index."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from typing import Any

import pytest
from harness.longest_first import LONGEST

from tests.repo.checkout import CHECKOUT, SOURCE_ROOTS, files_of_the_checkout, subpackages

# Put together here, so that this file is not the first to break its own rule.
REGISTRY_HOSTS = tuple(
    f"{name}.{domain}"
    for name, domain in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("jsdelivr", "net"),
        ("ghcr", "io"),
        ("docker", "io"),
        ("quay", "io"),
    )
)
PLACES_OF_ONE_MACHINE = re.compile(
    rb"(?<![\w.~$}-])(?<!\w\")/(?:root|work|opt/(?:venv|build|prompts)|home/[a-z]\w*|Users/\w+)/"
)


LOCKS = ["requirements/run.txt", "requirements/build.txt", "requirements/dev.txt"]


def project() -> dict[str, Any]:
    values: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    return values


def test_every_file_that_is_to_be_tested_early_is_there() -> None:
    assert [name for name in LONGEST if not (CHECKOUT / name).is_file()] == []


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_no_source_root_has_an_init_that_would_hide_the_others(root: str) -> None:
    assert (CHECKOUT / root / "wattline").is_dir()
    assert not (CHECKOUT / root / "wattline" / "__init__.py").exists()
    assert not (CHECKOUT / root / "__init__.py").exists()
    assert [path.name for path in (CHECKOUT / root / "wattline").glob("*.py")] == []


def test_no_subpackage_lives_in_two_roots() -> None:
    folders = [name for root in SOURCE_ROOTS for name in _folders(root)]

    assert sorted(folders) == sorted(set(folders))


def _folders(root: str) -> list[str]:
    return [path.name for path in (CHECKOUT / root / "wattline").iterdir() if path.is_dir() and path.name[0] != "_"]


@pytest.mark.parametrize("name", subpackages())
def test_every_subpackage_tells_type_checkers_that_it_is_typed(name: str) -> None:
    assert (subpackages()[name] / "py.typed").is_file()


@pytest.mark.parametrize("name", subpackages())
def test_every_subpackage_is_seen_by_the_import_contracts(name: str) -> None:
    """A folder without `__init__.py` below one with it is passed over by import-linter, in silence."""
    folder = subpackages()[name]
    sources = [path for path in folder.rglob("*.py") if "__pycache__" not in path.parts]

    assert sources
    if (folder / "__init__.py").exists():
        assert [str(path) for path in sources if not (path.parent / "__init__.py").exists()] == []


def test_no_file_names_a_package_registry() -> None:
    found = [
        f"{path.relative_to(CHECKOUT)}: {host}"
        for path in files_of_the_checkout()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    ]

    assert found == []


@pytest.mark.parametrize("lock", [*LOCKS, "package-lock.json"])
def test_no_lock_file_holds_an_address(lock: str) -> None:
    text = (CHECKOUT / lock).read_text(encoding="utf-8")

    assert "://" not in text
    assert "--index-url" not in text
    assert '"resolved"' not in text


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pinned_package_is_pinned_by_hash(lock: str) -> None:
    text = (CHECKOUT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]

    assert len(pins) > 5
    assert [pin.split()[0] for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_what_runs_is_pinned_alike_for_users_and_for_tests() -> None:
    def pins(lock: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9][\w.-]*==\S+", (CHECKOUT / lock).read_text(encoding="utf-8"), re.MULTILINE))

    assert pins("requirements/run.txt") | pins("requirements/build.txt") <= pins("requirements/dev.txt")


@pytest.mark.parametrize("page", sorted(path.name for path in [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")]))
def test_every_source_that_a_page_names_is_there(page: str) -> None:
    (text,) = [
        path.read_text(encoding="utf-8") for path in (CHECKOUT / page, CHECKOUT / "docs" / page) if path.is_file()
    ]
    files = [f"/{path.relative_to(CHECKOUT).as_posix()}" for path in files_of_the_checkout()]
    named = set(re.findall(r"`([a-z_/0-9]+\.py)`", text)) - {"wattline/__init__.py"}

    assert [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in files)] == []


def test_no_file_names_a_place_of_one_machine() -> None:
    found = [
        f"{path.relative_to(CHECKOUT)}: {match.group().decode()}"
        for path in files_of_the_checkout()
        for match in PLACES_OF_ONE_MACHINE.finditer(path.read_bytes())
    ]

    assert found == []


@pytest.mark.parametrize("script", ["wattline", "wattline-plugin"])
def test_a_console_script_names_a_function(script: str) -> None:
    module, _, function = project()["project"]["scripts"][script].partition(":")

    assert callable(getattr(import_module(module), function))


def test_the_version_is_written_in_one_place() -> None:
    written = project()["project"]["version"]
    copies = [
        str(path.relative_to(CHECKOUT))
        for path in files_of_the_checkout()
        if path.suffix == ".py"
        and re.search(rf"__version__\s*=\s*['\"]|['\"]{re.escape(written)}['\"]", path.read_text(encoding="utf-8"))
    ]

    assert copies == []


def test_the_make_commands_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(
        re.findall(r"(?:^\s*|`|\$ )make ([a-z-]+)", (CHECKOUT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )

    assert {"test", "demo"} <= named
    assert named <= targets


def test_the_machine_that_checks_every_change_runs_the_command_of_the_readme() -> None:
    script = CHECKOUT / ".ci" / "run"

    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text(encoding="utf-8").splitlines()[-1]
