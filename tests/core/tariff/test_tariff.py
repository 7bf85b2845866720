"""Which tariffs can be made."""

from __future__ import annotations

from typing import Any

import pytest

from wattline.core.errors import UsageError
from wattline.core.tariff import MAX_PRICE_MSAT, Tariff


def test_the_same_prices_have_the_same_id_and_other_prices_another() -> None:
    assert Tariff.of(300_000, 5, 7) == Tariff.of(300_000, 5, 7)
    ids = {Tariff.of(*prices).tariff_id for prices in [(1, 2, 3), (2, 1, 3), (12, 3, 0), (1, 23, 0), (0, 0, 0)]}
    assert len(ids) == 5


def test_the_id_of_a_set_of_prices_stays_what_it_was_in_earlier_versions() -> None:
    # It stands in ledgers and in signed offers.
    assert Tariff.of(300_000, 0, 0).tariff_id == "3aa7c0b15872844e"


@pytest.mark.parametrize("price", [-1, MAX_PRICE_MSAT + 1, True, 1.0, "1", None])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_impossible_price_is_refused_and_named(price: Any, position: int) -> None:
    prices: list[Any] = [0, 0, 0]
    prices[position] = price
    name = ["energy_msat_per_kwh", "time_msat_per_hour", "session_fee_msat"][position]
    with pytest.raises(UsageError, match=name) as caught:
        Tariff("t", *prices)
    assert caught.value.code == "tariff_invalid"


@pytest.mark.parametrize("tariff_id", ["", "x" * 65, "a b", "prix\u00e9", "a\n"])
def test_an_id_that_could_not_stand_in_a_log_line_is_refused(tariff_id: str) -> None:
    with pytest.raises(UsageError, match="tariff_id"):
        Tariff(tariff_id, 0, 0, 0)


def test_the_highest_price_is_allowed() -> None:
    assert Tariff.of(MAX_PRICE_MSAT).energy_msat_per_kwh == MAX_PRICE_MSAT
