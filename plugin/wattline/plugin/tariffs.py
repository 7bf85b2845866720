"""The prices for sessions opened from now on."""

from __future__ import annotations

import time
from collections.abc import Callable

from wattline.core.ledger.ledger import Ledger
from wattline.core.tariff import Tariff
from wattline.plugin.service import Refused
from wattline.plugin.settings import SocketSettings

CONFIGURED = "tariff_configured"


class PriceList:
    """Which tariff holds; durable. At a start it is the configured one when that has changed since it was last read,
    else the newest, which `wattline-tariff` may have set since: a restart must not undo what the operator said last."""

    def __init__(
        self, ledger: Ledger, settings: SocketSettings, now: Callable[[], int] = lambda: int(time.time())
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._now = now
        configured = settings.tariff.as_tariff()
        read_before = ledger.last_event(CONFIGURED)
        current = ledger.current_tariff()
        if current is None or read_before is None or read_before.detail.get("tariff_id") != configured.tariff_id:
            with ledger.unit():
                ledger.save_tariff(configured, now())
                ledger.append_event(now(), None, CONFIGURED, {"tariff_id": configured.tariff_id})
            current = configured
        self.current = current
        """For sessions opened from now on."""

    def named(self, tariff_id: str) -> Tariff:
        """The present one, when it has that id. Raises Refused ``tariff_changed``."""
        current = self.current
        if tariff_id != current.tariff_id:
            raise Refused("tariff_changed", "the price has changed since the offer; ask for a new one")
        return current

    def change(self, tariff: Tariff) -> int:
        """Sell at these prices from now on; the time from which they hold. Raises UsageError when no session could
        begin at them; then nothing changes."""
        for outlet in self._settings.outlet:
            self._settings.terms(outlet.outlet_id, tariff)
        effective_at = self._now()
        self._ledger.save_tariff(tariff, effective_at)
        self.current = tariff
        return effective_at
