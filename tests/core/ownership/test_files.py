"""Files that somebody else may have put where ours are to be."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.another_user import MALLORY, lock_of, needs_root, shared
from wattline.core.ownership import ForeignFile, check_folder, holder_of, open_own

__all__ = ["shared"]


def test_a_file_of_our_own_is_made_for_us_alone_and_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ours"
    os.close(open_own(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("kept")
    os.close(open_own(path))
    assert path.read_text() == "kept"


@pytest.mark.parametrize(
    ("put", "told"),
    [
        pytest.param(lambda path, other: path.hardlink_to(other), "2 names", id="a hard link"),
        pytest.param(lambda path, other: path.symlink_to(other), "symbolic link", id="a symbolic link"),
        pytest.param(lambda path, _: path.symlink_to("missing"), "symbolic link", id="a link to nothing"),
        pytest.param(lambda path, _: os.mkfifo(path), "not a plain file", id="a pipe that nobody reads"),
    ],
)
def test_what_somebody_put_there_is_neither_opened_nor_changed(
    put: Callable[[Path, Path], object], told: str, tmp_path: Path
) -> None:
    other, path = tmp_path / "other", tmp_path / "ours"
    other.write_text("dear")
    put(path, other)
    with pytest.raises(ForeignFile, match=told):
        open_own(path)
    assert other.read_text() == "dear"
    assert not (tmp_path / "missing").exists()


@needs_root
def test_another_users_file_is_refused_with_his_name(shared: Path) -> None:
    with lock_of(MALLORY, shared / "file", "left"), pytest.raises(ForeignFile, match="belongs to user nobody"):
        open_own(shared / "file")


def test_a_folder_that_everybody_may_write_to_is_told_from_one_of_ours(tmp_path: Path) -> None:
    check_folder(tmp_path)
    tmp_path.chmod(0o1777)
    with pytest.raises(ForeignFile, match="everybody may write"):
        check_folder(tmp_path)


def test_nobody_holds_a_lock_that_is_free(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("ab") as lock:
        assert holder_of(lock.fileno()) is None


def test_the_holder_of_a_lock_is_whom_the_kernel_names(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("1\n")
    with path.open("rb") as lock, path.open("rb") as other:
        fcntl.flock(lock, fcntl.LOCK_EX)
        holder = holder_of(other.fileno())
    assert holder is not None
    assert (holder.pid, holder.uid) == (os.getpid(), os.geteuid())
    assert holder.command.startswith(Path("/proc/self/cmdline").read_text().split("\0")[0])
    assert holder.since.endswith("UTC")


def test_a_holder_cannot_say_to_a_terminal_what_it_obeys(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hold = "import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, 2); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(path), "\x1b[2J\nforged"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with path.open("rb") as lock:
            holder = holder_of(lock.fileno())
        process.communicate()
    assert holder is not None
    assert holder.pid == process.pid
    assert str(holder).isprintable()
