"""What is built from the checkout can be installed alone: nothing of the checkout is needed beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.repo.checkout import CHECKOUT, subpackages


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; its errors are part of the failure. Not the environment's own Python path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=CHECKOUT)
    (built,) = folder.glob("wattline-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it. It borrows the dependencies of this one, but a borrowed folder's own
    links (`.pth`) are not followed, so the checkout is out of its sight."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--quiet", "--no-deps", "--no-index", "--no-compile", wheel),
        cwd=home,
    )
    (packages,) = (home / "lib").glob("python*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return home


def test_the_wheel_holds_every_file_of_all_four_roots_and_nothing_else(wheel: Path) -> None:
    sources = {
        f"wattline/{folder.name}/{path.relative_to(folder).as_posix()}"
        for folder in subpackages().values()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licensed = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]

    assert packed == sources
    assert len(licensed) == 1


def test_every_subpackage_is_imported_from_the_installed_wheel(installed: Path) -> None:
    names = sorted(subpackages())
    words = run(
        *(installed / "bin" / "python", "-c"),
        "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__path__[0])\n",
        *names,
        cwd=installed,
    )

    outside = [line for line in words.splitlines() if not Path(line).resolve().is_relative_to(installed.resolve())]
    assert len(words.splitlines()) == len(names)
    assert outside == []


def test_the_installed_package_knows_the_version_of_the_project(installed: Path) -> None:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    ask = "import importlib.metadata as metadata; print(metadata.version('wattline'))"

    assert run(installed / "bin" / "python", "-c", ask, cwd=installed).strip() == version


def test_the_installed_command_explains_itself(installed: Path) -> None:
    assert "demo" in run(installed / "bin" / "wattline", "--help", cwd=installed)
