"""Configurations that ``wattline init`` writes: they load as they are, and hold every key there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.cli.command import run
from wattline.cable.settings import CableSettings
from wattline.cli.init import template
from wattline.core.settings import Settings, load_settings, models_in
from wattline.plugin.settings import SocketSettings

WHICH: dict[str, type[Settings]] = {"socket": SocketSettings, "cable": CableSettings}


def written(folder: Path, which: str) -> Path:
    path = folder / "new.toml"
    assert run("init", which, "--output", str(path)) == 0
    return path


def keys_of(model: type[BaseModel]) -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        found |= {key for table in inner for key in keys_of(table)} if inner else {name}
    return found


@pytest.mark.parametrize("which", list(WHICH))
def test_what_was_written_loads_as_it_is(tmp_path: Path, which: str) -> None:
    load_settings(written(tmp_path, which), WHICH[which])


@pytest.mark.parametrize("which", list(WHICH))
def test_every_key_of_the_types_appears_with_its_description(tmp_path: Path, which: str) -> None:
    text = written(tmp_path, which).read_text()
    assert keys_of(WHICH[which]) <= set(re.findall(r"^(?:#|#   )?(\w+)(?: =|:)", text, re.MULTILINE))
    for model in _tables(WHICH[which]):
        for name, field in model.model_fields.items():
            assert field.description is None or f"{field.description}\n" in text, f"{model.__name__}.{name}"


@pytest.mark.parametrize("which", list(WHICH))
def test_what_is_commented_out_is_the_default(tmp_path: Path, which: str) -> None:
    path = written(tmp_path, which)
    before = load_settings(path, WHICH[which])
    lines = [line for line in path.read_text().splitlines() if not line.endswith('"..."')]
    uncommented = [re.sub(r"^#(?=\w+ = )", "", line) for line in lines]
    assert uncommented != lines
    path.write_text("\n".join(uncommented))
    assert load_settings(path, WHICH[which]) == before


@pytest.mark.parametrize("which", list(WHICH))
def test_a_file_that_is_there_is_not_written_over_unless_told_to(
    tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    assert run("init", which, "--output", str(path)) == 2
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert run("init", which, "--output", str(path), "--force") == 0
    load_settings(path, WHICH[which])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run("init", "socket", "--output", str(tmp_path / "file" / "socket.toml")) == 2
    assert "config_unwritable" in capsys.readouterr().err


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_directory_in_place_of_a_file_is_called_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], force: list[str]
) -> None:
    for output, named in ((str(tmp_path), str(tmp_path)), ("", ".")):
        assert run("init", "socket", *force, "--output", output) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"config_unwritable: {named}: is a directory; name the file in it, too")


def test_the_directory_of_the_file_is_made_and_both_are_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "node" / "wattline" / "socket.toml"
    assert run("init", "socket", "--output", str(path)) == 0
    load_settings(path, SocketSettings)
    modes = [found.stat().st_mode & 0o777 for found in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]


def test_a_file_that_is_written_over_keeps_the_mode_that_it_was_given(tmp_path: Path) -> None:
    path = written(tmp_path, "socket")
    path.chmod(0o640)
    assert run("init", "socket", "--output", str(path), "--force") == 0
    assert path.stat().st_mode & 0o777 == 0o640


def test_for_the_socket_it_tells_where_to_put_it_and_the_next_two_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", "socket") == 0
    out = capsys.readouterr().out
    assert (tmp_path / "socket.toml").exists()
    assert "wattline/socket.toml in the node's directory" in out
    (program,) = re.findall(r"(\S+) outlet test --config socket.toml", out)
    assert Path(program) == Path(sys.executable).parent / "wattline"
    (command,) = re.findall(r"lightning-cli plugin start (\S+)", out)
    assert Path(command).name == "wattline-plugin"
    assert Path(command).is_absolute()


def test_what_it_says_of_other_simulated_chips_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for which in WHICH:
        text = written(tmp_path, which).read_text()
        (tmp_path / "new.toml").unlink()
        for driver, address in re.findall(r'driver = "(ina\d+)"  \(simulated: address = (0x\w+), bus = "sim:', text):
            changed = re.sub(
                r'driver = "ina228"(?s:(.*?))address = 0x\w+', f'driver = "{driver}"\\1address = {address}', text
            )
            path = tmp_path / "changed.toml"
            path.write_text(changed.replace('"sim:toaster"', '"sim:toaster@24"'))
            assert run("meter", "read", "--config", str(path)) == 0
        assert text.count("(simulated: address") == {"socket": 3, "cable": 2}[which]


def test_a_new_cable_can_pay_nobody(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, "cable"), CableSettings)
    assert settings.socket.parsed.node_id == "02" + "00" * 32
    assert not settings.socket.any_node


def test_a_required_key_without_an_example_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError, match=r"socket\.address"):
        template(CableSettings, "", {"meter.driver": "ina228"})


def _tables(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [table for field in model.model_fields.values() for table in models_in(field.annotation)]
    return [model, *(table for found in inner for table in _tables(found))]
