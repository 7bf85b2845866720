"""The entry point of the ``wattline`` command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cli.command import run

SLOW = """
import sys

class Slow:
    \"\"\"Loading the program takes until the end of the input.\"\"\"

    def find_spec(self, name, path=None, target=None):
        if name == "wattline.cli.main":
            print("loading", flush=True)
            sys.stdin.read()

sys.meta_path.insert(0, Slow())
from wattline.cli.start import main
main()
"""


def started(*words: str, before: Callable[[], object] | None = None) -> subprocess.Popen[str]:
    """A command in the midst of loading."""
    command = [sys.executable, "-c", SLOW, *words]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, preexec_fn=before)
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    return process


def test_ctrl_c_while_the_program_loads_ends_it_without_a_word() -> None:
    process = started("--help")
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (-signal.SIGINT, "", "")


def test_one_that_is_started_deaf_to_ctrl_c_stays_so() -> None:
    process = started("--help", before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "meter" in out


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"wattline {version('wattline')}\n"


@pytest.mark.parametrize("command", ["init", "meter", "outlet"])
def test_a_command_waits_for_nothing_that_it_does_not_need(command: str) -> None:
    program = f"import sys\nfrom wattline.cli.main import assemble\nassemble(['--verbose', {command!r}])\n"
    program += "print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"typer", "pydantic"} <= set(loaded)
    assert not {"sqlalchemy", "grpc", "pyln"} & set(loaded)


def test_a_command_that_there_is_not_is_told_of_beside_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("metr") == 2
    assert "No such command 'metr'. Did you mean 'meter'?" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", [True, False])
@pytest.mark.parametrize("words", [("--version",), ("--help",), ("init", "cable", "--output", "cable.toml", "--force")])
def test_what_cannot_be_written_is_status_1_and_one_line(
    words: tuple[str, ...], unbuffered: bool, tmp_path: Path
) -> None:
    status, errors = _ended(words, unbuffered, tmp_path, stdout="/dev/full")
    assert (status, errors) == (1, "wattline: error: system_error: output: No space left on device\n")


@pytest.mark.parametrize("unbuffered", [True, False])
def test_what_cannot_be_said_of_a_mistake_leaves_its_status(unbuffered: bool, tmp_path: Path) -> None:
    status, _ = _ended(("nonsense",), unbuffered, tmp_path, stderr="/dev/full")
    assert status == 2


def _ended(
    words: Sequence[str], unbuffered: bool, folder: Path, stdout: str = os.devnull, stderr: str | None = None
) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [str(Path(sys.executable).parent / "wattline"), *words]
    with Path(stdout).open("w") as out, Path(stderr or os.devnull).open("w") as errors:
        done = subprocess.run(
            command,
            stdout=out,
            stderr=errors if stderr else subprocess.PIPE,
            text=True,
            check=False,
            cwd=folder,
            env=environment | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {}),
        )
    return done.returncode, done.stderr or ""
