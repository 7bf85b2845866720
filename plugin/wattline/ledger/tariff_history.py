"""Which prices held since when. Append-only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from sqlalchemy import insert, select

from wattline.ledger.schema import tariffs
from wattline.ledger.store import Store
from wattline.tariff import Tariff


@dataclass(frozen=True, slots=True)
class TariffEntry:
    """One change of prices."""

    tariff: Tariff
    effective_at: int
    """Unix seconds, for sessions opened from then on."""


class TariffStore(Store):
    """The history of the socket's prices."""

    def save_tariff(self, tariff: Tariff, effective_at: int) -> None:
        """From ``effective_at`` (Unix seconds) on these are the prices for new sessions."""
        with self._database.unit() as connection:
            connection.execute(insert(tariffs).values(**asdict(tariff), effective_at=effective_at))

    def current_tariff(self) -> Tariff | None:
        """The tariff saved last; None when there was none."""
        history = self.tariff_history(1)
        return history[0].tariff if history else None

    def tariff_history(self, limit: int) -> Sequence[TariffEntry]:
        """The last ``limit`` changes, newest first."""
        names = [field.name for field in fields(Tariff)]
        with self._database.view() as connection:
            rows = connection.execute(select(tariffs).order_by(tariffs.c.number.desc()).limit(limit))
            return [
                TariffEntry(Tariff(**{name: row._mapping[name] for name in names}), row.effective_at) for row in rows
            ]
