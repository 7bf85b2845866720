"""Which prices hold after a start."""

from __future__ import annotations

import time

from wattline.ledger import Ledger
from wattline.offering import TariffSettings
from wattline.tariff import Tariff

CONFIGURED = "tariff_configured"


def tariff_at_start(ledger: Ledger, configured: TariffSettings) -> Tariff:
    """The configured prices when they have changed since they were last read; else the newest, which `wattline-tariff`
    may have set since: a restart must not undo what the operator said last."""
    tariff = configured.as_tariff()
    read_before = ledger.last_event(CONFIGURED)
    current = ledger.current_tariff()
    if current is not None and read_before is not None and read_before.detail.get("tariff_id") == tariff.tariff_id:
        return current
    now = int(time.time())
    ledger.save_tariff(tariff, now)
    ledger.append_event(now, None, CONFIGURED, {"tariff_id": tariff.tariff_id})
    return tariff
