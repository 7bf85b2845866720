"""Locks of hardware in folders where other users may put files, links and locks of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.another_user import BOB, MALLORY, lock_of, needs_root, said_by, shared
from tests.device.relays.test_exclusion import expander
from wattline.device.relays.exclusion import claimed, locks_of
from wattline.device.relays.relay import RelayError

__all__ = ["shared"]

CLAIM = """
from pathlib import Path
from wattline.device.relays.relay import RelayError
from wattline.device.relays.exclusion import claimed
from tests.device.relays.test_exclusion import expander
from wattline.device.relays.exclusion import locks_of
become(int(sys.argv[1]))
machine, own = Path(sys.argv[2]), Path(sys.argv[3])
try:
    with claimed([expander()], patience_s=0, machine=[machine], own=own):
        (lock,) = [path for path in (own, machine) if (path / locks_of(expander(), [path])[0].name).exists()][:1]
        print("has it in", lock)
except RelayError as error:
    print(error.code, error.message)
"""


def lock_in(folder: Path) -> Path:
    (path,) = locks_of(expander(), [folder])
    return path


def refusal(machine: Path, own: Path | None = None) -> RelayError:
    with pytest.raises(RelayError) as caught, claimed([expander()], patience_s=0, machine=[machine], own=own):
        pass
    return caught.value


@contextmanager
def folder_of(path: Path, uid: int, mode: int) -> Iterator[Path]:
    path.mkdir()
    os.chown(path, uid, uid)
    path.chmod(mode)
    yield path


@pytest.mark.parametrize(
    ("put", "told"),
    [
        pytest.param(lambda path, dear: path.hardlink_to(dear), "it has 2 names", id="a hard link"),
        pytest.param(lambda path, dear: path.symlink_to(dear), "it is a symbolic link", id="a symbolic link"),
        pytest.param(lambda path, _: os.mkfifo(path), "it is not a plain file", id="a pipe"),
        pytest.param(lambda path, _: path.mkdir(), "Is a directory", id="a folder"),
    ],
)
def test_what_was_put_in_the_place_of_a_lock_is_left_as_it_is_and_named(
    put: Callable[[Path, Path], object], told: str, tmp_path: Path
) -> None:
    dear = tmp_path / "dear"
    dear.write_text("dear")
    put(lock_in(tmp_path), dear)
    error = refusal(tmp_path)
    assert error.code == "relay_lock_unusable"
    assert f"{lock_in(tmp_path)} cannot be locked: {told}" in error.message
    assert dear.read_text() == "dear"


@needs_root
def test_who_is_refused_is_told_who_has_the_lock_with_what_and_since_when(shared: Path) -> None:
    with lock_of(MALLORY, lock_in(shared)) as holder:
        error = refusal(shared)
    assert error.code == "relay_taken"
    assert f"process {holder.pid} of user nobody (" in error.message
    assert "running since 20" in error.message
    assert str(lock_in(shared)) in error.message


@needs_root
def test_nobody_drives_under_a_lock_that_another_user_could_take_away(shared: Path) -> None:
    with lock_of(MALLORY, lock_in(shared), "left"):
        said = said_by(BOB, CLAIM, str(shared), str(shared / "no-such-folder"))
    assert said.startswith("relay_lock_unusable")
    assert f"{lock_in(shared)} cannot be locked: it was left behind by user nobody" in said


@needs_root
def test_root_takes_away_what_another_user_has_left_behind(shared: Path) -> None:
    with (
        lock_of(MALLORY, lock_in(shared), "left"),
        claimed([expander()], patience_s=0, machine=[shared]),
    ):
        found = lock_in(shared).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (0, 0o644)


@needs_root
def test_in_a_folder_of_our_own_no_stranger_is_in_the_way(shared: Path) -> None:
    with folder_of(shared / "own", BOB, 0o700) as own, lock_of(MALLORY, lock_in(shared)):
        assert said_by(BOB, CLAIM, str(shared), str(own)) == f"has it in {own}\n"


@needs_root
def test_guards_of_several_users_meet_in_the_folder_of_our_own(shared: Path) -> None:
    with folder_of(shared / "own", BOB, 0o700) as own:
        with claimed([expander()], machine=[shared], own=own):
            assert said_by(BOB, CLAIM, str(shared), str(own)).startswith("relay_taken")
            assert [path.name for path in shared.iterdir()] == ["own"]
        with lock_of(BOB, lock_in(own), "left"), claimed([expander()], patience_s=0, machine=[shared], own=own):
            assert lock_in(own).stat().st_uid == 0


@needs_root
def test_a_guard_that_began_before_the_folder_of_our_own_was_there_keeps_its_relay(shared: Path) -> None:
    with claimed([expander()], machine=[shared]), folder_of(shared / "own", BOB, 0o700) as own:
        assert said_by(BOB, CLAIM, str(shared), str(own)).startswith("relay_taken")


@needs_root
def test_who_may_not_write_into_the_folder_of_our_own_drives_nothing(shared: Path) -> None:
    with folder_of(shared / "own", 0, 0o755) as own:
        said = said_by(BOB, CLAIM, str(shared), str(own))
    assert said.startswith("relay_lock_unusable")
    assert f"{own} is there, but user {BOB} may not write into it" in said


def test_a_folder_that_everybody_may_write_to_is_not_our_own(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    own.chmod(0o1777)
    error = refusal(tmp_path, own)
    assert (error.code, str(own) in error.message) == ("relay_lock_unusable", True)
