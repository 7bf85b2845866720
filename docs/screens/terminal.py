"""A terminal just large enough for what wattline shows, and its pictures as SVG."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from rich.console import Console
from rich.segment import Segment
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

CELL_W, CELL_H, MARGIN, FONT = 8.43, 19, 12, 14
LAST_FRAME_S = 6.0
"""How long the end stands still before the recording begins anew."""
_CONTROL = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|(\r\n|\r|\n)")


@dataclass
class Screen:
    """Lines with their colours. It knows what rich writes: whole lines, cleared and written again."""

    rows: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0

    def feed(self, text: str) -> None:
        at = 0
        for control in _CONTROL.finditer(text):
            self._write(text[at : control.start()])
            at = control.end()
            number, letter, end = control.groups()
            if letter == "m":
                self._write(control.group())
            elif letter == "A":
                self.row = max(0, self.row - int(number or 1))
            elif letter == "K":
                self.lines[self.row] = ""
            elif end in ("\n", "\r\n"):
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
        self._write(text[at:])

    @property
    def shown(self) -> tuple[str, ...]:
        """What a person sees: the last lines."""
        lines = self.lines if self.lines[-1] else self.lines[:-1]
        return tuple(lines[-self.rows + 1 :])

    def _write(self, text: str) -> None:
        self.lines[self.row] += text


@dataclass(frozen=True)
class Frame:
    at_s: float
    lines: tuple[str, ...]


def record(
    command: Sequence[str], columns: int, rows: int, shown_as: str, every_s: float, environment: Mapping[str, str]
) -> list[Frame]:
    """What ``command`` shows on a terminal of that size, looked at every so often. Raises CalledProcessError."""
    screen = Screen(rows)
    screen.feed(f"\x1b[1;32m$\x1b[0m {shown_as}\n")
    frames = [Frame(0.0, screen.shown)]
    begun = time.monotonic()
    for text in _output(command, columns, rows, environment):
        screen.feed(text)
        now = time.monotonic() - begun
        # A picture half drawn is none: rich ends each with its last line unbroken, or with a line's end.
        if now - frames[-1].at_s >= every_s and screen.row == len(screen.lines) - 1:
            frames.append(Frame(now, screen.shown))
    frames.append(Frame(time.monotonic() - begun, screen.shown))
    return frames


def _output(command: Sequence[str], columns: int, rows: int, environment: Mapping[str, str]) -> Iterator[str]:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=dict(environment))
    os.close(theirs)
    pending = b""
    while True:
        try:
            pending += os.read(ours, 65536)
        except OSError:  # how Linux tells that nobody is on the other side any more
            break
        # Neither a character nor a control sequence in two parts.
        whole = re.match(rb"(?s).*(?=\x1b\[[0-9;?]*\Z)|(?s:.*)", pending)
        assert whole is not None
        try:
            text = whole.group().decode()
        except UnicodeDecodeError:
            continue
        pending = pending[whole.end() :]
        yield text
    os.close(ours)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, list(command))


def picture(frames: Sequence[Frame], columns: int, title: str, poster: int = -1) -> str:
    """An SVG that plays ``frames`` for ever; where nothing plays, it shows the one at ``poster``."""
    height = max(len(frame.lines) for frame in frames)
    width_px, height_px = columns * CELL_W + 2 * MARGIN, height * CELL_H + 2 * MARGIN
    theme = DIMMED_MONOKAI
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width_px:g} {height_px:g}" width="{width_px:g}" '
        f'role="img" font-size="{FONT}" xml:space="preserve" '
        "font-family=\"'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace\">"
    )
    parts = [
        head,
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" rx="8" fill="{_hex(theme.background_color)}"/>',
    ]
    ends = [*(later.at_s for _, later in pairwise(frames)), frames[-1].at_s + LAST_FRAME_S]
    for number, (frame, end) in enumerate(zip(frames, ends, strict=True)):
        is_poster = number == poster % len(frames)
        play = _play(frame.at_s / ends[-1], end / ends[-1], ends[-1]) if len(frames) > 1 else ""
        hidden = "" if is_poster else ' display="none"'
        parts.append(f"<g{hidden}>{play}")
        parts += [run for row, line in enumerate(frame.lines) for run in _runs(line, row, columns)]
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _play(begin: float, end: float, length_s: float) -> str:
    """Shown from ``begin`` to ``end``, parts of the whole."""
    times = [(0.0, "none"), (begin, "inline"), (end, "none")]
    times = times[1:] if begin == 0 else times
    times = times[:-1] if end == 1 else times
    values, keys = ";".join(value for _, value in times), ";".join(f"{at:.4f}" for at, _ in times)
    return (
        f'<animate attributeName="display" values="{values}" keyTimes="{keys}" dur="{length_s:.1f}s" '
        'calcMode="discrete" repeatCount="indefinite"/>'
    )


def _runs(line: str, row: int, columns: int) -> Iterator[str]:
    """One text for every run of cells of one style, each put to its own column."""
    console = Console(width=columns, color_system="truecolor", force_terminal=True, legacy_windows=False)
    theme = DIMMED_MONOKAI
    column = 0
    y = MARGIN + row * CELL_H + FONT
    for text, style, _ in Segment.simplify(Text.from_ansi(line).render(console)):
        colour = theme.foreground_color
        if style is not None and style.color is not None:
            colour = style.color.get_truecolor(theme)
        marks = f' fill="{_hex(colour)}"'
        if style is not None and style.bold:
            marks += ' font-weight="bold"'
        if style is not None and style.italic:
            marks += ' font-style="italic"'
        if style is not None and style.dim:
            marks += ' opacity="0.6"'
        # Fonts differ in width: what stands apart is put to its own column, so that columns stay columns.
        for words in re.finditer(r"\S+(?: \S+)*", text):
            x = MARGIN + (column + words.start()) * CELL_W
            length = len(words.group()) * CELL_W
            content = escape(words.group(), quote=False)
            yield f'<text x="{x:.5g}" y="{y:g}" textLength="{length:.5g}"{marks}>{content}</text>'
        column += len(text)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
