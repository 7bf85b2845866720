"""Files opened without following, truncating or believing what somebody else has put in their place."""

from __future__ import annotations

import errno
import os
import pwd
import stat
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
