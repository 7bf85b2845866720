"""Prices, and what energy and time cost at them. Pure: integers in, integers out.

The prices that a whole session keeps.

What energy and time cost, exactly.

All functions work in one common unit, 1/(3.6 * 10^12) msat, in which every price is a whole number:

- 1 uWh at 1 msat/kWh is 10^-9 msat = 3600 units;
- 1 ms at 1 msat/h is 1/(3.6 * 10^6) msat = 10^6 units;
- 1 mW for 1 ms is 1/3600 uWh, so at 1 msat/kWh it is 1 unit.

Only the last step divides, so nothing is lost however finely a session is cut.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from wattline.core.checks import check_whole
from wattline.core.errors import StopError, UsageError

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
        check_whole("tariff_invalid", "energy_msat_per_kwh", self.energy_msat_per_kwh, 0, MAX_PRICE_MSAT, UsageError)
        check_whole("tariff_invalid", "time_msat_per_hour", self.time_msat_per_hour, 0, MAX_PRICE_MSAT, UsageError)
        check_whole("tariff_invalid", "session_fee_msat", self.session_fee_msat, 0, MAX_PRICE_MSAT, UsageError)

    @classmethod
    def of(cls, energy_msat_per_kwh: int, time_msat_per_hour: int = 0, session_fee_msat: int = 0) -> Tariff:
        """The tariff of these prices; the same prices have the same ``tariff_id`` on every socket."""
        prices = f"wattline:tariff:1:{energy_msat_per_kwh}:{time_msat_per_hour}:{session_fee_msat}"
        tariff_id = hashlib.sha256(prices.encode("ascii")).hexdigest()[:16]
        return cls(tariff_id, energy_msat_per_kwh, time_msat_per_hour, session_fee_msat)


UNITS_PER_MSAT = 3_600_000_000_000
UNITS_PER_UWH = 3600
UNITS_PER_MS = 1_000_000

FOREVER_MS = 10**15
"""What :func:`lasts_ms` and :func:`left_ms` answer at most (30 000 years): the load costs nothing."""


def cost_msat(tariff: Tariff, energy_uwh: int, delivered_ms: int, started: bool) -> int:
    """What a session owes for its *cumulative* energy and time in delivery, rounded up once.

    The session fee is in it when delivery has begun (``started``). Raises StopError ``cost_of_negative`` for negative
    energy or time.
    """
    _check(energy_uwh=energy_uwh, delivered_ms=delivered_ms)
    fee_msat = tariff.session_fee_msat if started else 0
    return fee_msat + _round_up(_used_units(tariff, energy_uwh, delivered_ms))


def worth_msat(tariff: Tariff, power_mw: int, duration_ms: int) -> int:
    """The price of a constant ``power_mw`` for ``duration_ms``, rounded up, session fee not counted: the smallest
    balance that lasts so long. Raises StopError ``cost_of_negative``."""
    _check(power_mw=power_mw, duration_ms=duration_ms)
    return _round_up(_units_per_ms(tariff, power_mw) * duration_ms)


def lasts_ms(tariff: Tariff, balance_msat: int, power_mw: int) -> int:
    """For how long ``balance_msat`` pays for a constant ``power_mw``, rounded down; the inverse of :func:`worth_msat`.

    0 for a negative balance, at most FOREVER_MS. Raises StopError ``cost_of_negative`` for a negative power.
    """
    _check(power_mw=power_mw)
    return _duration_ms(balance_msat * UNITS_PER_MSAT, _units_per_ms(tariff, power_mw))


def left_ms(tariff: Tariff, credited_msat: int, energy_uwh: int, delivered_ms: int, power_mw: int) -> int:
    """How much longer a session in delivery can take ``power_mw`` until its *cost* reaches ``credited_msat``.

    Counted from the cumulative ``energy_uwh`` and ``delivered_ms``, session fee included, rounded down: for every
    duration up to this one, cost_msat(energy then, time then, started) <= credited_msat. Unlike :func:`lasts_ms` of the
    balance it does not lose the part of a msat by which the cost was rounded up. 0 when the credit is used up, at most
    FOREVER_MS. Raises StopError ``cost_of_negative``.
    """
    _check(energy_uwh=energy_uwh, delivered_ms=delivered_ms, power_mw=power_mw)
    paid_units = (credited_msat - tariff.session_fee_msat) * UNITS_PER_MSAT
    return _duration_ms(paid_units - _used_units(tariff, energy_uwh, delivered_ms), _units_per_ms(tariff, power_mw))


def _used_units(tariff: Tariff, energy_uwh: int, delivered_ms: int) -> int:
    energy_units = UNITS_PER_UWH * tariff.energy_msat_per_kwh * energy_uwh
    return energy_units + UNITS_PER_MS * tariff.time_msat_per_hour * delivered_ms


def _units_per_ms(tariff: Tariff, power_mw: int) -> int:
    return tariff.energy_msat_per_kwh * power_mw + UNITS_PER_MS * tariff.time_msat_per_hour


def _duration_ms(units: int, units_per_ms: int) -> int:
    if units < 0:
        return 0
    if units_per_ms == 0:
        return FOREVER_MS
    return min(FOREVER_MS, units // units_per_ms)


def _round_up(units: int) -> int:
    return -(-units // UNITS_PER_MSAT)


def _check(**values: int) -> None:
    for name, value in values.items():
        if value < 0:
            raise StopError("cost_of_negative", f"{name} cannot be negative, it is {value}")
