"""The prices that a whole session keeps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from wattline.errors import UsageError

MAX_PRICE_MSAT = 100_000_000_000
"""The highest value of any price: one bitcoin. Above it a slip of the unit is likelier than a wish."""

MAX_ID_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Tariff:
    """Energy price, time price and session fee. Raises UsageError ``tariff_invalid`` where a value is impossible."""

    tariff_id: str
    """Printable ASCII without blanks, at most 64 characters; :meth:`of` derives it from the prices."""
    energy_msat_per_kwh: int
    """Price of 10^9 uWh."""
    time_msat_per_hour: int
    """Price of an hour in which the relay is closed; a paused session costs nothing."""
    session_fee_msat: int
    """Once per session, due when delivery begins."""

    def __post_init__(self) -> None:
        if not 0 < len(self.tariff_id) <= MAX_ID_LENGTH or not all("!" <= c <= "~" for c in self.tariff_id):
            raise UsageError("tariff_invalid", f"tariff_id: 1 to 64 printable ASCII characters, not {self.tariff_id!r}")
        _check_price("energy_msat_per_kwh", self.energy_msat_per_kwh)
        _check_price("time_msat_per_hour", self.time_msat_per_hour)
        _check_price("session_fee_msat", self.session_fee_msat)

    @classmethod
    def of(cls, energy_msat_per_kwh: int, time_msat_per_hour: int = 0, session_fee_msat: int = 0) -> Tariff:
        """The tariff of these prices; the same prices have the same ``tariff_id`` on every socket."""
        prices = f"wattline:tariff:1:{energy_msat_per_kwh}:{time_msat_per_hour}:{session_fee_msat}"
        tariff_id = hashlib.sha256(prices.encode("ascii")).hexdigest()[:16]
        return cls(tariff_id, energy_msat_per_kwh, time_msat_per_hour, session_fee_msat)


def _check_price(name: str, value: object) -> None:
    # bool is an int to Python; a price of True is a mistake all the same.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PRICE_MSAT:
        raise UsageError("tariff_invalid", f"{name}: a whole number from 0 to {MAX_PRICE_MSAT}, not {value!r}")
