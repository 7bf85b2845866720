"""Takes the pictures of this directory anew, all from real runs: ``.venv/bin/python docs/screens/record.py``.

The nodes are practice nodes, so nothing needs to be installed. It takes about a minute."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from terminal import Frame, picture, record

from wattline.regtest.practice_network import PracticeNetwork
from wattline.regtest.scene import Scene, Trade, script

HERE = Path(__file__).parent
SECONDS = "12"
NARROW, WIDE = (80, 24), (130, 36)


def main() -> None:
    for name, size in (("demo", NARROW), ("demo-wide", WIDE)):
        frames = taken(["demo", "--seconds", SECONDS], size, 1.0)
        live = [number for number, frame in enumerate(frames) if any("delivering" in line for line in frame.lines)]
        save(name, frames, size[0], "wattline demo: a slice of bread, paid for by its own cable", live[len(live) // 2])
        save(f"{name}-end", frames[-1:], size[0], "what wattline demo says in the end")
    save("help", taken(["--help"], NARROW)[-1:], NARROW[0], "wattline --help")
    with PracticeNetwork() as network, Scene(network, Trade(), name="socket") as scene:
        socket = scene.start_node()
        cable = network.node("cable")
        network.open_channel(cable, socket, 100_000, push_msat=50_000_000)
        scene.wait_running()
        config = scene.write_cable_config(cable)
        os.chdir(config.parent)
        frames = taken(["cable", "check", "--config", config.name], (130, 24), worlds=network.environment)
        save("cable-check", frames[-1:], 130, "wattline cable check: everything that a session needs")


def taken(
    words: Sequence[str], size: tuple[int, int], every_s: float = 1e9, worlds: Mapping[str, str] | None = None
) -> list[Frame]:
    """What ``wattline WORDS`` shows; ``worlds`` says in its environment where simulated worlds are."""
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1", **(worlds or {})}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    columns, rows = size
    return record(
        [str(script("wattline")), *words], columns, rows, " ".join(["wattline", *words]), every_s, environment
    )


def save(name: str, frames: Sequence[Frame], columns: int, title: str, poster: int = -1) -> None:
    path = HERE / f"{name}.svg"
    path.write_text(picture(frames, columns, title, poster), encoding="utf-8")
    sys.stdout.write(f"{path}: {path.stat().st_size // 1024} KiB, {len(frames)} frame(s)\n")


if __name__ == "__main__":
    main()
