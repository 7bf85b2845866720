"""The configuration reference says what the types say."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_the_configuration_reference_is_current() -> None:
    path = Path(__file__).with_name("configuration_reference.py")
    spec = importlib.util.spec_from_file_location("configuration_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8") == module.reference(), "run `make docs`"
