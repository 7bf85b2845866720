"""What was written of money and messages is never changed: no code in the ledger could."""

from __future__ import annotations

import ast
from pathlib import Path

import wattline.core.ledger
from wattline.core.ledger.schema import metadata

CHANGEABLE = {
    "sessions",
    "journal_cursor",
    "intents",
    "cable_sessions",
    "schema_version",
    "aggregates",
    "aggregate_inputs",
    "aggregate_versions",
    "refused_cables",
    "refused_inputs",
    "cable_aggregates",
    "boots",
}
APPEND_ONLY = {"payments", "tariffs", "statements", "receipts", "events"}


def test_every_table_is_either_changeable_or_append_only() -> None:
    assert {table.name for table in metadata.sorted_tables} == CHANGEABLE | APPEND_ONLY
    assert not CHANGEABLE & APPEND_ONLY


def test_no_code_updates_or_deletes_rows_of_append_only_tables() -> None:
    assert wattline.core.ledger.__file__ is not None
    changed: dict[str, set[str]] = {"update": set(), "delete": set()}
    for path in Path(wattline.core.ledger.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in changed:
                assert isinstance(node.args[0], ast.Name), f"{path}:{node.lineno}: the table cannot be seen"
                changed[node.func.id].add(node.args[0].id)
            if isinstance(node, ast.Attribute):
                # The other ways to change rows in SQLAlchemy.
                assert not (node.attr in ("update", "delete", "merge") and _is_table(node.value)), path
                assert node.attr != "text", f"{path}: SQL as text cannot be checked here"
    assert changed == {
        "update": {
            "sessions",
            "journal_cursor",
            "intents",
            "cable_sessions",
            "aggregates",
            "aggregate_versions",
            "cable_aggregates",
            "boots",
        },
        # A version that was not credited, with its inputs when it was the first; and whom the operator forgives.
        # Also a session that was never paid for, and an invitation to an address that no version ever named.
        "delete": {
            "schema_version",
            "aggregate_versions",
            "aggregate_inputs",
            "refused_cables",
            "refused_inputs",
            "sessions",
            "aggregates",
        },
    }


def _is_table(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in CHANGEABLE | APPEND_ONLY
