"""The terms of a session where a test has none of its own; `replace` what it is about."""

from __future__ import annotations

from wattline.core.session.session import Terms
from wattline.core.tariff import Tariff

TERMS = Terms(
    tariff=Tariff.of(300_000),
    rated_power_mw=1000,
    meter_interval_ms=100,
    pause_max_s=60,
    open_timeout_s=60,
    cable_lost_s=60,
    credit_cap_msat=100_000,
    min_refund_msat=100,
)
