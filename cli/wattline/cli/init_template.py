"""A commented configuration, written from the settings' own types, so that no key can be missing or out of date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wattline.core.settings import models_in

Examples = Mapping[str, Any]
"""Values by the path of their key (``outlet.meter.bus``): what is written as it counts. The ``driver`` of a table
chooses among its types; what stands under the name of another driver (``outlet.meter.ina226``) is said beside it."""


def template(model: type[BaseModel], head: str, examples: Examples) -> str:
    """A TOML file that loads as ``model``: keys with an example, and all others with their default, commented out.

    Raises KeyError when a required key has no example.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    _tables(model, "", examples, lines)
    return "\n".join(lines) + "\n"


def _tables(model: type[BaseModel], path: str, examples: Examples, lines: list[str]) -> None:
    """The keys of ``model``, then a section for each table in it."""
    fields = model.model_fields.items()
    for name, field in fields:
        if not models_in(field.annotation):
            _key(name, field, f"{path}{name}", examples, lines)
    for name, field in fields:
        models = models_in(field.annotation)
        if not models:
            continue
        where = f"{path}{name}"
        chosen = _chosen(models, examples.get(f"{where}.driver"))
        text = field.description or (chosen.__doc__ or "").strip().splitlines()[0]
        many = get_origin(field.annotation) is list
        lines += ["", f"# {text}", f"[[{where}]]" if many else f"[{where}]"]
        _tables(chosen, f"{where}.", examples, lines)
        for other in models:
            if other is not chosen:
                _alternative(other, chosen, examples.get(f"{where}.{_driver(other)}"), lines)


def _key(name: str, field: FieldInfo, path: str, examples: Examples, lines: list[str]) -> None:
    if field.description:
        lines.append(f"# {field.description}")
    if path in examples:
        lines.append(f"{name} = {_value(name, examples[path])}")
    elif field.is_required():
        raise KeyError(path)
    else:
        default = field.get_default(call_default_factory=True)
        # TOML has no word for "nothing": what the key would look like stands there instead.
        shown = _value(name, default) if default is not None else '"..."'
        lines.append(f"#{name} = {shown}")


def _alternative(model: type[BaseModel], chosen: type[BaseModel], simulated: Any, lines: list[str]) -> None:
    """Another type of the same table, in words, with how to try it on simulated hardware; keys that mean the same in
    both are not told again."""
    driver = f'#   driver = "{_driver(model)}"' + (f"  ({simulated})" if simulated else "")
    lines += ["#", f"# Instead: {(model.__doc__ or '').strip().splitlines()[0]}", driver]
    for name, field in model.model_fields.items():
        known = chosen.model_fields.get(name)
        if name != "driver" and (known is None or known.description != field.description):
            lines.append(f"#   {name}: {field.description}")


def _chosen(models: list[type[BaseModel]], driver: Any) -> type[BaseModel]:
    if len(models) == 1:
        return models[0]
    (found,) = (model for model in models if _driver(model) == driver)
    return found


def _driver(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("driver")
    return None if field is None else str(get_args(field.annotation)[0])


def _value(name: str, value: Any) -> str:
    """``value`` in TOML; addresses in hexadecimal, as data sheets have them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:#04x}" if name == "address" else f"{value:_}"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_value(name, item) for item in value) + "]"
    return repr(value)
