"""Every place where we write: what somebody else has put there is neither emptied, nor followed, nor believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.another_user import MALLORY, needs_root
from wattline.cli.cable import _alone
from wattline.cli.init import socket as init_socket
from wattline.core.errors import StopError, WattlineError
from wattline.core.ledger.ledger import open_ledger
from wattline.core.settings import load_settings
from wattline.device.controller.guard import main as guard
from wattline.device.i2c.bus import BusError
from wattline.device.i2c.simulated import Place, WorldConnection
from wattline.plugin.certificate import load_or_make
from wattline.plugin.lifecycle import load
from wattline.plugin.settings import SocketSettings
from wattline.regtest.bitcoind import installed_bitcoind
from wattline.regtest.cache import exclusive


def run_a_cable(folder: Path) -> None:
    with _alone(folder / "file"):
        pass


def fill_the_cache(folder: Path) -> None:
    with exclusive(folder, "file"):
        pass


def start_a_world(folder: Path) -> None:
    WorldConnection(Place.of("sim:toaster", folder)).close()


def start_a_guard(folder: Path) -> None:
    config = folder / "guard.json"
    relay = {"driver": "pcf8574", "bus": "sim:toaster", "address": 0x20, "bit": 0}
    given = {"socket": str(folder / "file"), "log": str(folder / "log"), "relays": {"A1": relay}}
    config.write_text(json.dumps(given))
    if guard(["--config", str(config), "--foreground"]) != 0:
        raise StopError("refused", "its word is on stderr")


def write_over_a_configuration(folder: Path) -> None:
    init_socket(folder / "file", force=True)


def start_a_socket(folder: Path) -> None:
    config = folder.parent / "socket.toml"
    init_socket(config)
    home = folder / "wattline"
    home.mkdir()
    home.chmod(0o777)
    settings = load_settings(config, SocketSettings)
    load(settings, config, folder, folder / "rpc", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (run_a_cable, "file.lock"),
        (fill_the_cache, "file.lock"),
        (start_a_guard, "file.lock"),
        (start_a_guard, "log"),
        (write_over_a_configuration, "file"),
        (start_a_world, Place.of("sim:toaster").lock.name),
        (start_a_world, Place.of("sim:toaster").log.name),
    ],
)
def test_a_file_that_was_linked_into_our_place_keeps_what_is_in_it(
    write: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    dear = tmp_path / "dear"
    dear.write_text("dear")
    (tmp_path / name).hardlink_to(dear)
    with pytest.raises(WattlineError):
        write(tmp_path)
    assert dear.read_text() == "dear"


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda folder: open_ledger(folder / "ledger.sqlite3"), "ledger_exposed"),
        (fill_the_cache, "cache_unwritable"),
        (start_a_world, "no_permission"),
        (start_a_guard, "refused"),
        (start_a_socket, "home_unusable"),
    ],
)
def test_where_everybody_may_write_nothing_of_ours_is_kept(
    write: Callable[[Path], None], code: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises((WattlineError, BusError)) as caught:
        write(folder)
    assert caught.value.code == code


def test_a_bitcoind_that_anybody_may_have_put_into_the_cache_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATTLINE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    programs = tmp_path / "bitcoind" / "bin"
    programs.mkdir(parents=True)
    for name in ("bitcoind", "bitcoin-cli"):
        (programs / name).touch(mode=0o755)
    assert installed_bitcoind() is not None
    tmp_path.chmod(0o1777)
    assert installed_bitcoind() is None


def test_the_ledger_the_key_and_the_configuration_are_for_us_alone(tmp_path: Path) -> None:
    open_ledger(tmp_path / "ledger.sqlite3").close()
    load_or_make(tmp_path)
    init_socket(tmp_path / "socket.toml")
    for name in ("ledger.sqlite3", "tls-key.pem", "socket.toml"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600, name


@needs_root
def test_a_key_that_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    load_or_make(tmp_path)
    os.chown(tmp_path / "tls-key.pem", MALLORY, MALLORY)
    with pytest.raises(StopError, match="user nobody") as caught:
        load_or_make(tmp_path)
    assert caught.value.code == "tls_key_exposed"
