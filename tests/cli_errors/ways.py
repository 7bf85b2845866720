"""How a mistake is made: at the command line in this process or in one of its own, or by loading the plugin."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.command import run
from tests.cli_errors.mistake import Desk
from wattline.core.errors import StopError
from wattline.regtest.daemon import free_port
from wattline.regtest.scene import script

COLUMNS, ROWS = 40, 10
TIMEOUT_S = 60
PICTURE = (
    "closed, relay open",
    r"\d+\.\d W  0\.\d{3} Wh",
    r"balance 0\.\d{3} sat",
    r"spent   0\.\d{3} sat",
    r"[1-9]\d* payments, 0 failed, \d+ ms",
    r"done \(for more: 80 x 24\)",
)
"""The last one on a terminal that is too small."""
COMMAND = (sys.executable, "-m", "wattline.cli.main")


@dataclass(frozen=True)
class Answer:
    status: int
    lines: list[str]
    """Of stdout and stderr."""


Way = Callable[[Desk, list[str], pytest.CaptureFixture[str]], Answer]


def by_command(desk: Desk, words: list[str], capsys: pytest.CaptureFixture[str]) -> Answer:
    """``wattline WORDS`` in this process."""
    del desk
    capsys.readouterr()
    status = run(*words)
    said = capsys.readouterr()
    return Answer(status, [*said.out.splitlines(), *said.err.splitlines()])


def by_plugin(desk: Desk, words: list[str], capsys: pytest.CaptureFixture[str]) -> Answer:
    """``lightning-cli plugin start`` with the configuration in ``words`` (then the address, then the program, where it
    matters which); 1 when it is refused."""
    del capsys
    usual = ("", f"127.0.0.1:{free_port()}", str(script("wattline-plugin")))
    config, listen, plugin = (*words, *usual[len(words) :])
    node = desk.fixture("empty_node")
    try:
        node.start_plugin(plugin, wattline_config=config, wattline_listen=listen)
    except StopError as error:
        return Answer(1, error.message.splitlines())
    node.stop_plugin(plugin)
    return Answer(0, [])


def onto_full_disk(desk: Desk, words: list[str], capsys: pytest.CaptureFixture[str]) -> Answer:
    """``wattline WORDS > /dev/full``"""
    del desk, capsys
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False
        )
    return Answer(done.returncode, done.stderr.splitlines())


def onto_nothing(desk: Desk, words: list[str], capsys: pytest.CaptureFixture[str]) -> Answer:
    """``wattline WORDS >&-``"""
    del desk, capsys
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *words]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False)
    return Answer(done.returncode, done.stderr.splitlines())


def into_closed_pipe(desk: Desk, words: list[str], capsys: pytest.CaptureFixture[str]) -> Answer:
    """``wattline WORDS | head -1``"""
    del desk, capsys
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    return Answer(process.wait(TIMEOUT_S), errors.splitlines())


def in_small_terminal(desk: Desk, words: list[str], capsys: pytest.CaptureFixture[str]) -> Answer:
    """``wattline WORDS`` on a terminal of 40 x 10; nothing may be wider while it is drawn."""
    del desk, capsys
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [*COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := _read(ours):
            shown += chunk
    finally:
        os.close(ours)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    status = process.wait(TIMEOUT_S)
    drawn, _, ending = shown.decode().rpartition("\x1b[?25h")
    lines = _plain(drawn)
    assert max(map(len, lines)) <= COLUMNS
    assert max(shown.decode().count("\n", *frame) for frame in _frames(shown.decode())) < ROWS
    assert "done: the time is up" in ending, ending
    picture = _plain(drawn.rpartition("\x1b[2K")[2])
    assert len(picture) >= len(PICTURE)
    for line, pattern in zip(picture, PICTURE, strict=False):
        assert re.fullmatch(pattern, line), picture
    # Below it, what has happened last.
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in picture[len(PICTURE) :]), picture
    return Answer(status, [picture[len(PICTURE) - 1]])


def _plain(shown: str) -> list[str]:
    """What a terminal shows of it, without colours and movements."""
    return (
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    )


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""  # how Linux tells that nobody is on the other side any more


def _frames(shown: str) -> list[tuple[int, int]]:
    """Where a picture begins and ends: before each, the cursor goes up over the last one."""
    ends = [match.start() for match in re.finditer(r"\r\x1b\[2K", shown)]
    return list(pairwise(ends)) or [(0, len(shown))]


WAYS: dict[str, Way] = {
    "command": by_command,
    "plugin": by_plugin,
    "full": onto_full_disk,
    "closed": onto_nothing,
    "pipe": into_closed_pipe,
    "terminal": in_small_terminal,
}
