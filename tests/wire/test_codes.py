from __future__ import annotations

import ast
from pathlib import Path

from wattline.cable.summary import GOOD_ENDS
from wattline.payment.increments import BELOW_MIN_INCREMENT
from wattline.wire import SOCKET_CODES, socket_code

PLUGIN = Path(__file__).parents[2] / "plugin" / "wattline"


def test_every_code_by_which_our_socket_refuses_is_known_to_our_cable() -> None:
    said: set[object] = {BELOW_MIN_INCREMENT}
    for folder in ("plugin", "payment"):
        for path in sorted((PLUGIN / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                    first = node.args[0]
                    if node.func.id in ("Refused", "refusal", "VersionRefused") and isinstance(first, ast.Constant):
                        said.add(first.value)
    assert len(said) > 20
    assert said <= SOCKET_CODES


def test_a_socket_cannot_end_a_session_well() -> None:
    assert not GOOD_ENDS & SOCKET_CODES
    assert {socket_code(code) for code in GOOD_ENDS} == {"socket_refuses"}
