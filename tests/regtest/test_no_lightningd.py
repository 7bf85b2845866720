"""The demo on real nodes where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattline.core.errors import StopError
from wattline.core.lightning.cln import OLDEST_NAME
from wattline.regtest.lightningd import LightningdProgram
from wattline.regtest.scene import Json, Scene
from wattline.regtest.toast import ToastOrder, toast

README = Path(__file__).parents[2] / "README.md"


def buys_nothing(scene: Scene, config: Path) -> Json:
    raise AssertionError("there is nobody to buy from")


def test_without_lightningd_the_demo_says_so_before_it_does_anything_about_bitcoind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    with pytest.raises(StopError, match=f"install Core Lightning {OLDEST_NAME} or newer") as caught:
        toast(ToastOrder(node="lightningd"), buys_nothing, said.append)
    assert caught.value.code == "lightningd_missing"
    assert said == []


def test_the_readme_names_the_oldest_lightningd_that_wattline_works_with() -> None:
    assert f"{OLDEST_NAME} or newer" in README.read_text(encoding="utf-8")


def test_a_lightningd_that_the_plugin_would_refuse_is_not_started() -> None:
    with pytest.raises(StopError, match=f"{OLDEST_NAME} or newer") as caught:
        LightningdProgram(Path("lightningd"), (25, 2, 1), "v25.02.1")
    assert caught.value.code == "lightningd_old"
