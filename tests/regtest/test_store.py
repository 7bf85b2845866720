"""What is written in one unit of work is written as a whole, and told only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattline.regtest.node.store import Store


def test_a_unit_of_work_that_fails_leaves_nothing_and_tells_nobody(tmp_path: Path) -> None:
    store, told = Store(tmp_path / "db"), []

    def half() -> None:
        with store.unit():
            store.insert("addresses", address="toast")
            store.afterwards(lambda: told.append("toast"))
            raise ValueError("no bread")

    with pytest.raises(ValueError, match="no bread"):
        half()
    assert store.rows("SELECT * FROM addresses") == []
    with store.unit():
        store.insert("addresses", address="butter")
        store.afterwards(lambda: told.append("butter"))
        assert told == []
    assert told == ["butter"]
    assert Store(tmp_path / "db").rows("SELECT * FROM addresses") == [{"address": "butter"}]


def test_no_number_comes_twice_also_after_a_restart(tmp_path: Path) -> None:
    assert [Store(tmp_path / "db").next_number("paid") for _ in range(3)] == [1, 2, 3]


def test_units_within_a_unit_are_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")

    def outer() -> None:
        with store.unit():
            with store.unit():
                store.insert("addresses", address="toast")
            raise ValueError("no bread")

    with pytest.raises(ValueError, match="no bread"):
        outer()
    assert store.rows("SELECT * FROM addresses") == []
