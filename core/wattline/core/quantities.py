"""Amounts, energy and power as people read them."""

from __future__ import annotations


def sat(amount_msat: int) -> str:
    """An amount in sat with its msat as decimals: ``1 234.567 sat``."""
    whole, rest = divmod(abs(amount_msat), 1000)
    grouped = f"{whole:,}".replace(",", " ")
    return f"{'-' if amount_msat < 0 else ''}{grouped}.{rest:03d} sat"


def energy(energy_uwh: int) -> str:
    """Energy in Wh, or kWh from 1 kWh on."""
    return f"{energy_uwh / 1e6:.3f} Wh" if energy_uwh < 10**9 else f"{energy_uwh / 1e9:.4f} kWh"


def power(power_mw: int) -> str:
    """Power in W."""
    return f"{power_mw / 1000:.1f} W"
