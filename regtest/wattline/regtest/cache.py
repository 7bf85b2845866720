"""Where programs that are fetched once are kept, and the lock that lets only one process fetch them."""

from __future__ import annotations

import fcntl
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wattline.core.errors import StopError
from wattline.core.ownership import check_folder, open_own


def cache_directory() -> Path:
    """The cache: ``$WATTLINE_CACHE``, else ``.cache/wattline`` of the checkout that this file is part of, else
    ``$XDG_CACHE_HOME/wattline``, else ``~/.cache/wattline``. It is not made here."""
    if chosen := os.environ.get("WATTLINE_CACHE"):
        return Path(chosen).absolute()
    checkout = _checkout()
    if checkout is not None and os.access(checkout, os.W_OK):
        return checkout / ".cache" / "wattline"
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).absolute() / "wattline"
    return Path.home() / ".cache" / "wattline"


@contextmanager
def exclusive(directory: Path, name: str) -> Iterator[None]:
    """Hold ``directory/name.lock`` over the block; other processes wait. The directory is made when missing.
    Raises StopError when the directory cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # What is kept here is run, so nobody else may have put it there.
        check_folder(directory)
        lock = open_own(directory / f"{name}.lock")
    except OSError as error:
        raise StopError(
            "cache_unwritable",
            f"{directory}: the cache cannot be written ({error.strerror}); set WATTLINE_CACHE to a directory that can",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _checkout() -> Path | None:
    """The repository that this source file lies in; None when wattline was installed from a wheel."""
    root = Path(__file__).resolve().parents[3]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return None
    return root if project.get("project", {}).get("name") == "wattline" else None
