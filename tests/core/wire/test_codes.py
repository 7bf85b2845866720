from __future__ import annotations

import ast

from tests.repo.checkout import CHECKOUT, product_files
from wattline.cable.closing import GOOD_ENDS
from wattline.core.increments import BELOW_MIN_INCREMENT
from wattline.core.wire.fields import SOCKET_CODES, socket_code


def test_every_code_by_which_our_socket_refuses_is_known_to_our_cable() -> None:
    said: set[object] = {BELOW_MIN_INCREMENT}
    makers = {"Refused", "refusal", "VersionRefused"}
    for path in product_files():
        if path.is_relative_to(CHECKOUT / "cable"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                if node.func.id in makers and isinstance(first, ast.Constant):
                    said.add(first.value)
    assert len(said) > 20
    assert said <= SOCKET_CODES


def test_a_socket_cannot_end_a_session_well() -> None:
    assert not GOOD_ENDS & SOCKET_CODES
    assert {socket_code(code) for code in GOOD_ENDS} == {"socket_refuses"}
