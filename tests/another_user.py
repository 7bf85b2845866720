"""Another user of the same machine: a process that has given up being root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MALLORY, BOB = 65_534, 65_533
"""Nobody on Debian, and a number without a name."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
BECOME = """
import os, sys
def become(uid):
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
"""
HOLD = (
    BECOME
    + """
import fcntl
become(int(sys.argv[1]))
os.umask(0)
lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o666)
if sys.argv[3] == "held":
    fcntl.flock(lock, fcntl.LOCK_EX)
print("done", flush=True)
sys.stdin.read()
"""
)
"""What is imported has to be before ``become``: the checkout may be root's alone."""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp, at a place that every user can reach."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


@contextmanager
def lock_of(uid: int, path: Path, how: str = "held") -> Iterator[subprocess.Popen[str]]:
    """A process of user ``uid`` that has made ``path`` and holds it, unless it is only ``left``."""
    command = [sys.executable, "-c", HOLD, str(uid), str(path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def said_by(uid: int, program: str, *arguments: str) -> str:
    """What ``program``, which calls ``become(uid)``, says on stdout."""
    command = [sys.executable, "-c", BECOME + program, str(uid), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
