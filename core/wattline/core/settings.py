"""Reading a TOML file into typed settings; every mistake is named with its file, its key and what is allowed."""

from __future__ import annotations

import codecs
import re
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from wattline.core.errors import UsageError


class Settings(BaseModel):
    """Base of all settings: immutable, strict in its types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


ADDRESS = ".address"
"""How the key of a chip's address on its bus ends; it is written in hexadecimal."""

SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(path: Path, model: type[SettingsT]) -> SettingsT:
    """The settings in the TOML file at ``path``. Raises UsageError with a line per mistake; nothing is changed."""
    try:
        values = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # a number of some thousand digits, brackets in brackets without end
        raise UsageError("config_syntax", f"{path}: not valid TOML: {error}") from error
    return parse_settings(values, model, str(path))


def read_text(path: Path) -> str:
    """What a person has written into the file at ``path``: UTF-8, with or without the mark (BOM) that some editors put
    before it. Raises UsageError."""
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UsageError(
                "config_unreadable", f'{path}: cannot be read: it is UTF-16 (an editor\'s "Unicode"); save it as UTF-8'
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError("config_missing", f"{path}: no such file") from None
    except OSError as error:
        raise UsageError("config_unreadable", f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        what = f"byte {error.start} ({content[error.start]:#04x}) is no UTF-8; save it as UTF-8"
        raise UsageError("config_unreadable", f"{path}: cannot be read: {what}") from error


def parse_settings(values: dict[str, Any], model: type[SettingsT], source: str) -> SettingsT:
    """``values`` as ``model``; ``source`` names where they came from in errors. Raises UsageError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError("config_invalid", "; ".join(_lines(error, model, source))) from error


def _lines(error: ValidationError, model: type[Settings], source: str) -> list[str]:
    lines: list[str] = []
    for item in error.errors():
        of_several = _of_several_types(model, item["loc"])
        key = _key(model, item["loc"] if of_several is None else item["loc"][:-1])
        message = item["msg"].removeprefix("Value error, ")
        context = item.get("ctx", {})
        if item["type"] == "missing":
            message = "this key is missing"
        elif item["type"] == "union_tag_not_found":
            key, message = f"{key}.driver", "this key is missing; it names the kind of chip"
        elif item["type"] == "union_tag_invalid":
            key, message = f"{key}.driver", f"must be one of {context['expected_tags']} (it is {context['tag']!r})"
        elif item["type"] == "list_type" and isinstance(item.get("input"), dict):
            message = f"must be a list of tables, [[{key}]] with two brackets"
        elif item["type"] == "model_type" and isinstance(item.get("input"), list):
            message = f"must be one table, [{key}] with one bracket"
        elif item["type"] == "extra_forbidden":
            message = f"unknown key; allowed here: {', '.join(_siblings(model, item['loc']))}"
        elif of_several is not None:
            # pydantic tells of each of its types; it is one mistake.
            message = f"must be {_allowed(of_several)} (it is {item.get('input')!r})"
        elif not isinstance(item.get("input"), (dict, list)):
            message = f"{message} (it is {item.get('input')!r})"
            if key.endswith(ADDRESS) and isinstance(item.get("input"), int):
                message = re.sub(r"\b\d+\b", lambda found: f"{int(found[0]):#04x}", message)
        line = f"{source}: {key}: {message}"
        if line not in lines:
            lines.append(line)
    return lines


def _of_several_types(model: type[BaseModel], location: tuple[int | str, ...]) -> FieldInfo | None:
    """The key that may hold values of several types when ``location`` ends with the name that pydantic gives to one of
    these types."""
    if len(location) < 2:
        return None
    tables, _ = _followed(model, location[:-2])
    for field in (table.model_fields[location[-2]] for table in tables if location[-2] in table.model_fields):
        if get_origin(field.annotation) in (Union, UnionType) and location[-1] in _names(field):
            return field
    return None


def _names(field: FieldInfo) -> list[str]:
    return [inner.__name__ for inner in get_args(field.annotation) if isinstance(inner, type)]


def _allowed(field: FieldInfo) -> str:
    """What a key may hold, in the words of its description."""
    told = (field.description or " or ".join(_names(field))).rstrip(".")
    return f"the {told[0].lower()}{told[1:]}" if field.description else told


def _siblings(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed beside the unknown one at ``location``."""
    current, _ = _followed(model, location[:-1])
    return sorted({name for candidate in current for name in candidate.model_fields})


def _key(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """``location`` as it stands in the file."""
    return ".".join(_followed(model, location)[1]) or "(file)"


def _followed(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[type[BaseModel]], list[str]]:
    """The tables that ``location`` may be in, and its parts but for those that pydantic puts there to tell which of
    several types of a table it took."""
    current: list[type[BaseModel]] = [model]
    parts = []
    for part in location:
        fields = [candidate.model_fields[part] for candidate in current if part in candidate.model_fields]
        tagged = [candidate for candidate in current if _tag_of(candidate) == part]
        if tagged and not fields:
            current = tagged
            continue
        parts.append(str(part))
        found = [table for field in fields for table in models_in(field.annotation)]
        current = found or current
    return current, parts


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The tables that a key of this type can hold; none when it holds a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def _tag_of(model: type[BaseModel]) -> str | None:
    """The value of a discriminating ``driver`` field, as it stands in pydantic's location of an error."""
    field = model.model_fields.get("driver")
    literals = getattr(field.annotation, "__args__", ()) if field is not None else ()
    return str(literals[0]) if literals else None
