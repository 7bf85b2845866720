"""What goes wrong on the machine itself: ports, keys, disks, databases, terminals and pipes."""

from __future__ import annotations

import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from tests.cli_errors.mistake import Desk, Mistake
from wattline.core.ledger.ledger import open_ledger
from wattline.plugin.certificate import load_or_make
from wattline.regtest.daemon import free_port

RUN = ["cable", "run", "--config"]
READ = ["meter", "read", "--config"]


def home_of(desk: Desk) -> Path:
    """Where the plugin of the empty node would keep its things, cleared away afterwards."""
    home = Path(desk.fixture("empty_node").rpc_path).parent / "wattline"
    home.mkdir(mode=0o700, exist_ok=True)

    def clear() -> None:
        for path in home.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()

    desk.closing.append(clear)
    return home


def with_key(change: Callable[[Path, Path], object]) -> Callable[[Desk], list[str]]:
    """A plugin whose key and certificate were changed."""

    def make(desk: Desk) -> list[str]:
        home = home_of(desk)
        load_or_make(home)
        change(home / "tls-key.pem", home / "tls-certificate.pem")
        return [desk.socket_toml()]

    return make


def unreadable(key: Path, certificate: Path) -> None:
    """Root may read every file, but no directory like a file."""
    del certificate
    key.unlink()
    key.mkdir(mode=0o700)


def others_certificate(key: Path, certificate: Path) -> None:
    """The certificate of another key."""
    mine = key.read_bytes()
    key.unlink()
    load_or_make(key.parent)
    key.write_bytes(mine)


def taken_port(desk: Desk) -> list[str]:
    server = socket.create_server(("127.0.0.1", 0))
    desk.closing.append(server.close)
    return [desk.socket_toml(), f"127.0.0.1:{server.getsockname()[1]}"]


def newer(path: Path) -> None:
    """A ledger that a later wattline has written."""
    open_ledger(path).close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE schema_version SET version = 99")


def newer_cable(desk: Desk) -> list[str]:
    newer(desk.folder / "cable.sqlite3")
    return [*RUN, desk.cable_toml()]


def newer_socket(desk: Desk) -> list[str]:
    newer(desk.folder / "socket.sqlite3")
    return [desk.socket_toml()]


def full_disk(desk: Desk) -> list[str]:
    """SQLite itself refuses to grow, as on a full disk."""

    def limit(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 4")

    event.listen(Engine, "connect", limit)
    desk.closing.append(lambda: event.remove(Engine, "connect", limit))
    return [*RUN, desk.cable_toml()]


FULL_PLUGIN = """#!{python}
from sqlalchemy import Engine, event

from wattline.plugin.main import main

event.listen(Engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 4"))
main()
"""


def full_socket(desk: Desk) -> list[str]:
    """The same under the plugin, which is a process of its own."""
    home_of(desk)
    plugin = Path(desk.file("wattline-plugin", FULL_PLUGIN.format(python=sys.executable)))
    plugin.chmod(0o700)
    return [desk.socket_toml(), f"127.0.0.1:{free_port()}", str(plugin)]


def file_in_the_way(desk: Desk) -> list[str]:
    desk.file("ledgers", "")
    return [*RUN, desk.cable_toml({"storage": {"path": "ledgers/cable.sqlite3"}})]


def in_small_terminal(desk: Desk) -> list[str]:
    street = desk.fixture("street")
    street.scene.world.plug(0, "toaster")
    for name, value in street.scene.network.environment.items():
        desk.monkeypatch.setenv(name, value)  # the cable's meter is in the world of the socket
    return [*RUN, str(street.scene.write_cable_config(street.fresh, "small")), "--for", "2"]


PLUGINS = (
    Mistake("a port that is taken", taken_port, 1, ("port_taken", "127.0.0.1:", "already in use"), "plugin"),
    Mistake("a key that cannot be read", with_key(unreadable), 1, ("tls_key_unreadable", "tls-key.pem"), "plugin"),
    Mistake(
        "a key that others can read",
        with_key(lambda key, _: key.chmod(0o644)),
        1,
        ("tls_key_exposed", "tls-key.pem", "0644", "allowed: 0600"),
        "plugin",
    ),
    Mistake(
        "a certificate that is none",
        with_key(lambda _, certificate: certificate.write_text("none")),
        1,
        ("tls_key_bad", "tls-certificate.pem", "remove both"),
        "plugin",
    ),
    Mistake(
        "another key's certificate",
        with_key(others_certificate),
        1,
        ("tls_key_bad", "does not belong to the key", "remove both"),
        "plugin",
    ),
    Mistake(
        "a socket's ledger of a later version",
        newer_socket,
        1,
        ("ledger_too_new", "socket.sqlite3", "version 99", "update wattline"),
        "plugin",
    ),
    Mistake(
        "a full disk under a socket",
        full_socket,
        1,
        ("ledger_full", "socket.sqlite3", "the disk is full"),
        "plugin",
    ),
    Mistake(
        "a socket's configuration with a mistake",
        lambda desk: [desk.socket_toml(power="-1")],
        1,
        ("config_invalid", "socket.toml", "max_power_w"),
        "plugin",
    ),
)

DISKS = (
    Mistake("a full disk", full_disk, 1, ("ledger_full", "cable.sqlite3", "the disk is full")),
    Mistake(
        "a full disk under the output",
        lambda desk: [*READ, desk.socket_toml()],
        1,
        ("system_error", "output", "No space left"),
        "full",
    ),
    Mistake("a closed output", lambda desk: [*READ, desk.socket_toml()], 1, ("system_error", "output"), "closed"),
    Mistake(
        "a configuration on a full disk",
        lambda desk: ["init", "socket", "--force", "--output", "/dev/full"],
        2,
        ("config_unwritable", "/dev/full", "No space left"),
    ),
    Mistake("a file in the ledger's way", file_in_the_way, 1, ("ledger_not_writable", "ledgers")),
    Mistake(
        "a cable's ledger of a later version",
        newer_cable,
        2,
        ("ledger_too_new", "cable.sqlite3", "version 99", "update wattline"),
    ),
)

TERMINALS = (
    Mistake("a terminal that is too small", in_small_terminal, 0, ("done (for more: 80 x 24)",), "terminal"),
    Mistake(
        "a pipe that closes",
        lambda desk: ["meter", "watch", "--interval", "0.1", "--config", desk.socket_toml()],
        1,
        (),
        "pipe",
    ),
)
