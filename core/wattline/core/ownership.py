"""Whose a file or a folder is, who else may write there, and who holds a lock.

Where others may write, too, a name means nothing by itself: somebody may have put a link there, or a file of his own.

Files opened without following, truncating or believing what somebody else has put in their place.

Who holds a lock, as the kernel says: nobody can pass for another.
"""

from __future__ import annotations

import datetime
import errno
import os
import pwd
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = 0
SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""Not through a link, not into a child, and not waiting for the other end of a pipe."""


class ForeignFile(OSError):
    """What lies at a path was put there by somebody else; ``strerror`` says what it is."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.EPERM, what, str(path))


def open_own(path: Path, mode: int = 0o600) -> int:
    """A descriptor of the file ``path`` for reading and writing, made with ``mode`` when there is none. What is in it
    stays. Raises OSError; ForeignFile when it is no plain file, another user's, or has a second name somewhere."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | SAFELY)
        except FileNotFoundError:
            try:
                # Not O_CREAT alone: that would open what somebody has put there meanwhile.
                return os.open(path, os.O_RDWR | SAFELY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                continue
        except OSError as error:
            raise told(path, error) from error
        try:
            check_own(path, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def open_lock(path: Path, mode: int | None) -> int:
    """A descriptor to be locked of the plain file ``path``, whosesoever it is, made with ``mode`` when there is none
    and ``mode`` is given. It may be for reading only; nothing is to be written into it but when it is this user's.

    Raises OSError; ForeignFile when it is no plain file, cannot be opened by us, or has a second name somewhere.
    """
    while True:
        try:
            descriptor = _opened(path)
        except FileNotFoundError:
            if mode is None:
                raise
            try:
                made = os.open(path, os.O_RDWR | SAFELY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                continue
            os.fchmod(made, mode)  # whatever the umask, which is the whole process's and not changed for a moment
            return made
        try:
            check_plain(path, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _opened(path: Path) -> int:
    for access in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, access | SAFELY)
        except PermissionError as error:
            refused = error
        except OSError as error:
            raise told(path, error) from error
    raise told(path, refused) from refused


def told(path: Path, error: OSError) -> OSError:
    """``error`` of opening ``path``, in words that say whose fault it is."""
    if error.errno == errno.ELOOP:
        return ForeignFile(path, "it is a symbolic link")
    try:
        owner = path.stat(follow_symlinks=False).st_uid
    except OSError:
        return error
    return error if owner in (os.geteuid(), ROOT) else ForeignFile(path, f"it belongs to user {user_name(owner)}")


def check_own(path: Path, found: os.stat_result) -> None:
    """Raises ForeignFile unless ``found`` is a plain file of this user or of root, with one name at most."""
    check_plain(path, found)
    if found.st_uid not in (os.geteuid(), ROOT):
        raise ForeignFile(path, f"it belongs to user {user_name(found.st_uid)}")


def check_plain(path: Path, found: os.stat_result) -> None:
    """Raises ForeignFile unless ``found`` is a plain file with one name at most (none: it was just removed)."""
    if not stat.S_ISREG(found.st_mode):
        raise ForeignFile(path, "it is not a plain file")
    if found.st_nlink > 1:
        raise ForeignFile(path, f"it has {found.st_nlink} names (hard links)")


def check_folder(folder: Path) -> None:
    """Raises ForeignFile when everybody may write into ``folder``: names in it mean nothing then. Raises OSError."""
    if folder.stat().st_mode & stat.S_IWOTH:
        raise ForeignFile(folder, "everybody may write into it")


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


LOCKS = Path("/proc/locks")
LONGEST_COMMAND = 80
AFTER_NAME_START_TIME = 19


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    uid: int
    command: str
    """Its command line: shortened, and without what a terminal would obey."""
    since: str
    """When it started, UTC; empty when that is hidden."""

    def __str__(self) -> str:
        text = f"process {self.pid} of user {user_name(self.uid)}"
        if self.command:
            text += f" ({self.command})"
        return f"{text}, running since {self.since}" if self.since else text


def holder_of(descriptor: int) -> Holder | None:
    """The process with the lock (flock) on an open file; None when nobody has it, or the kernel does not show whom: in
    a container the processes outside of it."""
    found = os.fstat(descriptor)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    # proc(5), /proc/locks: "1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF"; who only waits has "->" after the number.
    held = re.compile(rf"^\d+: FLOCK +\w+ +\w+ +(\d+) +{device}:{found.st_ino} ", re.MULTILINE)
    try:
        line = held.search(LOCKS.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return None if line is None else _told(int(line[1]))


def _told(pid: int) -> Holder | None:
    place = Path(f"/proc/{pid}")
    try:
        uid = place.stat().st_uid
        words = (place / "cmdline").read_bytes().split(b"\0")
        after_name = (place / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        start = int(after_name[AFTER_NAME_START_TIME])
    except (OSError, ValueError, IndexError):
        return None
    return Holder(pid, uid, _readable(b" ".join(words).decode("utf-8", "replace")), _since(start))


def _readable(command: str) -> str:
    """It is another user's text, and goes to a terminal and into a log."""
    shown = "".join(
        character if character.isascii() and character.isprintable() else "?" for character in command.strip()
    )
    return shown if len(shown) <= LONGEST_COMMAND else f"{shown[: LONGEST_COMMAND - 3]}..."


def _since(start_ticks: int) -> str:
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
    started = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s)
    return started.strftime("%Y-%m-%d %H:%M:%S UTC")
