"""Recordings of what a node says: calls and answers, what a plugin hears, and what was done in between.

A recording is a file of JSON lines. The first names the nodes; then every line is one step, in the order in which they
were taken: ``call`` (method, params, and ``result`` or ``error``), ``begin``/``end`` (the same, with other steps while
it waits), ``do`` (something that a person would do: start, kill, mine), ``look`` (what the chain says of something),
``heard`` (what the probe plugin got meanwhile). ``python -m harness.recorder`` makes them anew on real nodes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from pyln.client import LightningRpc, RpcError

from harness.stage import Stage
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.rpc import NodeRpc
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork

DIRECTORY = "{directory}"
"""In a recording: where the nodes have their directories."""
PLUGINS = "{plugins}"
"""Where lightningd has its own plugins; they are left out of the lists of plugins."""
LONGEST_TEXT = 600

Json = dict[str, Any]
Outcome = tuple[str, Any]
"""``result`` or ``error``, and its value."""


class Recorder:
    """Takes the steps of a scenario on the nodes of a stage and writes them down."""

    def __init__(self, stage: Stage, title: str) -> None:
        self.stage = stage
        self.lines: list[Json] = []
        self._title = title
        self._pool = ThreadPoolExecutor(8)
        self._waiting: dict[int, Future[Outcome]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def node(self, name: str, **options: object) -> None:
        """A running node with the probe plugin."""
        self.do("node", name=name, options=options)

    def channel(self, opener: str, peer: str, push_msat: int = 300_000_000, announce: bool = True) -> None:
        self.do("channel", opener=opener, peer=peer, value_sat=1_000_000, push_msat=push_msat, announce=announce)

    def do(self, action: str, **arguments: object) -> None:
        """A step that is no call; what it says (ids that later steps speak of) is written down."""
        said = self.stage.do(action, **arguments)
        self.lines.append({"do": action, **arguments, **({"said": said} if said is not None else {})})

    def look(self, action: str, **arguments: object) -> Json | None:
        """A step that is no call, whose outcome is part of the recording: a replay compares it."""
        said = self.stage.do(action, **arguments)
        self.lines.append({"look": action, **arguments, "said": said})
        return said

    def call(self, node: str, method: str, params: Mapping[str, Any] | list[Any] | None = None) -> Any:
        """A call and its answer; the result, or the error object."""
        kind, value = ask(self.stage.node(node), method, params)
        self.lines.append({"node": node, "call": method, "params": params or {}, kind: value})
        return value

    def begin(self, node: str, method: str, params: Mapping[str, Any] | None = None) -> int:
        """A call whose answer comes later; its number for ``end``."""
        number = len(self.lines)
        self._waiting[number] = self._pool.submit(ask, self.stage.node(node), method, params)
        self.lines.append({"node": node, "begin": number, "method": method, "params": params or {}})
        return number

    def end(self, number: int) -> Any:
        """The answer of the call ``number``."""
        kind, value = self._waiting.pop(number).result(90)
        self.lines.append({"end": number, kind: value})
        return value

    def heard(self, node: str, *methods: str) -> list[Json]:
        """Wait until the probe of ``node`` has got, since the last time, as many messages of ``methods`` as there are
        names (a name may stand twice), and write them down in their order."""
        messages = self.stage.heard(node, methods)
        self.lines.append({"heard": node, "methods": list(methods), "messages": messages})
        return messages

    def wallet(self, node: str) -> CoreLightning:
        """wattline's own client of the node; every call that it makes is recorded."""
        wallet = CoreLightning(self.stage.node(node).rpc_path)
        wallet.rpc = RecordingRpc(self.stage.node(node), wallet.rpc, self.lines)
        return wallet

    def write(self, path: Path, version: str) -> None:
        header = {"title": self._title, "lightningd": version, "node_ids": self.stage.node_ids()}
        places = {str(self.stage.directory): DIRECTORY, _plugins_directory(self.lines): PLUGINS}
        lines = [portable(line, places) for line in (header, *self.lines)]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


class RecordingRpc(NodeRpc):
    """wattline's RPC client with a listener."""

    def __init__(self, node: Node, rpc: NodeRpc, lines: list[Json]) -> None:
        super().__init__(rpc.path)
        self._node = node
        self._lines = lines

    def call(self, method: str, params: Mapping[str, Any] | None = None, takes_s: float = 0.0) -> Json:
        kind, value = ask(self._node, method, params)
        self._lines.append({"node": self._node.name, "call": method, "params": dict(params or {}), kind: value})
        if kind == "error":
            raise self._refusal(method, value)
        return dict(value)


def ask(node: Node, method: str, params: Mapping[str, Any] | list[Any] | None) -> Outcome:
    """One call and its answer, as plain JSON. Raises OSError when there is none."""
    try:
        return "result", plain(LightningRpc(str(node.rpc_path)).call(method, params or {}))
    except RpcError as error:
        return "error", plain(error.error)


def plain(value: Any) -> Any:
    """pyln's amounts and all else as JSON has them."""
    return json.loads(json.dumps(value, default=int))


def portable(value: Any, places: Mapping[str, str]) -> Any:
    """``value`` without what belongs to this machine or to lightningd's own plugins, and with a name in place of every
    onion and other long text."""
    if isinstance(value, dict):
        return {key: portable(inner, places) for key, inner in value.items()}
    if isinstance(value, list):
        made = [portable(inner, places) for inner in value]
        return [item for item in made if not (isinstance(item, dict) and str(item.get("name")).startswith(PLUGINS))]
    if not isinstance(value, str):
        return value
    for place, name in places.items():
        value = value.replace(place, name)
    if len(value) > LONGEST_TEXT:
        return f"<{len(value)} characters: {hashlib.sha256(value.encode()).hexdigest()[:16]}>"
    return value


def _plugins_directory(lines: list[Json]) -> str:
    """Where lightningd's own plugins are, by its own words."""
    for line in lines:
        result = line.get("result")
        for plugin in result.get("plugins", []) if isinstance(result, dict) else []:
            if plugin["name"].endswith("/keysend"):
                return str(Path(plugin["name"]).parent)
        for option in result.get("configs", {}).values() if isinstance(result, dict) else []:
            if "plugin" in option:
                return str(Path(option["plugin"]).parent)
    return "/no/plugins/were/listed"


def record(title: str, scenario: Callable[[Recorder], None], path: Path) -> None:
    """Play ``scenario`` on real nodes and write its recording."""
    with RegtestNetwork() as network, Recorder(Stage(network), title) as recorder:
        try:
            scenario(recorder)
        finally:
            # Also what came before a failure: it tells what failed.
            version = str(recorder.stage.any_node().rpc.getinfo()["version"])
            recorder.write(path, version)


def main() -> int:
    from harness.scenarios import SCENARIOS  # it needs the Recorder

    parser = argparse.ArgumentParser(
        description="Record what real nodes say, for the practice node to be held against."
    )
    parser.add_argument("directory", type=Path, help="where the recordings go (regtest/recordings)")
    parser.add_argument("scenario", nargs="*", default=list(SCENARIOS), help=f"of {', '.join(SCENARIOS)}; default all")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    for name in given.scenario:
        sys.stderr.write(f"recording {name}\n")
        record(name, SCENARIOS[name], given.directory / f"{name}.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(main())
