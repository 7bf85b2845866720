"""Writes docs/configuration.md from the settings' types: ``python tests/repo/configuration_reference.py --write``."""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wattline.cable.settings import CableSettings
from wattline.core.settings import models_in
from wattline.plugin.settings import SocketSettings

TARGET = Path(__file__).parents[2] / "docs" / "configuration.md"
HEAD = """# Configuration

Written by `make docs` from the types that read the files; do not edit. An unknown key, a wrong type or an impossible
value is an error that names the file, the key and what is allowed. Money is in msat, energy in microwatt-hours, and the
unit stands in the name.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "## socket.toml\n", _table_of(SocketSettings, ""), "## cable.toml\n", _table_of(CableSettings, "")]
    return "\n".join(parts)


def _table_of(model: type[BaseModel], path: str) -> str:
    """The keys of ``model``, then a section for each table in it."""
    rows, sections = [], []
    for name, field in model.model_fields.items():
        models = models_in(field.annotation)
        if not models:
            rows.append(f"| `{name}` | {_type(name, field)} | {_default(field)} | {field.description or ''} |")
            continue
        many = get_origin(field.annotation) is list
        for inner in models:
            where = f"{path}{name}"
            title = f"[[{where}]]" if many else f"[{where}]"
            driver = inner.model_fields.get("driver")
            suffix = f' with `driver = "{get_args(driver.annotation)[0]}"`' if driver is not None else ""
            text = field.description or (inner.__doc__ or "").strip().splitlines()[0]
            sections.append(f"### `{title}`{suffix}\n\n{text}\n\n{_table_of(inner, where + '.')}")
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*(head + rows if rows else []), "", *sections])


def _type(name: str, field: FieldInfo) -> str:
    text = _name(field.annotation)
    limits = [*field.metadata, *_annotations(field.annotation)]
    for kind, sign in ((Ge, "≥"), (Gt, ">"), (Le, "≤"), (Lt, "<")):
        for limit in limits:
            if isinstance(limit, kind):
                bound = getattr(limit, kind.__name__.lower())
                text += f", {sign} {bound:#04x}" if name == "address" else f", {sign} {bound:_}"
    return text


def _annotations(annotation: Any) -> list[Any]:
    return list(annotation.__metadata__) if get_origin(annotation) is Annotated else []


def _name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _name(get_args(annotation)[0])
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in get_args(annotation))
    if origin is list:
        return f"list of {_name(get_args(annotation)[0])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_name(inner) for inner in get_args(annotation) if inner is not type(None))
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int):
        return f"`{value:_}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: configuration_reference.py --write")
    TARGET.write_text(reference(), encoding="utf-8")
