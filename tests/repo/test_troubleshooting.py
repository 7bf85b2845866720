"""docs/troubleshooting.md against the code: nothing made up, nothing that a person can meet left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from tests.repo.checkout import CHECKOUT as ROOT
from tests.repo.checkout import product_files
from wattline.cable.policy.reconciliation import Breach
from wattline.cli.main import assemble
from wattline.core.errors import WattlineError
from wattline.core.session.state import StopReason
from wattline.core.wire.fields import SOCKET_CODES
from wattline.device.i2c.bus import BusError
from wattline.plugin.main import main as plugin

PAGE = ROOT / "docs" / "troubleshooting.md"
CODE = re.compile(r"[a-z]+(?:_[a-z]+)+|starting")
STARTED_FROM = (plugin, assemble(["--help"]))
"""Loading the plugin and all commands has made every exception class of ours."""

OURS = {
    # A wrong call inside wattline: a person sees none of them but as a bug.
    *("account_invalid", "amount_invalid", "booking_invalid", "charge_fell", "cost_of_negative", "in_unit_of_work"),
    *("intent_exists", "intent_invalid", "intent_resolved", "not_a_fault", "occupancy_invalid", "record_invalid"),
    *("refund_not_due", "refund_too_large", "session_id_invalid", "session_invalid", "statement_exists"),
    *("tariff_invalid", "unknown_intent", "already_paying"),
    *("aggregate_exists", "aggregate_invalid", "aggregate_not_mined", "aggregate_not_sent", "unknown_aggregate"),
    *("outpoint_invalid", "signed_fell", "version_in_use", "version_invalid", "version_stale"),
    # Of a bus that is simulated: they stand inside another one.
    *("bus_error", "no_answer", "no_bus", "no_permission"),
    # Names of parameters, which stand before words in the same way.
    *("end_time", "session_id"),
    # Between plugin and guard, or between plugin and payer.
    *("lease_over", "lease_too_long", "malformed_payload"),
    # What the harness of the tests asks of its nodes.
    *("already_running", "apt_source_invalid", "line_too_short", "node_exists", "node_name_invalid", "not_running"),
    *("cannot_start", "value_invalid"),
}


def errors(kind: type[WattlineError] = WattlineError) -> Iterator[str]:
    """The names of all exception classes whose code a person may see: a bus error stands inside another one."""
    if kind is not BusError:
        yield kind.__name__
        for inner in kind.__subclasses__():
            yield from errors(inner)


@cache
def codes() -> dict[str, str]:
    """Every code that the sources give to an error, a refusal or an end of a session, and where."""
    makers = {
        *errors(),
        "__init__",
        "check_whole",
        "check_hex32",
        "end",
        "SendFailure",
        "OnchainFailed",
        "Refuse",
        "refusal",
    }
    found = {str(reason): "StopReason" for reason in (*StopReason, *Breach)}
    found |= dict.fromkeys(SOCKET_CODES, "wattline.core.wire.fields")
    for path in sources():
        where = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                function = node.func
                name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                if name in makers and (code := code_of(node.args[0])):
                    found[code] = where
            found |= dict.fromkeys(with_message(node), where)
            if path.name == "check.py" and isinstance(node, ast.Constant) and isinstance(node.value, str):
                begun = re.match(rf"({CODE.pattern}): ", node.value)
                if begun:
                    found[begun[1]] = where
    return found


def with_message(node: ast.AST) -> Iterator[str]:
    """Codes that stand before the words that explain them, among what is passed or returned."""
    items = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
    for item, explains in pairwise(items):
        is_text = isinstance(explains, ast.JoinedStr) or (
            isinstance(explains, ast.Constant) and isinstance(explains.value, str) and " " in explains.value
        )
        if is_text and (code := code_of(item)):
            yield code


def code_of(node: ast.AST) -> str | None:
    """The code that this literal is; None when it is none."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) and CODE.fullmatch(value) else None


def sources() -> Iterator[Path]:
    yield from product_files()
    for path in sorted((ROOT / "regtest/wattline/regtest").rglob("*.py")):
        if "node" not in path.relative_to(ROOT).parts:
            yield path


def told() -> set[str]:
    """The codes that the page tells of: those at the beginning of a row."""
    rows = re.findall(r"^\| (`[^|]*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {code for row in rows for code in re.findall(r"`([^`]+)`", row)}


def test_every_code_that_a_person_can_meet_is_in_the_page() -> None:
    known = told() | OURS
    missing = {code: where for code, where in codes().items() if code not in known}
    assert missing == {}


def test_every_code_in_the_page_is_in_the_sources() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in sources())
    known = codes()
    assert {code for code in told() if code not in known and f'"{code}' not in text} == set()


def test_what_is_left_out_on_purpose_exists_and_is_not_told_all_the_same() -> None:
    assert OURS - set(codes()) == set()
    assert OURS & told() == set()
