"""Prices, and what energy and time cost at them. Pure: integers in, integers out."""

from wattline.tariff.cost import FOREVER_MS, cost_msat, lasts_ms, left_ms, worth_msat
from wattline.tariff.tariff import MAX_PRICE_MSAT, Tariff

__all__ = ["FOREVER_MS", "MAX_PRICE_MSAT", "Tariff", "cost_msat", "lasts_ms", "left_ms", "worth_msat"]
