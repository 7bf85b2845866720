"""Unix sockets at paths of any length.

The address of a unix socket has 108 bytes only; directories of tests and of nodes are often longer. Linux lets an
opened directory stand for its path: ``/proc/self/fd/N/name``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_ADDRESS = 100


@contextmanager
def _address_of(path: Path) -> Iterator[str]:
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect_unix(path: Path, timeout_s: float) -> socket.socket:
    """A stream socket connected to ``path``, with ``timeout_s`` set. Raises OSError."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(timeout_s)
        with _address_of(path) as address:
            client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def listen_unix(path: Path, backlog: int = 64) -> socket.socket:
    """A listening socket at ``path`` that only this user can connect to; what lay there is removed. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            with _address_of(path) as address:
                listener.bind(address)
        finally:
            os.umask(before)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
