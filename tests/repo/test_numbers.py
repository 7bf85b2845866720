"""Every number of a configuration has both its bounds: what is read there reaches the ledger, clocks and chips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from wattline.cable.settings import CableSettings, load_cable
from wattline.core.errors import UsageError
from wattline.core.settings import models_in
from wattline.plugin.settings import SocketSettings

LEDGER_MAX = 2**63 - 1
DEVICES = {"bus", "address"}
"""They name a bus or a chip: a validator or the bus itself says that there is none."""


def numbers(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON schema of each number in a table and those below."""
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            yield from numbers(inner, seen)
        if not models_in(field.annotation):
            schema = TypeAdapter(field.rebuild_annotation()).json_schema()
            for part in [schema, *schema.get("anyOf", [])]:
                if part.get("type") in ("integer", "number"):
                    yield f"{model.__name__}.{name}", part


@pytest.mark.parametrize("model", [CableSettings, SocketSettings])
def test_every_number_has_a_lowest_and_a_highest_value_that_the_ledger_can_hold(model: type[BaseModel]) -> None:
    found = dict(numbers(model, set()))
    assert len(found) > 15
    for name, schema in found.items():
        if name.partition(".")[2] in DEVICES:
            continue
        lowest = schema.get("minimum", schema.get("exclusiveMinimum"))
        highest = schema.get("maximum", schema.get("exclusiveMaximum"))
        assert lowest is not None, name
        assert highest is not None, name
        assert -LEDGER_MAX <= lowest <= highest <= LEDGER_MAX, name


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "9" * 400, "9" * 5_000])
def test_a_number_that_is_none_is_a_mistake_in_the_file(tmp_path: Path, value: str) -> None:
    path = tmp_path / "cable.toml"
    path.write_text(
        f"""
        [socket]
        address = "{"02" + "51" * 32}@127.0.0.1:9750"
        [node]
        rpc = "lightning-rpc"
        [meter]
        driver = "ina228"
        bus = "sim:toaster"
        address = 0x41
        shunt_ohms = 0.001
        max_current_a = 40
        [limits]
        max_price_msat_per_kwh = 300_000
        max_prepaid_msat = 5_000
        max_session_msat = 1_000_000
        max_day_msat = 10_000_000
        max_fee_ratio = {value}
        """
    )
    with pytest.raises(UsageError) as caught:
        load_cable(path)
    assert str(path) in caught.value.message
